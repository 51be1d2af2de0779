"""Training pipeline for chest X-ray detection: data, detector, evaluation, delivery."""

from pipeline.home import provide_home

__version__ = "0.1.0"

provide_home()
