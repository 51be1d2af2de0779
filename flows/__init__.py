"""Prefect flows: when the stages run, and what happens when one fails."""
