"""Choice of the frontal view where a study has several images, by their headers."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.data_issues import RULES, DataIssue
from pipeline.data.discovery import by_study, image_files
from pipeline.data.parallel import Workers, map_jobs
from pipeline.dicom.limits import study_limits
from pipeline.dicom.radiograph import read_view
from pipeline.dicom.views import FRONTAL, LATERAL
from pipeline.errors import BadStudyError, UserError
from pipeline.escaping import printable, quoted

_STUDY_SECONDS = 60.0
_SHOWN = 4
# In place of the view of a file that is no image, or cannot be read.
_NO_IMAGE = "no image"


@dataclass(frozen=True)
class Chosen:
    """The image of each study.

    Attributes:
        files: study -> its image, for the studies that have one, or one frontal view among several images.
        issues: a note for each image that was set aside, and an error for each study whose image cannot be chosen.
    """

    files: dict[str, Path] = field(default_factory=dict)
    issues: list[DataIssue] = field(default_factory=list)


def choose_images(files_of: Mapping[str, Sequence[Path]], ids: Sequence[str], workers: Workers) -> Chosen:
    """Choose the image of each study; only the headers of studies with several files are read.

    Lateral views and files without an image are set aside. Of the rest, the only one is chosen, or the only one that
    is known to be frontal.

    Args:
        files_of: study -> its files, as `by_study` returns them.
        ids: the studies.
        workers: the processes that read headers.
    """
    chosen = Chosen({key: files_of[key][0] for key in ids if len(files_of.get(key, [])) == 1})
    several = {key: files_of[key] for key in ids if len(files_of.get(key, [])) > 1}
    views = _read_views(several, workers)
    for key, files in several.items():
        seen = {path: views[path] for path in files}
        best = _frontal(seen)
        around = Path(os.path.commonpath([path.parent for path in files]))
        described = [
            f"{quoted(str(path.relative_to(around)))} ({view or 'view not known'})"
            for path, view in seen.items()
            if path != best
        ]
        if best is None:
            more = ["..."] if len(described) > _SHOWN else []
            chosen.issues.append(DataIssue(RULES["image_once"], key, ", ".join([*described[:_SHOWN], *more])))
        else:
            chosen.files[key] = best
            chosen.issues.extend(DataIssue(RULES["other_image"], key, text) for text in described)
    return chosen


def study_files(folder: Path, ids: Sequence[str], workers: Workers | None = None) -> list[Path]:
    """Return the image of each study, in the order of ``ids``; see `choose_images`.

    Raises:
        UserError: the folder has no images, or a study has no image, or several among which none can be chosen.
    """
    chosen = choose_images(by_study(image_files(folder), set(ids), folder), ids, workers or Workers())
    reasons = {issue.study: issue.reason() for issue in chosen.issues}
    for key in ids:
        if key not in chosen.files:
            raise UserError(f"{folder}: {printable(key)}: {reasons.get(key, 'has no file; one is needed')}")
    return [chosen.files[key] for key in ids]


def _frontal(views: Mapping[Path, str]) -> Path | None:
    """Return the frontal view among a study's images, by their views; None if it cannot be told."""
    possible = {path: view for path, view in views.items() if view not in LATERAL and view != _NO_IMAGE}
    known = [path for path, view in possible.items() if view in FRONTAL]
    best = known if len(known) == 1 else list(possible)
    return best[0] if len(best) == 1 else None


def _read_views(files_of: Mapping[str, Sequence[Path]], workers: Workers) -> dict[Path, str]:
    jobs = [tuple(files) for files in files_of.values()]
    results = map_jobs(_views, jobs, workers, "Reading views") if jobs else []
    # If a file ended its process, no file of its study is known.
    found = [result or [_NO_IMAGE] * len(job) for job, result in zip(jobs, results, strict=True)]
    return {path: view for job, result in zip(jobs, found, strict=True) for path, view in zip(job, result, strict=True)}


def _views(files: Sequence[Path]) -> list[str]:
    return [_view(path) for path in files]


def _view(path: Path) -> str:
    try:
        with study_limits(_STUDY_SECONDS):
            return read_view(path)
    except (BadStudyError, OSError):
        return _NO_IMAGE
