"""Rendering of a data set with synthetic pixels in the challenge's format.

Box geometry, counts, views, sexes, ages and patients follow the challenge's published figures.
"""

import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEGBaseline8Bit

from pipeline.data import annotations as tables
from pipeline.data.parallel import Workers, map_jobs
from pipeline.errors import UserError
from pipeline.sources.phantom import draw_anatomy, render_study
from pipeline.tables import table_exists

CHALLENGE_SIZE = 1024
JPEG_QUALITY = 75

# Quantiles of sqrt(width * height) in 1024ths of the image side; the values outside p5..p95 are extrapolated.
_SIZE_QUANTILES = ((0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0), (85, 131, 194, 255, 326, 425, 490))
_BOX_COUNTS = ((1, 2, 3, 4), np.array([2614, 3266, 119, 13]) / 6012)
_NOT_NORMAL_SHARE = 11821 / (11821 + 8851)
# P(view AP) with and without an opacity: 0.383 of the AP images and 0.093 of the PA images have one.
_AP_SHARE = {True: 12173 * 0.383 / 6012, False: 12173 * 0.617 / (26684 - 6012)}
_MALE_SHARE = 15166 / 26684
_SINGLE_SHARE = 1 - 4355 / 11452  # share of the patients with one image
_LARGEST_OVERLAP = 0.055
_FINDINGS = ("heart", "effusion", "line")


@dataclass(frozen=True)
class SampleStudy:
    """One study to render; ``boxes`` are x, y, width, height in pixels of the image."""

    number: int
    patient_id: str
    boxes: np.ndarray
    image_class: str
    view: str
    patient_seed: int
    study_seed: int


@dataclass(frozen=True)
class _RenderJob:
    study: SampleStudy
    folder: Path
    size: int


def make_sample(
    out: Path, *, studies: int, size: int, seed: int, opacity_fraction: float, labels: Path | None, workers: int
) -> int:
    """Render a data set into ``out`` and return the number of studies.

    Args:
        out: a folder that does not exist or is empty.
        studies: number of studies to draw; ignored if ``labels`` is given.
        size: side of the images in pixels.
        seed: seed of everything that is drawn at random.
        opacity_fraction: share of studies with boxes; ignored if ``labels`` is given.
        labels: a label table in the challenge's format (1024 pixels) to render pixels for; class
            and group tables beside it are used too.
        workers: number of processes; 0 means one per core.

    Raises:
        UserError: ``out`` is not empty, ``labels`` is not usable, or a process died.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: has contents; give a new or an empty folder")
    if labels is None:
        drawn = _draw_tables(studies, size, seed, opacity_fraction)
    else:
        drawn = _tables_from_labels(labels, size, seed)
    (out / tables.IMAGES).mkdir(parents=True, exist_ok=True)
    plan = _plan(drawn, seed)
    jobs = [_RenderJob(study, out / tables.IMAGES, size) for study in plan]
    rendered = (
        [_render(job) for job in jobs] if workers == 1 else map_jobs(_render, jobs, Workers(workers), "Rendering")
    )
    for study, done in zip(plan, rendered, strict=True):
        if done is None:
            raise UserError(f"{out}: a process died while it rendered {study.patient_id}")
    _write_tables(out, drawn)
    return len(plan)


def example_dicom() -> bytes:
    """Return one synthetic study as a DICOM file: an example that shows no patient."""
    boxes = draw_boxes(CHALLENGE_SIZE // 2, np.random.default_rng(0))
    study = SampleStudy(0, "example", boxes, tables.OPACITY, "PA", 0, 0)
    with tempfile.TemporaryDirectory() as folder:
        _render(_RenderJob(study, Path(folder), CHALLENGE_SIZE // 2))
        return (Path(folder) / "example.dcm").read_bytes()


def _draw_tables(count: int, size: int, seed: int, opacity_fraction: float) -> tables.Annotations:
    rng = np.random.default_rng([seed, 0])
    ids = [str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(count)]
    targets = rng.permutation(np.arange(count) < round(count * opacity_fraction)).astype(int)
    other = np.where(rng.random(count) < _NOT_NORMAL_SHARE, tables.NOT_NORMAL, tables.NORMAL)
    rows = [
        (key, *box)
        for key, target in zip(ids, targets, strict=True)
        if target
        for box in draw_boxes(size, rng).tolist()
    ]
    studies = pd.DataFrame({"patientId": ids, "groupId": _draw_groups(count, rng)})
    studies["class"] = np.where(targets == 1, tables.OPACITY, other)
    studies["target"] = targets
    return tables.Annotations(studies, pd.DataFrame(rows, columns=["patientId", *tables.BOX]), [], True)


def _tables_from_labels(labels: Path, size: int, seed: int) -> tables.Annotations:
    given = tables.read_annotations(labels.parent, labels)
    if given.problems:
        key, reason = next(iter(given.problems.items()))
        raise UserError(f"{labels}: {key}: {reason}")
    given.boxes[tables.BOX] = (given.boxes[tables.BOX] * (size / CHALLENGE_SIZE)).round().astype(int)
    if not table_exists(labels.parent / tables.CLASSES):
        normal = np.random.default_rng([seed, 1]).random(len(given.studies)) >= _NOT_NORMAL_SHARE
        other = np.where(normal, tables.NORMAL, tables.NOT_NORMAL)
        given.studies["class"] = np.where(given.studies["target"] == 1, tables.OPACITY, other)
    return given


def draw_boxes(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the boxes of one positive study, int ``[N, 4]`` x, y, width, height in pixels; N is 1 to 4."""
    wanted = int(rng.choice(_BOX_COUNTS[0], p=_BOX_COUNTS[1]))
    left = [True, False, True, False] if rng.random() < 0.54 else [False, True, False, True]
    boxes: list[np.ndarray] = []
    for side in left[:wanted]:
        for _ in range(100):
            box = _draw_box(side, size, rng)
            if all(_overlap(box, other) <= _LARGEST_OVERLAP for other in boxes):
                boxes.append(box)
                break
    return np.array(boxes)


