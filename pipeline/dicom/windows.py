"""The window of a DICOM header (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""

import numpy as np
import numpy.typing as npt
import pydicom

from pipeline.dicom.header import numbers, optional

Floats = npt.NDArray[np.float64]


def apply_window(dataset: pydicom.Dataset, values: Floats) -> Floats | None:
    """Map values through the header's first valid window to the range 0 to 1; return None if there is none.

    A VOI LUT function that is empty or not in the standard means LINEAR. A window whose width the function
    does not allow is not valid.
    """
    name = str(optional(dataset, "VOILUTFunction") or "").strip().upper()
    narrowest = 1.0 if name not in ("LINEAR_EXACT", "SIGMOID") else np.nextafter(0, 1)
    for centre, width in zip(numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth"), strict=False):
        if width >= narrowest:
            return _seen(values, centre, width, name)
    return None


def _seen(values: Floats, centre: float, width: float, name: str) -> Floats:
    if name == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if name == "LINEAR_EXACT":
        return np.asarray(np.clip((values - centre) / width + 0.5, 0, 1))
    if width == 1:  # a threshold
        return np.asarray(values > centre - 0.5, np.float64)
    return np.asarray(np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1))
