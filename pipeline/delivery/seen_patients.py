"""The patients whom a model has seen, as hashes in ``seen.json``. This module imports no PyTorch."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from pipeline.delivery.model_config import SEEN_FILE
from pipeline.documents import read_json
from pipeline.errors import UserError
from pipeline.files import write_json

_HASH = re.compile(r"[0-9a-f]{16}")


def save_seen(folder: Path, patients: Iterable[str]) -> None:
    """Write hashes of the patients on whom a model was trained and chosen: it must not be scored on them."""
    write_json(folder / SEEN_FILE, sorted({patient_hash(patient) for patient in patients}))


def load_seen(folder: Path) -> set[str]:
    """Read the hashes that `save_seen` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / SEEN_FILE
    try:
        hashes = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(hashes, list) or not all(isinstance(one, str) and _HASH.fullmatch(one) for one in hashes):
        raise UserError(f"{path}: must be a JSON list of hashes, 16 hexadecimal digits each")
    return set(hashes)


def patient_hash(patient: str) -> str:
    """Return the hash that stands for a patient's id outside the data set."""
    return hashlib.sha256(patient.encode()).hexdigest()[:16]
