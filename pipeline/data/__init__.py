"""Offline, deterministic data work: tables, checks, preprocessing, shards, splits."""
