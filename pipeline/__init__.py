"""Training pipeline for chest X-ray detection: data, detector, evaluation, delivery."""

import os

from pipeline.account import provide_account

__version__ = "0.1.0"

provide_account()
# MLflow and Prefect send usage data to their makers unless they are told not to, before they are imported.
os.environ.setdefault("DO_NOT_TRACK", "1")
