"""The page of `pneumoflow labels-diff`: what changed between two versions of the labels, counted and drawn."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.data.geometry import xyxy
from pipeline.data.label_changes import KINDS, Change, Drawn, counts
from pipeline.dicom.radiograph import Radiograph
from pipeline.reports.drawing import data_uri, draw_captioned
from pipeline.reports.render import render

_SIDE = 420


def render_changes_page(
    changes: Sequence[Change], versions: tuple[str, str], images: Mapping[str, Radiograph], pictured: int
) -> str:
    """Render the page as HTML that needs no other file and no network.

    Args:
        changes: as `label_changes` returns them.
        versions: the names of the older and the newer version.
        images: the studies to draw, those that could be read.
        pictured: number of studies that were to be drawn.
    """
    of_study: dict[str, list[Change]] = {}
    for change in changes:
        of_study.setdefault(change.study, []).append(change)
    pictures = {key: picture(images[key], own) for key, own in of_study.items() if key in images}
    return render(
        "changes.html.jinja",
        studies=of_study,
        versions=versions,
        kinds=KINDS,
        counts=counts(changes),
        pictures=pictures,
        pictured=pictured,
    )


def picture(image: Radiograph, changes: Sequence[Change]) -> str:
    """Draw the boxes of the older version dashed and those of the newer one whole; return a data URI."""
    old, new = ([one for one in each if one] for each in zip(*((c.before, c.after) for c in changes), strict=True))
    drawn = draw_captioned(image.pixels, _boxes(new), [one.name for one in new], _boxes(old), [one.name for one in old],
                           _SIDE)  # fmt: skip
    return data_uri(drawn)


def _boxes(drawn: Sequence[Drawn]) -> np.ndarray:
    return xyxy(np.array([one.box for one in drawn], np.float64).reshape(-1, 4))
