"""Models in MLflow's registry."""

import base64
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlflow
import mlflow.pyfunc
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

from pipeline.errors import UserError
from pipeline.tracking.datasets import DataVersion
from pipeline.tracking.store import open_client, tracking_uri

MODEL_NAME = "rsna-retinanet"
CHALLENGER, CHAMPION = "challenger", "champion"
_HISTORY = "champions"
# MLflow takes tags of 5,000 characters.
_TAG_LENGTH, _CHAMPIONS_KEPT = 1000, 20
# What the served model needs; the tracking server's machine has no training environment.
_SERVING_PACKAGES = (
    "mlflow", "numpy", "opencv-python-headless", "pandas", "pydantic", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg", "safetensors", "timm", "torch", "torchvision",
)  # fmt: skip
_MODEL_DESCRIPTION = (
    "Boxes lung opacities on frontal chest radiographs. Takes DICOM files (base64, column `dicom`) or grey levels"
    " 0 to 255 (rows of pixels, column `image`); answers with boxes in pixels of the original image, their scores,"
    " both in the RSNA challenge's format too, and an image score."
)


def log_model(
    run_id: str,
    folder: Path,
    metrics: Mapping[str, float | None],
    step: int,
    example: bytes,
    description: str,
    data: DataVersion,
    serving: Mapping[str, object],
) -> str:
    """Log and register the model in ``folder`` as a pyfunc of the run; returns its version.

    ``metrics`` are logged at ``step`` for the run and the model, and linked to the test split of ``data``.
    ``example`` is a DICOM file that shows what the model takes; it is stored beside it. ``description``
    (Markdown) goes to the registered version; ``serving`` is stored with the model as its configuration.
    """
    code = Path(__file__).resolve().parents[1]
    with mlflow.start_run(run_id):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(code / "delivery" / "mlflow_model.py"),
            artifacts={"model": str(folder)},
            code_paths=[str(code)],
            signature=_signature(),
            input_example=pd.DataFrame({"dicom": [base64.b64encode(example).decode()]}),
            pip_requirements=_pinned(_SERVING_PACKAGES),
            registered_model_name=MODEL_NAME,
            metadata={"format": "safetensors"},
            model_config=dict(serving),
        )
        known = {key: value for key, value in metrics.items() if value is not None}
        mlflow.log_metrics(known, step=step, model_id=info.model_id, dataset=data.split("test"))
    number = str(info.registered_model_version)
    client = open_client()
    client.update_registered_model(MODEL_NAME, _MODEL_DESCRIPTION)
    client.update_model_version(MODEL_NAME, number, description)
    client.set_registered_model_alias(MODEL_NAME, CHALLENGER, number)
    return number


def download_model(uri: str, folder: Path | None = None) -> Path:
    """Fetch the model folder (weights and configuration) of a run's or a registered model, into ``folder``.

    Raises:
        UserError: there is no such model.
    """
    mlflow.set_tracking_uri(tracking_uri())
    folder = folder or Path(tempfile.mkdtemp(prefix="pneumoflow-"))
    try:
        local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise UserError(f"{uri}: no such model in {tracking_uri()}: {' '.join(str(error).split())[:200]}") from None
    found = sorted(local.rglob("model.json"))
    if not found:
        raise UserError(f"{uri}: not a model of this pipeline; it has no model.json")
    return found[0].parent


def serving_config(uri: str) -> dict[str, object]:
    """What `log_model` stored as the model's configuration; empty for a model that has none.

    Raises:
        UserError: there is no such model.
    """
    mlflow.set_tracking_uri(tracking_uri())
    try:
        flavors = mlflow.models.Model.load(uri).flavors
    except (MlflowException, OSError) as error:
        raise UserError(f"{uri}: no such model in {tracking_uri()}: {' '.join(str(error).split())[:200]}") from None
    return dict(flavors.get("python_function", {}).get("config") or {})


def download_artifact(run_id: str, name: str, folder: Path) -> Path:
    """Fetch a file of a run into ``folder``.

    Raises:
        UserError: there is no such run or file.
    """
    try:
        return Path(open_client().download_artifacts(run_id, name, str(folder)))
    except (MlflowException, OSError) as error:
        raise UserError(
            f"{name}: not among the files of MLflow run {run_id}: {' '.join(str(error).split())[:200]}"
        ) from None


@dataclass(frozen=True)
class Registered:
    """A version of the registered model."""

    version: str
    run_id: str

    @property
    def uri(self) -> str:
        """Where `download_model` finds it."""
        return f"models:/{MODEL_NAME}/{self.version}"


def registered(alias: str) -> Registered | None:
    """The version that has an alias; None where there is none."""
    try:
        found = open_client().get_model_version_by_alias(MODEL_NAME, alias)
    except MlflowException:
        return None
    return Registered(str(found.version), str(found.run_id))


def history() -> list[dict[str, str]]:
    """The champions so far: ``version``, ``at`` and ``why``, the present one last."""
    try:
        tags = open_client().get_registered_model(MODEL_NAME).tags
    except MlflowException:
        return []
    champions: list[dict[str, str]] = json.loads(tags.get(_HISTORY, "[]"))
    return champions


def make_champion(version: str, why: str) -> None:
    """Give a version the alias `CHAMPION`, and note why."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    _set_champions([*history(), {"version": version, "at": now, "why": why}])
    note_decision(version, why, promoted=True)


def note_decision(version: str, why: str, *, promoted: bool) -> None:
    """Write on a version's page what was decided."""
    client = open_client()
    client.set_model_version_tag(MODEL_NAME, version, "promotion", "promoted" if promoted else "not promoted")
    client.set_model_version_tag(MODEL_NAME, version, "promotion_reasons", why[:_TAG_LENGTH])


def roll_back() -> tuple[str, str]:
    """Make the champion before this one the champion again; returns both versions, the former first.

    Raises:
        UserError: there is none before it.
    """
    champions = history()
    if len(champions) < 2:
        raise UserError(f"{MODEL_NAME}: has had {len(champions)} champions; there is none to go back to")
    dropped, back = champions[-1]["version"], champions[-2]["version"]
    _set_champions(champions[:-1])
    note_decision(dropped, f"rolled back to version {back}", promoted=False)
    return dropped, back


def _set_champions(champions: list[dict[str, str]]) -> None:
    client = open_client()
    # The history first: an alias that it does not know could not be rolled back.
    kept = champions[-_CHAMPIONS_KEPT:]
    client.set_registered_model_tag(MODEL_NAME, _HISTORY, json.dumps(kept))
    client.set_registered_model_alias(MODEL_NAME, CHAMPION, champions[-1]["version"])


def _signature() -> ModelSignature:
    inputs = [
        ColSpec(DataType.string, "dicom", required=False),
        ColSpec(Array(Array(DataType.long)), "image", required=False),
    ]
    outputs = [
        ColSpec(DataType.string, "PredictionString"),
        ColSpec(DataType.double, "image_score"),
        ColSpec(Array(Array(DataType.double)), "boxes"),
        ColSpec(Array(DataType.double), "scores"),
    ]
    return ModelSignature(Schema(inputs), Schema(outputs))  # type: ignore[arg-type]


def _pinned(packages: tuple[str, ...]) -> list[str]:
    pins = []
    for name in packages:
        try:
            # '2.9.0+cu128' names a build that the package index does not have.
            pins.append(f"{name}=={version(name).split('+')[0]}")
        except PackageNotFoundError:
            continue
    return pins
