"""The table of the studies that a model was validated on; new studies are compared with it."""

from collections.abc import Sequence

import pandas as pd

from pipeline.assembly.inputs import SplitData
from pipeline.assembly.originals import read_originals
from pipeline.data.image_statistics import grey_features
from pipeline.delivery.model_config import ModelConfig
from pipeline.metrics.calibration import image_probabilities_of
from pipeline.metrics.results import ImageResult, reported
from pipeline.params import Params

# More studies would not improve the statistics, and each one must be decoded.
_MOST = 2000
COLUMNS = ("view", "grey_mean", "grey_std", "image_score", "findings")


def reference_table(
    params: Params, data: SplitData, results: Sequence[ImageResult], config: ModelConfig
) -> pd.DataFrame:
    """Tabulate the facts of a split's studies that new ones have too: view, grey levels, and the model's findings."""
    rows = []
    studies = data.index.iloc[:_MOST]
    radiographs = read_originals(params, studies["patientId"])
    probabilities = [image_probabilities_of(result, config.calibrations).max() for result in results]
    for radiograph, view, result, best in zip(radiographs, studies["view"], results, probabilities, strict=False):
        mean, std = grey_features(radiograph.pixels)
        findings = int(reported(result, config.thresholds).sum())
        rows.append((view, round(mean, 3), round(std, 3), round(float(best), 6), findings))
    return pd.DataFrame(rows, columns=COLUMNS)
