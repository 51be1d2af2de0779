"""Prefect flows, which define when the stages run and how failures are handled."""

import pipeline  # noqa: F401 # imported first: it sets environment variables that Prefect reads when it is imported
