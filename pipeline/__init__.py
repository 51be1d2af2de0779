"""Training pipeline for chest X-ray detection: data, detector, evaluation, delivery."""

import os

from pipeline import lifetime
from pipeline.account import provide_account

__version__ = "0.1.0"

lifetime.begin()
provide_account()
# MLflow and Prefect send usage data to their makers unless these variables are set before the import. Prefect reads
# the first; MLflow reads both, but heeds the first only if it is "true".
for _name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "true")
# Threads that wait for each other spin for some microseconds and then sleep, instead of spinning for milliseconds:
# where other processes use the cores too, a spinning thread takes the time that the one which it waits for would need.
# On a fast machine, threads that sleep at once cost a quarter of the speed. GNU's OpenMP reads this when torch is
# imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")
# MLflow uses GitPython, which fills a screen if git is missing; `pipeline.provenance` reports it in one line.
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
