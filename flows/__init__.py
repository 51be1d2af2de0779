"""Prefect flows: when the stages run, and what happens when one fails."""

import pipeline  # noqa: F401 # first of all: it sets what Prefect reads from the environment when it is imported
