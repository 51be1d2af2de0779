"""``patient_groups.csv`` from the PatientID in DICOM headers: hashed, because an id may identify a person.

The hash is keyed with a secret of this project (its salt): nobody who has the table alone can try ids until one fits.
"""

import hashlib
import hmac
import os
import secrets
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.data.annotations import GROUPS, IMAGES, read_annotations
from pipeline.data.frontal import study_files
from pipeline.data.parallel import Workers, map_jobs
from pipeline.dicom.header import optional, read_header, transfer_syntax
from pipeline.dicom.limits import study_limits
from pipeline.dicom.pictures import is_picture
from pipeline.dicom.radiograph import TRANSFER_SYNTAXES
from pipeline.errors import BadStudyError, UserError
from pipeline.files import write_text
from pipeline.folder_lock import STAGE_LOCKS

SALT = STAGE_LOCKS.parent / "patient_salt"
_FILES_PER_JOB = 64
_SALT_BYTES = 32
_DIGITS = 16
# With more studies than this, one PatientID for most of them is an anonymiser's placeholder.
_FEW, _MOST_SHARE = 20, 0.5


@dataclass(frozen=True)
class _Job:
    files: tuple[Path, ...]
    salt: bytes
    study_seconds: float


def write_patients(folder: Path, workers: Workers, study_seconds: float, salt: Path = SALT) -> str:
    """Write the table of a data set in the challenge's layout; return in words how many studies and patients it has.

    A study without a PatientID counts as a patient of its own.

    Raises:
        UserError: the table is there already, or most studies have one PatientID.
    """
    target = folder / GROUPS
    if target.exists():
        raise UserError(f"{target}: is there already; remove it to make it anew")
    ids = read_annotations(folder).studies["patientId"].to_list()
    files, key = study_files(folder / IMAGES, ids, workers), _salt(salt)
    starts = range(0, len(files), _FILES_PER_JOB)
    jobs = [_Job(tuple(files[start : start + _FILES_PER_JOB]), key, study_seconds) for start in starts]
    found: list[str] = []
    for job, result in zip(jobs, map_jobs(_hashes, jobs, workers, "Reading patients"), strict=True):
        found += [""] * len(job.files) if result is None else result
    groups = [own or _hash(key, f"study {study}") for study, own in zip(ids, found, strict=True)]
    count = max(Counter(groups).values())
    if len(ids) > _FEW and count > _MOST_SHARE * len(ids):
        what = f"{count} of {len(ids)} studies have one PatientID, a placeholder as it seems"
        raise UserError(f"{folder / IMAGES}: {what}; {GROUPS} must come from elsewhere")
    write_text(target, pd.DataFrame({"patientId": ids, "groupId": groups}).to_csv(index=False))
    unknown = found.count("")
    alone = f"; {unknown} studies have no PatientID, and count as patients of their own" if unknown else ""
    return f"{len(ids)} studies of {len(set(groups))} patients{alone}"


def _salt(path: Path) -> bytes:
    """Return the project's secret; it is made once, and only its owner can read it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_hex(_SALT_BYTES).encode())
    content = path.read_bytes().strip()
    if len(content) != 2 * _SALT_BYTES:
        raise UserError(f"{path}: damaged: must have {2 * _SALT_BYTES} characters; remove it to have a new one")
    return content


def _hash(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:_DIGITS]


def _hashes(job: _Job) -> list[str]:
    return [_hash_of(path, job) for path in job.files]


def _hash_of(path: Path, job: _Job) -> str:
    """Return the hash of a file's PatientID and its issuer; an empty text if it has none, or cannot be read."""
    try:
        with study_limits(job.study_seconds):
            content = path.read_bytes()
            if is_picture(content) or transfer_syntax(content) not in {None, *TRANSFER_SYNTAXES}:
                return ""
            header = read_header(content)
            parts = [str(optional(header, name) or "").strip() for name in ("IssuerOfPatientID", "PatientID")]
    except (BadStudyError, OSError):
        return ""
    except Exception:  # noqa: BLE001 - a parser of hostile bytes fails in any way; `check` names the file
        return ""
    return _hash(job.salt, "\0".join(parts)) if parts[1] else ""
