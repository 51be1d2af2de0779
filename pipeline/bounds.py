"""Types and bounds of the values that a file may set, declared once for ``params.yaml`` and ``model.json``."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

# allow_inf_nan: YAML and JSON can express numbers that no rule here intends (.nan, Infinity).
CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False)

Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Workers = Annotated[int, Field(ge=0, le=256)]


def each_once(values: Sequence[str]) -> Sequence[str]:
    """Return the values; raise a `ValueError` if one occurs twice."""
    if len(set(values)) < len(values):
        raise ValueError("each channel once")
    return values


# Preprocessing of a radiograph into the model's input.
# Below 128 px, level P6 is a single cell, on which oneDNN's bf16 gradient of the kernel is not a number.
ImageSize = Annotated[int, Field(ge=128, le=4096, multiple_of=64)]
# OpenCV converts the limit into an integer count of pixels; a larger limit has no effect, or overflows.
ClipLimit = Annotated[float, Field(ge=0, le=1000)]
Tiles = Annotated[int, Field(ge=1, le=64)]
Channel = Literal["clahe", "raw"]
EachOnce = AfterValidator(each_once)

# The network. Only a plain timm name is allowed, because timm also accepts a model's address and downloads it.
BackboneName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,80}(\.[A-Za-z0-9_]{1,80})?$")]
Norm = Literal["group", "frozen_batch"]
FpnChannels = Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
P6Source = Literal["p5", "c5"]
HeadConvs = Annotated[int, Field(ge=1, le=8)]
HeadNorm = Literal["none", "group"]
# Within these bounds every anchor has an area after its corners are rounded to whole pixels.
SCALE_BOUNDS, RATIO_BOUNDS = (0.25, 64.0), (0.1, 10.0)
AnchorScale = Annotated[float, Field(ge=SCALE_BOUNDS[0], le=SCALE_BOUNDS[1])]
AnchorRatio = Annotated[float, Field(ge=RATIO_BOUNDS[0], le=RATIO_BOUNDS[1])]
MAX_SHAPES = 64

# Post-processing: the rules by which a box counts as a detection.
DetectionsPerImage = Annotated[int, Field(ge=1, le=1000)]
TopCandidates = Annotated[int, Field(ge=1, le=10_000)]
Suppression = Literal["nms", "soft_nms", "weighted_fusion"]
# A smaller sigma can be 0 in float32; the score of boxes that do not overlap is then 0 / 0.
SoftNmsSigma = Annotated[float, Field(ge=0.001, le=1000)]
BoxShrink = Annotated[float, Field(ge=0, lt=1)]
