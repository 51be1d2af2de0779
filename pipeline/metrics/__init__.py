"""Metrics by which an epoch or a threshold is chosen. No torch models here."""
