"""The interface to MLflow; besides ``delivery``, only this package imports it.

It covers MLflow's store (`place`, `database`, `store`, `locations`), requests to it (`asking`) and the caller's
`rights`, a run and its notes (`run`, `heartbeat`, `system_metrics`), a run that holds others (`parent_run`), delivery
by way of the disk (`outbox`, `uploader`), copies of checkpoints (`checkpoint_store`), and registered models
(`registry`, `versions`, `champions`, `lease`); `model_cache` keeps the models in use on this disk.
"""

from pipeline.tracking.champions import (
    ChampionChangedError,
    ChampionGoneError,
    make_champion,
    note_decision,
    registered_champion,
    roll_back,
)
from pipeline.tracking.checkpoint_store import TRAINING, copied_checkpoints, fetch_copies, find_copies
from pipeline.tracking.database import make_database
from pipeline.tracking.datasets import DataVersion
from pipeline.tracking.locations import relocate
from pipeline.tracking.model_cache import download_model
from pipeline.tracking.parent_run import PARENT, ParentRun, parent_run
from pipeline.tracking.place import shown_uri, tracking_uri
from pipeline.tracking.registry import (
    LoggedModel,
    download_artifact,
    log_artifact,
    log_model,
    read_tags,
    require_registry,
    serving_config,
)
from pipeline.tracking.rights import require_rights
from pipeline.tracking.run import FINAL, TrackedRun, tracked_run
from pipeline.tracking.store import open_client, open_experiment, pages_of, run_place
from pipeline.tracking.uploader import sync_left_behind
from pipeline.tracking.versions import (
    CHALLENGER,
    CHAMPION,
    MODEL_NAME,
    Identity,
    Registered,
    find_version,
    resolve_version,
)

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "FINAL",
    "MODEL_NAME",
    "PARENT",
    "TRAINING",
    "ChampionChangedError",
    "ChampionGoneError",
    "DataVersion",
    "Identity",
    "LoggedModel",
    "ParentRun",
    "Registered",
    "TrackedRun",
    "copied_checkpoints",
    "download_artifact",
    "download_model",
    "fetch_copies",
    "find_copies",
    "find_version",
    "log_artifact",
    "log_model",
    "make_champion",
    "make_database",
    "note_decision",
    "open_client",
    "open_experiment",
    "pages_of",
    "parent_run",
    "read_tags",
    "registered_champion",
    "relocate",
    "require_registry",
    "require_rights",
    "resolve_version",
    "roll_back",
    "run_place",
    "serving_config",
    "shown_uri",
    "sync_left_behind",
    "tracked_run",
    "tracking_uri",
]  # fmt: skip
