"""Models in MLflow's registry."""

import base64
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlflow
import mlflow.pyfunc
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from pipeline.errors import UserError
from pipeline.tracking.store import open_client, tracking_uri

MODEL_NAME = "rsna-retinanet"
CHALLENGER = "challenger"
# What the served model needs; the tracking server's machine has no training environment.
_SERVING_PACKAGES = (
    "mlflow", "numpy", "opencv-python-headless", "pandas", "pydantic", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg", "safetensors", "timm", "torch", "torchvision",
)  # fmt: skip
_MODEL_DESCRIPTION = (
    "Boxes lung opacities on frontal chest radiographs. Takes DICOM files (base64, column `dicom`);"
    " answers with boxes in pixels of the original image, in the RSNA challenge's format, and an image score."
)


def log_model(
    run_id: str, folder: Path, metrics: Mapping[str, float | None], step: int, example: bytes, description: str
) -> str:
    """Log and register the model in ``folder`` as a pyfunc of the run; returns its URI.

    ``metrics`` are logged at ``step`` for the run and the model. ``example`` is a DICOM file
    that shows what the model takes; it is stored beside it. ``description`` (Markdown) goes to
    the registered version.
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
        )
        known = {key: value for key, value in metrics.items() if value is not None}
        mlflow.log_metrics(known, step=step, model_id=info.model_id)
    if info.registered_model_version is not None:
        version_number = str(info.registered_model_version)
        client = open_client()
        client.update_registered_model(MODEL_NAME, _MODEL_DESCRIPTION)
        client.update_model_version(MODEL_NAME, version_number, description)
        client.set_registered_model_alias(MODEL_NAME, CHALLENGER, version_number)
    return str(info.model_uri)


def download_model(uri: str) -> Path:
    """Fetch the model folder (weights and configuration) of a run's or a registered model.

    Raises:
        UserError: there is no such model.
    """
    mlflow.set_tracking_uri(tracking_uri())
    try:
        local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=tempfile.mkdtemp(prefix="pneumoflow-")))
    except (MlflowException, OSError) as error:
        raise UserError(f"{uri}: no such model in {tracking_uri()}: {' '.join(str(error).split())[:200]}") from None
    found = sorted(local.rglob("model.json"))
    if not found:
        raise UserError(f"{uri}: not a model of this pipeline; it has no model.json")
    return found[0].parent


def _signature() -> ModelSignature:
    outputs = Schema([ColSpec(DataType.string, "PredictionString"), ColSpec(DataType.double, "image_score")])
    return ModelSignature(Schema([ColSpec(DataType.string, "dicom")]), outputs)


def _pinned(packages: tuple[str, ...]) -> list[str]:
    pins = []
    for name in packages:
        try:
            # '2.9.0+cu128' names a build that the package index does not have.
            pins.append(f"{name}=={version(name).split('+')[0]}")
        except PackageNotFoundError:
            continue
    return pins
