"""The table of the studies that a model was validated on; new studies are compared with it."""

from collections.abc import Sequence

import pandas as pd

from pipeline.assembly.inputs import SplitData
from pipeline.assembly.originals import read_originals
from pipeline.data.image_statistics import grey_features
from pipeline.metrics.results import ImageResult
from pipeline.params import Params

# More studies would not improve the statistics, and each one must be decoded.
_MOST = 2000
COLUMNS = ("view", "grey_mean", "grey_std", "image_score", "findings")


def reference_table(params: Params, val: SplitData, results: Sequence[ImageResult], threshold: float) -> pd.DataFrame:
    """Tabulate the facts of val's studies that new ones have too: view, grey levels, and the model's findings."""
    rows = []
    studies = val.index.iloc[:_MOST]
    radiographs = read_originals(params, studies["patientId"])
    for radiograph, view, result in zip(radiographs, studies["view"], results, strict=False):
        mean, std = grey_features(radiograph.pixels)
        scores = result.scores
        best = float(scores[0]) if len(scores) else 0.0
        rows.append((view, round(mean, 3), round(std, 3), round(best, 6), int((scores > threshold).sum())))
    return pd.DataFrame(rows, columns=COLUMNS)
