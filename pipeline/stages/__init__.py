"""The four stages of dvc.yaml: file I/O and assembly; each runs as ``python -m pipeline.stages.<name>``."""
