"""The id of a training's MLflow run, and the run's tags for data and code. This module imports no PyTorch."""

import os
import re
from pathlib import Path

from pipeline import provenance
from pipeline.documents import read_json_object, shown
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.tracking import DataVersion

_RUN_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")


def read_run_id(path: Path) -> str:
    """Return the id of the MLflow run that a file names.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file names no run.
    """
    run_id = read_json_object(path).get("run_id")
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
        raise UserError(f"{path}: run_id = {shown(run_id)}: must be the id of an MLflow run")
    return run_id


def data_version(params: Params) -> DataVersion:
    """Return the version of the raw data that DVC has recorded."""
    raw = params.data.dir
    return DataVersion(Path(raw).name, provenance.input_hashes(raw).get(raw, ""), raw)


def run_tags(params: Params) -> dict[str, str]:
    """Return tags for the code, the data and the flow run that made the run."""
    raw = params.data.dir
    hashes = provenance.input_hashes(raw)
    # MLflow refuses keys that begin with a slash or contain `..`.
    outside = Path(raw).is_absolute() or ".." in Path(raw).parts
    tags = provenance.git_state()
    tags |= {"dvc.raw_data" if path == raw and outside else f"dvc.{path}": value for path, value in hashes.items()}
    if flow_run := os.environ.get("PNEUMOFLOW_FLOW_RUN_ID"):
        tags["prefect_flow_run_id"] = flow_run
    return tags | {"mlflow.source.name": "pipeline.stages.train"}
