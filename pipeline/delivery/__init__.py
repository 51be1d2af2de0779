"""A trained model in use: its files, prediction on DICOM files, and the MLflow model."""
