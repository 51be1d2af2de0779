"""Training pipeline for chest X-ray detection: data, detector, evaluation, delivery."""

import os

from pipeline.home import provide_home

__version__ = "0.1.0"

provide_home()
# MLflow and Prefect send usage data to their makers unless they are told not to, before they are imported.
os.environ.setdefault("DO_NOT_TRACK", "1")
