"""Offline, deterministic data work: tables, DICOM, CLAHE, shards, splits, checks, the sample."""
