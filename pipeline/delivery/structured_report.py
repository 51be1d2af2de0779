"""Detections as DICOM Structured Reports (TID 1500), which archives and viewers take back.

A report names the patient and the study of its image, as DICOM requires: it belongs in the place from which
the image came, and nowhere else.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from pipeline.delivery.batch import Study
from pipeline.delivery.incoming import read_regular
from pipeline.delivery.predictor import Prediction
from pipeline.delivery.report_header import report_header
from pipeline.delivery.writers import private_folder
from pipeline.dicom.header import read_header, transfer_syntax
from pipeline.dicom.pictures import is_picture
from pipeline.dicom.radiograph import OUR_NAME, TRANSFER_SYNTAXES
from pipeline.errors import BadStudyError
from pipeline.files import write_atomic

# Private codes, because none of the public vocabularies has one for 'an opacity that a reader would box'.
_SCHEME = "99PNEUMOFLOW"
_OPACITY = "lung opacity"


@contextmanager
def quiet_dicom() -> Iterator[None]:
    """Silence both libraries: they warn and log with the header's values, names and birth dates, in the text."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class ReportWriter:
    """A writer of a Comprehensive 3D SR for each study.

    Attributes:
        written: number of reports.
        problems: path -> reason of each study without a report. A reason names attributes, and quotes nothing of the
            header.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.written = 0
        self.problems: dict[Path, str] = {}

    def write(self, study: Study) -> None:
        """Write the report of a study, with or without findings; if it cannot be made, the batch goes on."""
        try:
            with reading_again(study) as image:
                report = make_report(image, study.prediction)
        except BadStudyError as error:
            self.problems[study.path] = str(error)
            return
        path = private_folder(self._folder) / f"{study.key}.dcm"
        with quiet_dicom():
            write_atomic(path, lambda new: report.save_as(new, enforce_file_format=True), private=True)
        self.written += 1


@contextmanager
def reading_again(study: Study) -> Iterator[pydicom.Dataset]:
    """Yield the data set of the study's file, for objects that are made from its header.

    Raises:
        BadStudyError: it is not a DICOM file, cannot be read, or has changed; or the block failed, whose libraries
            quote the header in their errors.
    """
    try:
        with quiet_dicom():
            content = read_regular(study.path)
            if is_picture(content):
                raise BadStudyError("a PNG or JPEG file has no header to make a report from")
            syntax = transfer_syntax(content)
            if syntax is not None and syntax not in TRANSFER_SYNTAXES:  # a deflated file would inflate without bound
                raise BadStudyError("the file has changed since it was read")
            image = read_header(content)
            if (image.Rows, image.Columns) != study.radiograph.levels.shape:
                raise BadStudyError("the file has changed since it was read")
            yield image
    except BadStudyError:
        raise
    except OSError as error:
        raise BadStudyError(f"the file cannot be read again ({error.strerror or type(error).__name__})") from None
    except Exception as error:  # noqa: BLE001 - parsers of hostile bytes fail in any way, and quote what they read
        raise BadStudyError(f"the header cannot be used ({type(error).__name__})") from None


def own_uid(image: pydicom.Dataset, prediction: Prediction, name: str) -> str:
    """Return a UID that is the same for the same image, prediction and name, and for nothing else."""
    scores = " ".join(f"{score:.6f}" for score in prediction.class_scores)
    sources = [str(image.SOPInstanceUID), *prediction.classes, prediction.text(), scores, name, version("pneumoflow")]
    return str(generate_uid(entropy_srcs=["pneumoflow", *sources]))


@quiet_dicom()
def make_report(image: pydicom.Dataset, prediction: Prediction) -> Any:
    """Make the report on the image with the header ``image``: the image's score, and each box with its own score.

    Raises:
        BadStudyError: the header does not identify its image.
    """
    header = report_header(image)
    me = hd.sr.DeviceObserverIdentifyingAttributes(uid=generate_uid(entropy_srcs=["pneumoflow"]), name="pneumoflow")
    observers = hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=me
        )
    )
    content = hd.sr.MeasurementReport(
        observation_context=observers,
        procedure_reported=_code("chest-radiograph", "Radiograph of the chest"),
        imaging_measurements=_findings(header, prediction),
        title=codes.DCM.ImagingMeasurementReport,
    )
    return hd.sr.Comprehensive3DSR(
        evidence=[header],
        content=content[0],
        series_number=9000,
        series_description="pneumoflow: lung opacities" if _is_opacity(prediction) else "pneumoflow: findings",
        series_instance_uid=own_uid(header, prediction, "series of the report"),
        sop_instance_uid=own_uid(header, prediction, "report"),
        instance_number=1,
        manufacturer=OUR_NAME,
        is_complete=True,
        is_verified=False,  # no person has looked at it
    )


def _findings(image: pydicom.Dataset, prediction: Prediction) -> list[Any]:
    source = hd.sr.SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID)
    findings = [_whole_image(image, prediction, label) for label in range(len(prediction.classes))]
    found = zip(prediction.boxes, prediction.scores, prediction.labels.tolist(), strict=True)
    for number, ((x0, y0, x1, y1), score, label) in enumerate(found, start=1):
        name = "Opacity" if _is_opacity(prediction) else _title(prediction, label)
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]])
        findings.append(
            hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=_tracked(image, prediction, f"{name} {number}"),
                referenced_region=hd.sr.ImageRegion(hd.sr.GraphicTypeValues.POLYLINE, corners, source),
                finding_type=_finding(prediction, label, there=True),
                measurements=[_score(score)],
            )
        )
    return findings


def _is_opacity(prediction: Prediction) -> bool:
    return prediction.classes == (_OPACITY,)


def _title(prediction: Prediction, label: int) -> str:
    name = prediction.classes[label]
    return name[:1].upper() + name[1:]


def _finding(prediction: Prediction, label: int, *, there: bool) -> Any:
    """Return the code of a class, or of its absence; a code has at most 16 characters, so it counts the classes."""
    name = prediction.classes[label]
    own = "lung-opacity" if _is_opacity(prediction) else f"class-{label + 1}"
    return _code(own, _title(prediction, label)) if there else _code(f"no-{own}", f"No {name} found"[:64])


def _whole_image(image: pydicom.Dataset, prediction: Prediction, label: int) -> Any:
    """Return the finding of a class on the whole image, which a report has even if nothing was found."""
    which = "" if len(prediction.classes) == 1 else f", {prediction.classes[label]}"
    source = hd.sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracked(image, prediction, f"Image{which}"),
        source_images=[source],
        finding_type=_finding(prediction, label, there=bool((prediction.labels == label).any())),
        measurements=[_score(prediction.class_scores[label])],
    )


def _tracked(image: pydicom.Dataset, prediction: Prediction, identifier: str) -> Any:
    return hd.sr.TrackingIdentifier(uid=own_uid(image, prediction, identifier), identifier=identifier)


def _score(value: float) -> Any:
    algorithm = hd.sr.AlgorithmIdentification(
        name="pneumoflow", version=version("pneumoflow"), family=codes.DCM.ArtificialIntelligence
    )
    name = _code("detection-score", "Detection score")
    return hd.sr.Measurement(name=name, value=round(float(value), 4), unit=codes.UCUM.NoUnits, algorithm_id=algorithm)


def _code(value: str, meaning: str) -> Any:
    return hd.sr.CodedConcept(value=value, scheme_designator=_SCHEME, meaning=meaning)
