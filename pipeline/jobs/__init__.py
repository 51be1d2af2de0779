"""Commands that are not stages of dvc.yaml, one per file."""
