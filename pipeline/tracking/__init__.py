"""MLflow: the one package, besides ``delivery``, that imports it.

Its store (`store`), a run and what it notes (`run`), one that holds others (`group`), the way there
over a disk (`spool`, `courier`), and registered models (`registry`).
"""

from pipeline.tracking.courier import sync_left_behind
from pipeline.tracking.datasets import DataVersion
from pipeline.tracking.group import PARENT, RunGroup, run_group
from pipeline.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    MODEL_NAME,
    Registered,
    download_artifact,
    download_model,
    log_model,
    make_champion,
    note_decision,
    registered,
    roll_back,
    serving_config,
)
from pipeline.tracking.run import TrackedRun, tracked_run
from pipeline.tracking.store import run_place, tracking_uri

__all__ = [
    "CHALLENGER", "CHAMPION", "MODEL_NAME", "PARENT", "DataVersion", "Registered", "RunGroup", "TrackedRun",
    "download_artifact", "download_model", "log_model", "make_champion", "note_decision", "registered",
    "roll_back", "run_group", "run_place", "serving_config", "sync_left_behind", "tracked_run", "tracking_uri",
]  # fmt: skip
