"""The client of the store of runs, and the experiment to which the runs belong."""

import logging
import os
from contextlib import suppress

# Set before the import: log_model would otherwise run pip to check the pinned packages.
os.environ.setdefault("MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK", "true")
# MLflow's progress bars become lines of noise in a log.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow would retry for minutes; data that must not be lost waits on disk instead.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# MLflow would print the server's address at the end of each run.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

# None of this pipeline's models is a pickle, and no pickle is loaded.
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")

import mlflow
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException

from pipeline.errors import UserError
from pipeline.tracking.asking import BrokenAnswerError, MissingError, ask, reason, tell
from pipeline.tracking.database import make_database, reach_database
from pipeline.tracking.locations import mend_locations, new_location, require_location
from pipeline.tracking.pages import VIEW_STATE, VIEW_TAG, run_page, runs_page
from pipeline.tracking.place import shown_uri, tracking_uri

EXPERIMENT = "rsna-pneumonia"
# MLflow would take an empty path for "do not check the server's certificate".
_CERTIFICATES = "MLFLOW_TRACKING_SERVER_CERT_PATH"
# Without this tag, MLflow's pages open on tools for language models.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development", VIEW_TAG: VIEW_STATE}


def open_client() -> mlflow.MlflowClient:
    """Return a client of the store; the files of a local store are found beside it, even after a move.

    Raises:
        UserError: the store cannot be used.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)  # one line per migration of a new database
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of errors that we report
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # one line per repeated request
    if not os.environ.get(_CERTIFICATES, "unset"):
        del os.environ[_CERTIFICATES]
    mlflow.set_tracking_uri(tracking_uri())
    make_database(tracking_uri())
    reach_database(tracking_uri())
    mend_locations(tracking_uri())
    return mlflow.MlflowClient(tracking_uri())


def open_experiment(client: mlflow.MlflowClient) -> str:
    """Return the id of the experiment ``MLFLOW_EXPERIMENT_NAME``, which is made if need be.

    Raises:
        UserError: the store cannot be used, or the experiment was deleted.
    """
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    experiment = tell("looking for the experiment", lambda: _find_or_make(client, name))
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"{shown_uri()}: experiment {name} was deleted there; `mlflow experiments restore --experiment-id"
            f" {experiment.experiment_id}` brings it back, and MLFLOW_EXPERIMENT_NAME names another one"
        )
    require_location(tracking_uri(), name, str(experiment.artifact_location))
    tell("looking for the experiment", lambda: mlflow.set_experiment(experiment_id=experiment.experiment_id))
    return str(experiment.experiment_id)


def _find_or_make(client: mlflow.MlflowClient, name: str) -> Experiment:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            made = client.create_experiment(name, new_location(tracking_uri(), name), _EXPERIMENT_TAGS)
            experiment = client.get_experiment(made)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another process was faster
    if experiment is None or experiment.name != name:
        raise BrokenAnswerError(f"the answer does not name experiment {name}")
    return experiment


def find_run(client: mlflow.MlflowClient, run_id: str) -> Run:
    """Return a run that is not deleted.

    Raises:
        MissingError: the store does not have the run, or the run was deleted.
        UserError: the store cannot be queried.
    """

    def call() -> Run:
        run = client.get_run(run_id)
        if run.info.run_id != run_id:
            raise BrokenAnswerError(f"the answer does not name run {run_id}")
        return run

    run = ask(f"looking for run {run_id}", call)
    if run.info.lifecycle_stage != "active":
        raise MissingError(f"run {run_id} was deleted")
    return run


def run_place(run_id: str) -> str:
    """Return how to open a run: its URL on a tracking server, or the command that starts a server."""
    try:
        experiment = find_run(open_client(), run_id).info.experiment_id
    except MissingError:
        return f"run {run_id} is not in {shown_uri()}"
    except UserError as error:
        return f"run {run_id}; {reason(error)}"
    address = run_page(pages_server(), experiment, run_id)
    return address if tracking_uri().startswith("http") else f"{address} while `make ui` runs"


def pages_server() -> str:
    """Return the tracking server's address, else that of the server that `make ui` starts (port ``MLFLOW_PORT``)."""
    if tracking_uri().startswith("http"):
        return shown_uri().rstrip("/")
    return f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT') or 5000}"


def pages_of(server: str, run_id: str | None) -> list[str]:
    """Return the address of the list of runs in this folder's store, and that of a run if the store has it.

    Raises:
        UserError: the store cannot be used.
    """
    client = open_client()
    experiment = open_experiment(client)
    if VIEW_TAG not in client.get_experiment(experiment).tags:  # made by an older version
        tell("setting the columns", lambda: client.set_experiment_tag(experiment, VIEW_TAG, VIEW_STATE))
    pages = [runs_page(server, experiment)]
    if run_id is not None:
        with suppress(MissingError):
            pages.append(run_page(server, find_run(client, run_id).info.experiment_id, run_id))
    return pages
