"""Training pipeline for chest X-ray detection: data, detector, evaluation, delivery."""

__version__ = "0.1.0"