def _draw_box(left: bool, size: int, rng: np.random.Generator) -> np.ndarray:
    root = float(np.interp(rng.random(), *_SIZE_QUANTILES))
    # Small opacities are round; large ones fill a lung and are tall.
    tall = np.exp(np.clip(np.log(1.4) + 0.57 * (np.log(root) - np.log(255)) + rng.normal(0, 0.15), -0.7, 1.1))
    width, height = root / np.sqrt(tall) / 1024, root * np.sqrt(tall) / 1024
    x = rng.normal(0.315, 0.066) if left else rng.normal(0.697, 0.06)
    y = rng.normal(0.517, 0.11)
    # The box stays inside the field where the phantom has lungs or may have them.
    x0 = np.clip(x - width / 2, 0.04, 0.96 - width)
    y0 = np.clip(y - height / 2, 0.05, 0.95 - height)
    return np.round(np.array([x0, y0, width, height]) * size).astype(int)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.clip(sides, 0, None)))
    return shared / float(a[2] * a[3] + b[2] * b[3] - shared)


def _draw_groups(count: int, rng: np.random.Generator) -> list[str]:
    """Draw the patients of the studies: 62 % have one image, the others a few; none has more than 5 % of all."""
    cap = max(2, min(65, count // 20))
    sizes: list[int] = []
    while sum(sizes) < count:
        extra = 0 if rng.random() < _SINGLE_SHARE else int(rng.geometric(1 / 3.5))
        sizes.append(min(1 + extra, cap, count - sum(sizes)))
    groups = [f"p{patient:05d}" for patient, images in enumerate(sizes) for _ in range(images)]
    return [groups[index] for index in rng.permutation(count)]


def _plan(drawn: tables.Annotations, seed: int) -> list[SampleStudy]:
    rng = np.random.default_rng([seed, 2])
    studies = drawn.studies
    codes, _ = pd.factorize(studies["groupId"])
    ap = rng.random(len(studies)) < np.where(studies["target"] == 1, _AP_SHARE[True], _AP_SHARE[False])
    boxes = drawn.boxes_of(studies["patientId"].to_list())
    return [
        SampleStudy(number, key, box, image_class, "AP" if is_ap else "PA", seed * 100_003 + int(code), seed)
        for number, (key, box, image_class, is_ap, code) in enumerate(
            zip(studies["patientId"], boxes, studies["class"], ap, codes, strict=True)
        )
    ]


def _render(job: _RenderJob) -> str:
    study = job.study
    patient = np.random.default_rng([study.patient_seed, 3])
    anatomy = draw_anatomy(patient)
    rng = np.random.default_rng([study.study_seed, 4, study.number])
    finding = str(rng.choice(_FINDINGS)) if study.image_class == tables.NOT_NORMAL else "none"
    pixels = render_study(anatomy, study.boxes / job.size, finding, study.view, job.size, rng)
    sex = "M" if patient.random() < _MALE_SHARE else "F"
    # One study in 5,000 has an impossible age, as in the real headers.
    age = 148 if rng.random() < 5 / 26684 else int(np.clip(patient.normal(47, 17), 1, 92))
    spacing = float(rng.choice([0.115, 0.139, 0.143, 0.168, 0.171, 0.194, 0.199])) * CHALLENGE_SIZE / job.size
    _write_dicom(job.folder / f"{study.patient_id}.dcm", study, pixels, sex, str(age), round(spacing, 4))
    return study.patient_id


def _write_dicom(path: Path, study: SampleStudy, pixels: np.ndarray, sex: str, age: str, spacing: float) -> None:
    ok, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert ok
    dataset = pydicom.Dataset()
    uid = UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, study.patient_id).int}")
    dataset.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.StudyInstanceUID = dataset.SeriesInstanceUID = uid
    dataset.Modality, dataset.ConversionType, dataset.BodyPartExamined = "CR", "WSD", "CHEST"
    dataset.PatientID = dataset.PatientName = study.patient_id
    dataset.PatientSex, dataset.ViewPosition = sex, study.view
    # The real headers have the age without a unit, contrary to the standard.
    dataset.add(pydicom.DataElement(0x00101010, "AS", age, validation_mode=pydicom.config.IGNORE))
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelSpacing = [spacing, spacing]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", "ISO_10918_1"
    dataset.PixelData = encapsulate([jpeg.tobytes()])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.save_as(path, enforce_file_format=True)


def _write_tables(out: Path, drawn: tables.Annotations) -> None:
    studies, boxes = drawn.studies, drawn.boxes.set_index("patientId")
    lines, classes = ["patientId,x,y,width,height,Target"], ["patientId,class"]
    for key, image_class, box in zip(
        studies["patientId"], studies["class"], drawn.boxes_of(studies["patientId"].to_list()), strict=True
    ):
        # As in the challenge: one row per box in both tables, one row for a study without boxes.
        lines += [f"{key},{','.join(f'{value:g}' for value in row)},1" for row in box] or [f"{key},,,,,0"]
        classes += [f"{key},{image_class}"] * max(1, len(box))
    assert len(lines) - 1 == len(boxes) + (studies["target"] == 0).sum()
    (out / tables.LABELS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / tables.CLASSES).write_text("\n".join(classes) + "\n", encoding="utf-8")
    studies[["patientId", "groupId"]].to_csv(out / tables.GROUPS, index=False)
