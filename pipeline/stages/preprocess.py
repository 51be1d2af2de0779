"""Stage ``preprocess``: raw DICOM files -> uint8 image shards, their index and boxes."""

import logging
from pathlib import Path

import pandas as pd

from pipeline.data.annotations import BOX
from pipeline.data.checks import Inventory, require_few_problems, take_inventory
from pipeline.data.clahe import Preparation
from pipeline.data.parallel import map_parallel
from pipeline.data.shards import BOXES, INDEX, ShardJob, Study, write_shard
from pipeline.errors import run_main
from pipeline.files import directory_atomic, write_text
from pipeline.params import Params, load_params

logger = logging.getLogger(__name__)

PREPARED = Path("data/prepared")
QUARANTINE = Path("reports/quarantine.csv")


def preprocess(params: Params, prepared: Path = PREPARED, quarantine: Path = QUARANTINE) -> None:
    """Prepare every usable study and list the others with their reasons.

    Raises:
        UserError: the data set is not in the challenge's layout, or too much of it is unusable;
            the former prepared data then stay as they were.
    """
    inventory = take_inventory(Path(params.data.dir))
    with directory_atomic(prepared) as folder:
        results = map_parallel(
            write_shard, _jobs(params, inventory, folder), params.preprocess.workers, "Preprocessing"
        )
        rows = pd.DataFrame([row for result in results for row in result.rows])
        problems = dict(inventory.problems)
        for result in results:
            problems |= result.problems
        write_text(quarantine, _quarantine_table(problems))
        total = len(inventory.annotations.studies)
        require_few_problems(problems.values(), total, params.data.max_bad_fraction, f"all are listed in {quarantine}")
        index = rows.merge(inventory.annotations.studies, on="patientId", validate="one_to_one")
        index.to_csv(folder / INDEX, index=False)
        boxes = inventory.annotations.boxes
        boxes[boxes["patientId"].isin(index["patientId"])][["patientId", *BOX]].to_csv(folder / BOXES, index=False)
    logger.info("prepared %d studies, quarantined %d", len(index), len(problems))


def _jobs(params: Params, inventory: Inventory, folder: Path) -> list[ShardJob]:
    rules, size = preparation(params), params.preprocess.shard_size
    place = {key: number // size for number, key in enumerate(inventory.annotations.studies["patientId"])}
    shards: dict[int, list[Study]] = {}
    for study in inventory.studies:
        shards.setdefault(place[study.patient_id], []).append(study)
    return [
        ShardJob(folder / f"images-{number:05d}.npy", tuple(studies), rules)
        for number, studies in sorted(shards.items())
    ]


def preparation(params: Params) -> Preparation:
    """The ``preprocess`` section as the data path and the model take it."""
    section = params.preprocess
    columns, rows = section.clahe.tile_grid_size
    return Preparation(section.image_size, section.clahe.clip_limit, (columns, rows), tuple(section.channels))


def _quarantine_table(problems: dict[str, str]) -> str:
    table = pd.DataFrame({"patientId": list(problems), "reason": list(problems.values())})
    return table.sort_values("patientId").to_csv(index=False)


def main() -> None:
    """Run the stage on ``params.yaml``."""
    preprocess(load_params())


if __name__ == "__main__":
    run_main(main)
