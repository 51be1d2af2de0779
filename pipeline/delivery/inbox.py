"""A folder into which studies arrive: each is scored once, whichever process looks at it and however often."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from pipeline.data.data_issues import RULES
from pipeline.data.discovery import list_folder
from pipeline.data.image_statistics import grey_features
from pipeline.data.reader import Reader
from pipeline.delivery.batch import Source, Study, predict_each, why
from pipeline.delivery.incoming import ARRIVING, Arrivals, StillArrivingError, read_regular
from pipeline.delivery.predictor import Predictor
from pipeline.delivery.scored import SCORED, append_rows, open_scored
from pipeline.errors import BadStudyError, UserError
from pipeline.escaping import printable
from pipeline.progress import with_progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InboxResult:
    """The numbers of new files that were scored, that were passed over, and that wait for the next look.

    Files that wait may still be arriving, or could not be read at the moment.
    """

    scored: int
    passed_over: int
    unsettled: int


class Answering(Protocol):
    """An object that writes the answer to a study, under a name of its own."""

    def write(self, study: Study, key: str) -> None:
        """Take a study."""


def score_inbox(
    predictor: Predictor,
    reader: Reader,
    model: str,
    inbox: Path,
    out: Path,
    batch_size: int,
    settle_seconds: float,
    answers: Answering | None = None,
) -> InboxResult:
    """Score the images of ``inbox`` whose content is not in ``out/scored.csv`` yet, and add a line for each.

    A file is identified by its SHA-256: neither another name nor a second copy makes it new. Its bytes are read
    once, and these bytes are scored. Files that changed within the last ``settle_seconds`` may still be arriving;
    they wait, as do files that cannot be read at the moment: a line is written only for a verdict on the content.
    The lines of a batch are on the disk before the batch after the next begins. A damaged line, after a kill for
    instance, is set aside, and its file is scored again. The answer to a study, if there are to be ``answers``, is
    written before its line.

    Raises:
        UserError: the folder does not exist, or another process is at work on ``out``.
    """
    if not inbox.is_dir():
        raise UserError(f"{inbox}: no such folder")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".scored.lock", timeout=0):
            look = _Look(
                model, out / SCORED, open_scored(out / SCORED), Arrivals(settle_seconds, out / ARRIVING), answers
            )
            return look.score(predictor, reader, _files(inbox), batch_size)
    except Timeout:
        raise UserError(f"{out / SCORED}: another process is writing to it; wait for it, or end it") from None


def _files(inbox: Path) -> list[Path]:
    """List the images and the files named like DICOM files; log the entries that cannot be read, and leave them out."""
    listing = list_folder(inbox)
    if inbox in listing.odd:
        raise UserError(f"{inbox}: {listing.odd[inbox]}")
    for path, reason in listing.odd.items():
        logger.warning("passed over %s: %s", printable(path), reason)
    return sorted([*listing.files, *listing.misnamed, *listing.pictures])


@dataclass
class _Look:
    """One look at the folder; ``known`` are the digests of the studies that need not be scored again."""

    model: str
    table: Path
    known: set[str]
    arrivals: Arrivals
    answers: Answering | None
    digests: dict[Path, str] = field(default_factory=dict)
    problems: dict[Path, BadStudyError | OSError] = field(default_factory=dict)
    scored: int = 0
    passed_over: int = 0
    waiting: int = 0

    def score(self, predictor: Predictor, reader: Reader, files: Iterable[Path], batch_size: int) -> InboxResult:
        """Score the new files among ``files``."""
        rows: list[list[str]] = []
        for study in predict_each(
            predictor, reader, self._new(with_progress(files, "Scoring")), batch_size, self.problems
        ):
            if self.answers:
                self.answers.write(study, self.digests[study.path])
            rows.append([self.digests[study.path], *_row(study, self.model)])
            if len(rows) == batch_size:
                self._write(rows)
                rows = []
        self._write(rows)
        self._write_verdicts()
        self.arrivals.save()
        return InboxResult(self.scored, self.passed_over, self.waiting)

    def _new(self, files: Iterable[Path]) -> Iterator[Source]:
        for path in files:
            self._write_verdicts()
            try:
                content = read_regular(path) if self.arrivals.has_arrived(path) else None
            except FileNotFoundError:
                continue  # moved away after it was listed
            except OSError as error:
                self._wait_for(path, error)
                continue
            if content is None:
                self.waiting += 1
                continue
            digest = hashlib.sha256(content).hexdigest()
            if digest not in self.known:
                self.known.add(digest)
                self.digests[path] = digest
                yield Source(path, content)

    def _wait_for(self, path: Path, error: OSError) -> None:
        self.waiting += 1
        if not isinstance(error, StillArrivingError):
            reason = why(error)
            logger.warning("%s: cannot be read now (%s); it is tried again at the next check", printable(path), reason)

    def _write(self, rows: list[list[str]]) -> None:
        if rows:
            append_rows(self.table, rows)
            self.scored += len(rows)

    def _write_verdicts(self) -> None:
        """Write a line for each refused content; files that cannot be read at the moment are tried again."""
        while self.problems:
            path = next(iter(self.problems))
            error = self.problems.pop(path)
            if isinstance(error, OSError):
                self._wait_for(path, error)
                continue
            logger.warning("passed over %s: %s", printable(path), error)
            append_rows(
                self.table, [[self.digests[path], path.name, _now(), self.model, "", "", str(error), *[""] * 4]]
            )
            self.passed_over += 1


def _row(study: Study, model: str) -> list[str]:
    prediction, pixels = study.prediction, study.radiograph.pixels
    grey = [f"{value:.3f}" for value in grey_features(pixels)]
    score = f"{prediction.image_score:.6f}"
    count = str(len(prediction.scores))
    warning = RULES["nearly_empty"].title if study.nearly_empty else ""
    return [study.path.name, _now(), model, score, prediction.text(), warning, study.radiograph.view, *grey, count]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
