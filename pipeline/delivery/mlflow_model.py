"""The detector as an MLflow pyfunc, in MLflow's "model from code" form, without any pickle.

Input: a column ``dicom`` of base64 DICOM files, or ``image``, rows of grey levels 0 to 255 (bright where
dense). Output per row: ``PredictionString`` (the challenge's ``confidence x y width height``, original
pixels), the same as ``boxes`` (xyxy) and ``scores``, and ``image_score``, the score of the best candidate.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.pyfunc import PythonModel

from pipeline.data.reader import Reader
from pipeline.delivery.predictor import Predictor
from pipeline.delivery.served import DICOM, IMAGE, RequestError, ServedModel
from pipeline.delivery.serving_limits import ServingLimits


class Refusal(MlflowException):
    """An error whose message cannot be changed: MLflow's server would otherwise prepend the request's content."""

    @property
    def message(self) -> str:
        """Return why the request is refused."""
        return str(self.args[0])

    @message.setter
    def message(self, text: str) -> None:
        """Ignore ``text``: the message stays as it is."""


class DetectorModel(PythonModel):
    """A model that reads DICOM files and detects lung opacities."""

    def load_context(self, context: Any) -> None:
        """Rebuild the model from the folder of artifacts; its configuration holds the `ServingLimits`."""
        limits = ServingLimits.model_validate(dict(context.model_config or {}))
        reader = Reader(limits.max_requests, limits.study_seconds)
        self._model = ServedModel(Predictor(Path(context.artifacts["model"])), reader, limits)
        self._turns = threading.BoundedSemaphore(limits.max_requests)

    def predict(
        self,
        context: Any,  # noqa: ARG002 - MLflow's signature
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Return the detections above the operating threshold.

        Raises:
            Refusal: INVALID_PARAMETER_VALUE (HTTP 400) for a column, row or file that cannot be used,
                TEMPORARILY_UNAVAILABLE (503) if other requests take too long.
        """
        if not self._turns.acquire(timeout=self._model.limits.request_seconds):
            raise Refusal("busy: too many requests wait already", TEMPORARILY_UNAVAILABLE)
        try:
            names = [name for name in (DICOM, IMAGE) if name in model_input]
            rows = model_input[names].to_dict("records")
            return pd.DataFrame(self._model.answer({name: _plain(row[name]) for name in names} for row in rows))
        except RequestError as error:
            raise Refusal(error.message, INVALID_PARAMETER_VALUE) from None
        finally:
            self._turns.release()


def _plain(value: Any) -> Any:
    """Return a cell as JSON has it: MLflow turns lists into arrays, and pandas missing values into NaN."""
    if isinstance(value, float) and np.isnan(value):
        return None
    if isinstance(value, (list, tuple, np.ndarray)):
        return [row.tolist() if isinstance(row, np.ndarray) else row for row in value]
    return value


set_model(DetectorModel())
