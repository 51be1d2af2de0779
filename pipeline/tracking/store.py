"""Where runs are kept."""

import logging
import os

# Before the import: log_model would otherwise run pip to check what is pinned below.
os.environ.setdefault("MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Its bars become lines of noise in a log.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow would try for minutes; what must not be lost waits on disk instead.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

# No model of ours is a pickle, and none is loaded.
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")

import mlflow
from mlflow.exceptions import MlflowException

from pipeline.errors import UserError

EXPERIMENT = "rsna-pneumonia"
DEFAULT_URI = "sqlite:///mlflow.db"
# Without it MLflow's pages open on tools for language models.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or a database in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_URI)


def open_client() -> mlflow.MlflowClient:
    """A client of the store."""
    mlflow.set_tracking_uri(tracking_uri())
    logging.getLogger("alembic").setLevel(logging.WARNING)  # one line per migration of a new database
    return mlflow.MlflowClient(tracking_uri())


def open_experiment(client: mlflow.MlflowClient) -> str:
    """The id of the experiment ``MLFLOW_EXPERIMENT_NAME``, which is made if need be.

    Raises:
        UserError: the store cannot be used.
    """
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    try:
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name, tags=_EXPERIMENT_TAGS)
    except MlflowException as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"MLFLOW_TRACKING_URI = {tracking_uri()}: cannot be used: {reason}") from None
    mlflow.set_experiment(experiment_id=experiment)
    return str(experiment)


def run_place(run_id: str) -> str:
    """How to open a run: its URL on a tracking server, or the command that starts one."""
    client = open_client()
    try:
        experiment = client.get_run(run_id).info.experiment_id
    except MlflowException:
        return f"run {run_id} is not in {tracking_uri()}"
    if tracking_uri().startswith("http"):
        return f"{tracking_uri().rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"
    return f"run {run_id} in {tracking_uri()}; `make ui` shows it at #/experiments/{experiment}/runs/{run_id}"
