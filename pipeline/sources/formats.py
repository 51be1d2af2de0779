"""Recognition of the format of a labelled data set, and the choice of its reader."""

from collections.abc import Callable
from pathlib import Path

from pipeline.data.annotations import BOX, LABELS, read_annotations
from pipeline.data.discovery import by_study
from pipeline.documents import read_json
from pipeline.errors import UserError
from pipeline.escaping import printable
from pipeline.sources.coco import read_coco
from pipeline.sources.cvat import read_cvat
from pipeline.sources.labelled import Box, Images, Labelled
from pipeline.sources.labelstudio import read_labelstudio
from pipeline.sources.nih import BOXES as NIH_BOXES
from pipeline.sources.nih import read_nih
from pipeline.sources.vindr import CORNERS, read_vindr
from pipeline.sources.voc import read_voc
from pipeline.sources.xml_files import read_xml
from pipeline.sources.yolo import read_yolo, yolo_config

FORMATS = ("coco", "yolo", "voc", "vindr", "nih", "labelstudio", "cvat", "rsna")
AUTO = "auto"
_MAX_BYTES = 2**30


def read_labelled(source: Path, images: Images, kind: str) -> Labelled:
    """Read a data set of the format ``kind``.

    Args:
        source: the label file, or the folder of the label files.
        images: the images that may be labelled.
        kind: one of `FORMATS`, or ``auto``.

    Raises:
        UserError: the source is not of this format; the message names the place, the value and the rule.
    """
    if not source.exists():
        raise UserError(f"{printable(source)}: no such file or folder")
    if source.suffix.lower() in (".zip", ".tar", ".gz", ".7z"):
        raise UserError(f"{printable(source)}: an archive; unpack it, and give its folder")
    kind = detect_format(source) if kind == AUTO else kind
    if not images.files:
        raise UserError(f"{printable(images.folder)}: no DICOM, PNG or JPEG files; --images names their folder")
    readers: dict[str, Callable[[], Labelled]] = {
        "coco": lambda: read_coco(_only(source, "*.json"), images),
        "labelstudio": lambda: read_labelstudio(_only(source, "*.json"), images),
        "cvat": lambda: read_cvat(_only(source, "*.xml"), images),
        "voc": lambda: read_voc(sorted(source.rglob("*.xml")) if source.is_dir() else [source], images),
        "vindr": lambda: read_vindr(_only(source, "*.csv"), images),
        "yolo": lambda: read_yolo(_folder(source), images),
        "nih": lambda: read_nih(_folder(source), images),
        "rsna": lambda: _read_rsna(_folder(source), images),
    }
    if kind not in readers:
        raise UserError(f"--format {kind}: must be {AUTO} or one of {', '.join(FORMATS)}")
    return readers[kind]()


def detect_format(source: Path) -> str:
    """Return the format of a file or folder.

    Raises:
        UserError: it has none of these formats, or several are possible.
    """
    if source.is_file():
        found = {_of_file(source)} - {""}
    else:
        named = {"rsna": (source / LABELS).is_file(), "nih": (source / NIH_BOXES).is_file()}
        found = {kind for kind, there in named.items() if there}
        found |= {"yolo"} if yolo_config(source) else set()
        if not found:
            files = [path for end in ("json", "xml", "csv") for path in sorted(source.rglob(f"*.{end}"))[:20]]
            found = {_of_file(path) for path in files} - {""}
    if len(found) != 1:
        what = f"may be {' or '.join(sorted(found))}" if found else "has none of the formats " + ", ".join(FORMATS)
        raise UserError(f"{printable(source)}: {what}; --format names the one to read")
    return found.pop()


def _of_file(path: Path) -> str:
    """Return the format of a label file; an empty text if it is none."""
    try:
        match path.suffix.lower():
            case ".json":
                content = read_json(path, _MAX_BYTES)
                if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
                    return "coco"
                is_tasks = isinstance(content, list) and content and isinstance(content[0], dict)
                return "labelstudio" if is_tasks and "data" in content[0] else ""
            case ".xml":
                return {"annotation": "voc", "annotations": "cvat"}.get(read_xml(path).tag, "")
            case ".csv":
                with path.open(encoding="utf-8", errors="replace") as file:
                    header = file.readline().casefold()
                return "vindr" if all(name in header for name in (*CORNERS, "image_id", "class_name")) else ""
    except UserError:
        return ""
    return ""


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def _only(source: Path, pattern: str) -> Path:
    """Return the source, or the only file of this kind in it."""
    if source.is_file():
        return source
    found = sorted(source.rglob(pattern))
    if len(found) != 1:
        raise UserError(f"{printable(source)}: has {len(found)} files {pattern}; give the one to read")
    return found[0]


def _read_rsna(folder: Path, images: Images) -> Labelled:
    """Read a data set that has the project's own layout."""
    annotations = read_annotations(folder)
    for key, reason in annotations.problems.items():
        raise UserError(f"{folder}: {key}: {reason}")
    ids = annotations.studies["patientId"].to_list()
    files_of = by_study(images.files, set(ids), images.folder)
    found = Labelled()
    groups, boxes_of, labels_of = annotations.studies["groupId"], annotations.boxes_of(ids), annotations.labels_of(ids)
    for key, group, boxes, labels in zip(ids, groups, boxes_of, labels_of, strict=True):
        path = images.find(key, f"{folder / LABELS}: {key}") if key not in files_of else files_of[key][0]
        found.images.append(path)
        if annotations.grouped:
            found.patients[path] = str(group)
        for box, label in zip(boxes, labels, strict=True):
            x, y, width, height = (float(box[number]) for number in range(len(BOX)))
            found.boxes.append(Box(path, x, y, width, height, annotations.names[label]))
    return found
