"""The rights that a training needs on a tracking server, asked for before anything is computed."""

from collections.abc import Callable

from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

from pipeline.tracking.asking import tell
from pipeline.tracking.place import tracking_uri
from pipeline.tracking.registry import require_registry
from pipeline.tracking.store import open_client, open_experiment
from pipeline.tracking.versions import CHALLENGER, MODEL_NAME

# A server checks the caller's rights first, and the request's content afterwards.
_GRANTED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")
_NO_VERSION = "0"


def require_rights() -> None:
    """Require that this process may log runs, register models and name the challenger.

    A server gets a request for each, with contents that it cannot accept: nothing is written.

    Raises:
        UserError: the store cannot be used, or does not grant one of them; the message names which.
    """
    client = open_client()
    experiment = open_experiment(client)
    require_registry()
    if not tracking_uri().startswith("http"):
        return  # the database's own rights, which `require_registry` has used

    def log_run() -> None:
        run = client.create_run(experiment, tags={MLFLOW_RUN_NAME: "one name"}, run_name="another name")
        client.delete_run(run.info.run_id)

    def register() -> None:
        client.create_model_version(MODEL_NAME, source="file:///")

    def name_challenger() -> None:
        client.set_registered_model_alias(MODEL_NAME, CHALLENGER, _NO_VERSION)

    for what, call in (
        ("logging a run", log_run),
        ("registering a model", register),
        ("naming the challenger", name_challenger),
    ):
        _require_right(what, call)


def _require_right(what: str, call: Callable[[], None]) -> None:
    def attempt() -> None:
        try:
            call()
        except MlflowException as error:
            if error.error_code not in _GRANTED:
                raise

    tell(what, attempt)
