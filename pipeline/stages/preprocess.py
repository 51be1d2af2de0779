"""Stage ``preprocess``: raw DICOM files -> uint8 image shards, their index and boxes, and a page about the data."""

import argparse
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import provenance
from pipeline.assembly.labels import label_rules_of
from pipeline.assembly.preprocessing import preprocessing_of, workers_of
from pipeline.data.annotations import BOX, Annotations
from pipeline.data.checks import Examination, Inventory, examine, require_few_problems, take_inventory
from pipeline.data.manifest import write_manifest
from pipeline.data.parallel import Workers, require_shared
from pipeline.data.prepared import BOXES, INDEX
from pipeline.data.prepared_tables import GIVEN_SPLIT, INDEX_COLUMNS
from pipeline.data.settings import Preprocessing
from pipeline.data.shards import ShardJob, ShardResult, Study, fit_boxes, preprocess_shards
from pipeline.errors import run_main
from pipeline.escaping import safe_table
from pipeline.files import directory_atomic, write_text
from pipeline.folder_lock import only_run_of
from pipeline.params import Params, load_params
from pipeline.paths import DATA_PAGE, PREPARED, QUARANTINE
from pipeline.reports.data_page import render_data_page

logger = logging.getLogger(__name__)

# The code that decides the contents of a shard: finished shards are reused only if it is unchanged.
_CODE = ("pipeline/data", "pipeline/dicom")


def preprocess(params: Params, prepared: Path = PREPARED, reports: Path = QUARANTINE.parent) -> None:
    """Prepare every usable study, list the others with their reasons, and draw a page about the data.

    Finished shards wait beside ``prepared`` until all are done, so that an interrupted run continues there.

    Raises:
        UserError: the data set is not in the challenge's layout, or too much of it is unusable;
            the former prepared data then stay unchanged.
    """
    # Headers are read here, because the workers of a cluster have not been asked yet whether they see the files.
    here = Workers(params.preprocess.workers)
    inventory = take_inventory(Path(params.data.dir), label_rules_of(params), here)
    workers = workers_of(params)
    waiting = prepared.with_name(f".{prepared.name}.parts")
    waiting.mkdir(parents=True, exist_ok=True)
    require_shared(workers, [Path(params.data.dir).absolute(), waiting.resolve()])
    jobs = _jobs(params, inventory, waiting)
    results = preprocess_shards(list(jobs.values()), workers, "Preprocessing")
    examination = examine(inventory, results, keep_lateral=params.data.lateral == "keep")
    write_text(reports / QUARANTINE.name, _quarantine_table(examination.problems))
    total = len(examination.annotations.studies)
    listed = f"all are listed in {reports / QUARANTINE.name}"
    require_few_problems(list(examination.problems.values()), total, params.data.max_bad_fraction, listed)
    with directory_atomic(prepared) as folder:
        _assemble(folder, jobs, results, examination)
    write_text(reports / DATA_PAGE.name, render_data_page(examination, params.data.study_seconds))
    shutil.rmtree(waiting)
    logger.info("prepared %d studies, quarantined %d", len(examination.rows), len(examination.problems))
    if examination.lateral:
        logger.info("set aside %d lateral views (data.lateral)", examination.lateral)


def _jobs(params: Params, inventory: Inventory, folder: Path) -> dict[int, ShardJob]:
    """Return a job per shard, by its number in the label table; a digest of all that decides it names its file."""
    settings, size = preprocessing_of(params), params.preprocess.shard_size
    shard_of = {key: number // size for number, key in enumerate(inventory.annotations.studies["patientId"])}
    shards: dict[int, list[Study]] = {}
    for study in inventory.studies:
        shards.setdefault(shard_of[study.patient_id], []).append(study)
    code = provenance.fingerprint({}, provenance.code_files(_CODE))
    # Absolute paths, because a worker on another machine has another working directory.
    return {
        number: ShardJob(
            folder.resolve() / f"{_key(code, settings, studies)}.npy",
            tuple(replace(study, path=study.path.absolute()) for study in studies),
            settings,
            params.data.study_seconds,
        )
        for number, studies in sorted(shards.items())
    }


def _key(code: str, settings: Preprocessing, studies: list[Study]) -> str:
    files = [(study.patient_id, study.path.stat().st_size, study.path.stat().st_mtime_ns) for study in studies]
    boxes = [study.boxes.tolist() for study in studies]
    return provenance.fingerprint({"code": code, "rules": repr(settings), "files": files, "boxes": boxes}, [])


def _assemble(folder: Path, jobs: dict[int, ShardJob], results: list[ShardResult], examination: Examination) -> None:
    names: dict[str, str] = {}
    for (number, job), result in zip(jobs.items(), results, strict=True):
        name = f"images-{number:05d}.npy"
        names |= {str(row["patientId"]): name for row in result.rows}
        if result.rows and job.target:
            _link(job.target, folder / name)
    index = (
        examination.rows.assign(shard=examination.rows["patientId"].map(names))
        if names
        else pd.DataFrame(columns=INDEX_COLUMNS)
    )
    columns = [*INDEX_COLUMNS, *({GIVEN_SPLIT} & set(index.columns))]
    safe_table(index[columns]).to_csv(folder / INDEX, index=False)
    _boxes(index, examination.annotations).to_csv(folder / BOXES, index=False)
    write_manifest(folder)


def _boxes(index: pd.DataFrame, annotations: Annotations) -> pd.DataFrame:
    """Return the boxes of the prepared studies, cut to their images; with their class, if there are several."""
    each = annotations.boxes_of(index["patientId"].to_list())
    sizes = zip(each, index["height"], index["width"], strict=True)
    inside = [fit_boxes(boxes, height, width) for boxes, height, width in sizes]
    table = pd.DataFrame(np.concatenate([np.zeros((0, 4)), *inside]), columns=BOX)
    table.insert(0, "patientId", index["patientId"].repeat([len(boxes) for boxes in inside]).to_numpy())
    if len(annotations.names) > 1:
        labels = np.concatenate([np.zeros(0, np.int64), *annotations.labels_of(index["patientId"].to_list())])
        table["class"] = [annotations.names[label] for label in labels]
    return table


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _quarantine_table(problems: dict[str, str]) -> str:
    table = pd.DataFrame({"patientId": list(problems), "reason": list(problems.values())})
    return safe_table(table.sort_values("patientId")).to_csv(index=False)


def main() -> None:
    """Run the stage on ``params.yaml``."""
    argparse.ArgumentParser(prog="python -m pipeline.stages.preprocess", description=__doc__).parse_args()
    params = load_params()
    with only_run_of("preprocess"):
        preprocess(params)


if __name__ == "__main__":
    run_main(main)
