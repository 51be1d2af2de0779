"""Params -> the rules and the workers that prepare images; without torch."""

from pipeline.data.parallel import Workers
from pipeline.data.settings import Preprocessing
from pipeline.params import Params


def preprocessing_of(params: Params) -> Preprocessing:
    """Return the ``preprocess`` section in the form that the data path and the model take."""
    section = params.preprocess
    columns, rows = section.clahe.tile_grid_size
    return Preprocessing(section.image_size, section.clahe.clip_limit, (columns, rows), tuple(section.channels))


def workers_of(params: Params) -> Workers:
    """Return the workers that run the data path's jobs."""
    section = params.preprocess
    return Workers(section.workers, section.scheduler if section.executor == "dask" else "")
