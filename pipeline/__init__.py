"""Training pipeline for chest X-ray detection: data, detector, evaluation, delivery."""

import os

from pipeline.account import provide_account

__version__ = "0.1.0"

provide_account()
# MLflow and Prefect send usage data to their makers, unless these are set before they are imported. Prefect reads the
# first, MLflow both, but the first only where it is "true".
for _name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "true")
# MLflow asks GitPython, which fills a screen where there is no git; `pipeline.provenance` says it in one line.
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
