"""Stage ``split``: the index of prepared studies -> which split each belongs to."""

import logging
from pathlib import Path

import pandas as pd

from pipeline.data.shards import read_index
from pipeline.data.splits import require_no_leak, split_studies
from pipeline.errors import UserError, run_main
from pipeline.files import write_text
from pipeline.params import Params, load_params
from pipeline.stages.preprocess import PREPARED

logger = logging.getLogger(__name__)

SPLITS_FILE = Path("data/splits.csv")


def split(params: Params, prepared: Path = PREPARED, target: Path = SPLITS_FILE) -> None:
    """Deal the prepared studies to train, val and test."""
    index = read_index(prepared)
    if (index["groupId"] == index["patientId"]).all():
        logger.warning("no patient_groups.csv: each image counts as its own patient, which may leak between splits")
    names = split_studies(index, params.split.fractions.model_dump(), params.seed)
    require_no_leak(index, names)
    write_text(target, pd.DataFrame({"patientId": index["patientId"], "split": names}).to_csv(index=False))
    logger.info("splits: %s", ", ".join(f"{name} {count}" for name, count in names.value_counts().items()))


def read_splits(path: Path, index: pd.DataFrame) -> pd.Series:
    """The split of each row of ``index``.

    Raises:
        UserError: the file is missing, or lacks a study.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; run `dvc repro split` first")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    splits = index["patientId"].map(dict(zip(table["patientId"], table["split"], strict=True)))
    if splits.isna().any():
        raise UserError(f"{path}: lacks study {index['patientId'][splits.isna()].iloc[0]}; run `dvc repro split`")
    return splits


def main() -> None:
    """Run the stage on ``params.yaml``."""
    split(load_params())


if __name__ == "__main__":
    run_main(main)
