"""Prefect flows: when the stages run, and what happens when one fails."""

import pipeline  # noqa: F401 # first of all: Prefect looks for HOME when it is imported
