"""The detector as an MLflow pyfunc, in MLflow's "model from code" form: no pickle anywhere.

Input: a column ``dicom`` of base64 DICOM files, or ``image``, rows of grey levels 0 to 255 (bright where
dense). Output per row: ``PredictionString`` (the challenge's ``confidence x y width height``, original
pixels), the same as ``boxes`` (xyxy) and ``scores``, and ``image_score``, that of the best candidate.
"""

import base64
import binascii
import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

from pipeline.data.dicom import MAX_FILE_BYTES, MAX_PIXELS, Radiograph, read_radiograph
from pipeline.delivery.predictor import Predictor
from pipeline.errors import BadStudyError
from pipeline.submission import prediction_string

MAX_ROWS = 64


class DetectorModel(PythonModel):
    """Reads DICOM files, detects lung opacities."""

    def load_context(self, context: Any) -> None:
        """Rebuild the model from the folder of artifacts."""
        self._predictor = Predictor(Path(context.artifacts["model"]))

    def predict(
        self,
        context: Any,  # noqa: ARG002 - MLflow's signature
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Detections above the operating threshold.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE (HTTP 400) for a column, row or file that
                cannot be used.
        """
        if not {"dicom", "image"} & set(model_input) or len(model_input) > MAX_ROWS:
            raise _bad_request(f"needs at most {MAX_ROWS} rows, a base64 file in column 'dicom' or pixels in 'image'")
        images = [_pixels(number, row) for number, row in enumerate(model_input.to_dict("records"))]
        predictions = [self._predictor.predict([image])[0] for image in images]
        return pd.DataFrame(
            {
                "PredictionString": [prediction_string(one.boxes, one.scores) for one in predictions],
                "image_score": [one.image_score for one in predictions],
                "boxes": [one.boxes.round(3).tolist() for one in predictions],
                "scores": [one.scores.round(6).tolist() for one in predictions],
            }
        )


def _pixels(number: int, row: dict[Hashable, Any]) -> npt.NDArray[np.uint8]:
    text, image = row.get("dicom"), row.get("image")
    if (text is None) == (image is None):
        raise _bad_request(f"row {number}: needs either 'dicom' or 'image'")
    return _decode(number, text).pixels if image is None else _image(number, image)


def _image(number: int, rows: Any) -> npt.NDArray[np.uint8]:
    """Rows of grey levels as an image."""
    try:
        levels = np.array([np.asarray(row, np.int64) for row in rows])
    except (ValueError, TypeError, OverflowError):
        raise _bad_request(f"row {number}: 'image' must be rows of as many whole numbers each") from None
    if levels.ndim != 2 or not levels.size or levels.size > MAX_PIXELS:
        raise _bad_request(f"row {number}: 'image' is {levels.shape}; needs 1 to {MAX_PIXELS} pixels in two dimensions")
    if levels.min() < 0 or levels.max() > 255:
        raise _bad_request(f"row {number}: grey levels {levels.min()} to {levels.max()}; must be 0 to 255")
    return levels.astype(np.uint8)


def _decode(number: int, text: object) -> Radiograph:
    try:
        content = base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError):
        raise _bad_request(f"row {number}: 'dicom' is not base64") from None
    if len(content) > MAX_FILE_BYTES:
        raise _bad_request(f"row {number}: {len(content)} bytes; at most {MAX_FILE_BYTES} are accepted")
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        file.write(content)
        file.flush()
        try:
            return read_radiograph(Path(file.name))
        except BadStudyError as error:
            raise _bad_request(f"row {number}: {error}") from None


def _bad_request(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


set_model(DetectorModel())
