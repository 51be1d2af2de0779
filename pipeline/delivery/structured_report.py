"""Detections as DICOM Structured Reports (TID 1500), which archives and viewers take back.

A report names the patient and the study of its image, as DICOM requires: it belongs where the image
came from, and nowhere else.
"""

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import highdicom as hd
import numpy as np
import pydicom
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from pipeline.delivery.predictor import Prediction
from pipeline.files import write_atomic

if TYPE_CHECKING:
    from pipeline.delivery.batch import Study

# Private codes: none of the public vocabularies has one for 'an opacity that a reader would box'.
_SCHEME = "99PNEUMOFLOW"


class ReportWriter:
    """A Comprehensive 3D SR for each study."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, study: "Study") -> None:
        """Write the report of a study, with or without findings."""
        image = pydicom.dcmread(study.path, stop_before_pixels=True)
        with warnings.catch_warnings():
            # Names without a caret, as in de-identified files: they are copied, not made here.
            warnings.filterwarnings("ignore", "The string .* is unlikely to represent", UserWarning)
            report = make_report(image, study.prediction)
        write_atomic(self._folder / f"{study.key}.dcm", lambda path: report.save_as(path, enforce_file_format=True))


def make_report(image: pydicom.Dataset, prediction: Prediction) -> Any:
    """The report on one image, of which ``image`` is the header: its score, and each box with its own."""
    _complete(image)
    me = hd.sr.DeviceObserverIdentifyingAttributes(uid=generate_uid(entropy_srcs=["pneumoflow"]), name="pneumoflow")
    observers = hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=me
        )
    )
    content = hd.sr.MeasurementReport(
        observation_context=observers,
        procedure_reported=_code("chest-radiograph", "Radiograph of the chest"),
        imaging_measurements=_findings(image, prediction),
        title=codes.DCM.ImagingMeasurementReport,
    )
    return hd.sr.Comprehensive3DSR(
        evidence=[image],
        content=content[0],
        series_number=9000,
        series_description="pneumoflow: lung opacities",
        series_instance_uid=generate_uid(),
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="pneumoflow",
        is_complete=True,
        is_verified=False,  # nobody has looked at it
    )


def _findings(image: pydicom.Dataset, prediction: Prediction) -> list[Any]:
    source = hd.sr.SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID)
    found = [_whole_image(image, prediction)]
    for number, ((x0, y0, x1, y1), score) in enumerate(zip(prediction.boxes, prediction.scores, strict=True), start=1):
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]])
        found.append(
            hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=hd.sr.TrackingIdentifier(uid=generate_uid(), identifier=f"Opacity {number}"),
                referenced_region=hd.sr.ImageRegion(hd.sr.GraphicTypeValues.POLYLINE, corners, source),
                finding_type=_code("lung-opacity", "Lung opacity"),
                measurements=[_score(score)],
            )
        )
    return found


def _whole_image(image: pydicom.Dataset, prediction: Prediction) -> Any:
    """What a report has also where nothing was found."""
    names = ("lung-opacity", "Lung opacity") if len(prediction.scores) else ("no-lung-opacity", "No lung opacity found")
    source = hd.sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=generate_uid(), identifier="Image"),
        source_images=[source],
        finding_type=_code(*names),
        measurements=[_score(prediction.image_score)],
    )


def _score(value: float) -> Any:
    algorithm = hd.sr.AlgorithmIdentification(
        name="pneumoflow", version=version("pneumoflow"), family=codes.DCM.ArtificialIntelligence
    )
    name = _code("detection-score", "Detection score")
    return hd.sr.Measurement(name=name, value=round(float(value), 4), unit=codes.UCUM.NoUnits, algorithm_id=algorithm)


def _complete(image: pydicom.Dataset) -> None:
    """Attributes that a report copies, and that a file may lack: empty is allowed, absent is not."""
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber",
                    "StudyDate", "StudyTime", "ReferringPhysicianName"):  # fmt: skip
        if keyword not in image:
            setattr(image, keyword, "")
    age = str(image.get("PatientAge", ""))
    if age.isdigit() and len(age) < 4:  # as in the RSNA challenge's files: years, without the unit that DICOM asks for
        image.PatientAge = f"{int(age):03d}Y"


def _code(value: str, meaning: str) -> Any:
    return hd.sr.CodedConcept(value=value, scheme_designator=_SCHEME, meaning=meaning)
