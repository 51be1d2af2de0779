"""Answers to an archive: for each study a Structured Report, a picture with the boxes, and a presentation state.

Many viewers do not draw the boxes of a report. They show the picture (Secondary Capture), or the image under the
presentation state (GSPS). Like reports, all of these name the patient, and belong where the image came from.
"""

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import highdicom as hd
import numpy as np
import pydicom

from pipeline.delivery.batch import Study
from pipeline.delivery.predictor import Prediction
from pipeline.delivery.report_header import report_header
from pipeline.delivery.structured_report import make_report, own_uid, quiet_dicom, reading_again
from pipeline.delivery.writers import PICTURE_SIDE, private_folder
from pipeline.dicom.header import numbers, optional
from pipeline.dicom.radiograph import OUR_NAME
from pipeline.errors import BadStudyError
from pipeline.escaping import printable
from pipeline.files import directory_atomic
from pipeline.reports.drawing import captions, draw_boxes

logger = logging.getLogger(__name__)

ANSWERS = "answers"
WAITING, SENT = "waiting", "sent"
_SERIES = {"report": 9000, "picture": 9001, "marks": 9002}


class AnswerWriter:
    """Writes the objects of each study into a folder of its own below ``folder/waiting``, once."""

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)

    def write(self, study: Study, key: str) -> None:
        """Write the answer to a study under the name ``key``; a study without a usable header gets none, and a line."""
        if (self._folder / WAITING / key).exists() or (self._folder / SENT / key).exists():
            return
        try:
            with reading_again(study) as image:
                objects = make_answer(image, study)
        except BadStudyError as error:
            logger.warning("no answer to %s: %s", printable(study.path), error)
            return
        with directory_atomic(private_folder(self._folder / WAITING) / key) as made, quiet_dicom():
            for name, dataset in objects.items():
                dataset.save_as(made / f"{name}.dcm", enforce_file_format=True)


def make_answer(image: pydicom.Dataset, study: Study) -> dict[str, Any]:
    """Return the objects about an image by name: ``report``, ``picture``, and ``marks`` for an image without colours.

    Raises:
        BadStudyError: the header does not identify its image.
    """
    found = {"report": make_report(image, study.prediction), "picture": make_picture(image, study)}
    if image.SamplesPerPixel == 1:
        found["marks"] = make_marks(image, study.prediction)
    return found


def _identity(header: pydicom.Dataset, prediction: Prediction, name: str) -> dict[str, Any]:
    return {
        "series_instance_uid": own_uid(header, prediction, f"series of the {name}"),
        "sop_instance_uid": own_uid(header, prediction, name),
        "series_number": _SERIES[name],
        "instance_number": 1,
        "manufacturer": OUR_NAME,
    }


def make_picture(image: pydicom.Dataset, study: Study) -> Any:
    """Return the image with its detections drawn, as a Secondary Capture of at most 768 pixels."""
    pixels, prediction, header = study.radiograph.pixels, study.prediction, report_header(image)
    side = min(max(pixels.shape), PICTURE_SIDE)
    drawn = draw_boxes(
        pixels, prediction.boxes, prediction.scores, [], side, captions(prediction.labels, prediction.classes)
    )
    made = hd.sc.SCImage.from_ref_dataset(
        header,
        pixel_array=np.ascontiguousarray(cv2.cvtColor(drawn, cv2.COLOR_BGR2RGB)),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        transfer_syntax_uid=str(pydicom.uid.ExplicitVRLittleEndian),
        series_description="pneumoflow: image with boxes, not verified",
        **_identity(header, prediction, "picture"),
    )
    made.BodyPartExamined = "CHEST"  # a part that is not one of a pair needs no side
    made.BurnedInAnnotation = "NO"  # boxes and scores, no person
    made.DerivationDescription = f"Detections of pneumoflow {version('pneumoflow')}, not verified by a person"
    return made


def make_marks(image: pydicom.Dataset, prediction: Prediction) -> Any:
    """Return a presentation state that draws the detections on the image, with its score beside each."""
    header = report_header(image)
    for keyword in ("Rows", "Columns", "SamplesPerPixel"):
        setattr(header, keyword, int(image[keyword].value))
    layer = hd.pr.GraphicLayer("DETECTIONS", 1, description="Detections, not verified")
    boxes, texts = [], []
    names = captions(prediction.labels, prediction.classes)
    for (x0, y0, x1, y1), score, name in zip(prediction.boxes, prediction.scores, names, strict=True):
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]])
        boxes.append(hd.pr.GraphicObject("POLYLINE", corners, "PIXEL"))
        text = f"{name} {score:.2f}".strip()
        texts.append(hd.pr.TextObject(text, "PIXEL", anchor_point=(float(x0), float(y0)), anchor_point_visible=False))
    note = hd.pr.GraphicAnnotation([header], layer, graphic_objects=boxes, text_objects=texts) if boxes else None
    made = hd.pr.GrayscaleSoftcopyPresentationState(
        [header],
        manufacturer_model_name="pneumoflow",
        software_versions=version("pneumoflow"),
        device_serial_number="1",
        content_label="DETECTIONS",
        content_description="Detections of pneumoflow, not verified",
        graphic_layers=[layer] if note else None,
        graphic_annotations=[note] if note else None,
        voi_lut_transformations=_window(image),
        presentation_lut_transformation=hd.PresentationLUTTransformation(
            presentation_lut_shape="INVERSE" if str(image.PhotometricInterpretation) == "MONOCHROME1" else "IDENTITY"
        ),
        series_description="pneumoflow: boxes over the image, not verified",
        **_identity(header, prediction, "marks"),
    )
    made.BodyPartExamined = "CHEST"
    return made


def _window(image: pydicom.Dataset) -> Any:
    """Return the header's first window, if it can be used, so that the image looks as it does without the state."""
    centres, widths = numbers(image, "WindowCenter"), numbers(image, "WindowWidth")
    if not centres or not widths or widths[0] < 1 or optional(image, "VOILUTFunction") not in (None, "LINEAR"):
        return None
    return [hd.pr.SoftcopyVOILUTTransformation(window_center=centres[0], window_width=widths[0])]
