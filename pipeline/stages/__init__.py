"""The four stages of dvc.yaml: file I/O and assembly; each is run as ``python -m``."""
