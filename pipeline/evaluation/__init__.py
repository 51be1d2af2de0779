"""Modules that only report numbers: summaries, subgroups, comparison, drift. No torch models here."""
