"""Fetch the RSNA Pneumonia Detection Challenge data from Kaggle."""

import os
import re
import shutil
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.data.annotations import CLASSES, GROUPS, IMAGES, LABELS
from pipeline.documents import read_json
from pipeline.errors import UserError
from pipeline.escaping import one_line, shortened
from pipeline.files import directory_atomic, write_text

COMPETITION = "rsna-pneumonia-detection-challenge"
_NIH_NAME = re.compile(r"(\d{1,12})_\d{1,6}\.png")
_IMAGE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_BYTES = 64 * 2**30
_MAX_MAPPING_BYTES = 128 * 2**20
_CHUNK = 2**20
_ENCRYPTED = 0x1  # one of a member's flag bits

_HOW_TO_LOG_IN = (
    "no Kaggle credentials; accept the rules at"
    f" https://www.kaggle.com/c/{COMPETITION}/rules, create a token at https://www.kaggle.com/settings and put it"
    " into KAGGLE_API_TOKEN, KAGGLE_USERNAME and KAGGLE_KEY, ~/.kaggle/access_token or ~/.kaggle/kaggle.json"
)


def download_challenge(out: Path, mapping: Path | None) -> None:
    """Download the challenge's training images and tables into ``out``.

    ``mapping`` is the official mapping of the images to NIH ChestX-ray14, a JSON file that RSNA
    publishes beside the challenge; it tells which images show the same patient.

    Raises:
        UserError: the client library or the credentials are missing, Kaggle refuses, or ``out``
            is not empty.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: has contents; give a new or an empty folder")
    require_credentials()
    with directory_atomic(out) as folder:
        archive = _fetch(folder)
        extract_challenge(archive, folder)
        archive.unlink()
        if mapping:
            write_groups(mapping, folder / GROUPS)


def require_credentials() -> None:
    """Require that there is a Kaggle token; raise `UserError` if not."""
    home = Path(os.environ.get("KAGGLE_CONFIG_DIR", Path.home() / ".kaggle"))
    in_environment = "KAGGLE_API_TOKEN" in os.environ or {"KAGGLE_USERNAME", "KAGGLE_KEY"} <= os.environ.keys()
    if not in_environment and not any((home / name).exists() for name in ("kaggle.json", "access_token")):
        raise UserError(_HOW_TO_LOG_IN)


def _fetch(folder: Path) -> Path:
    try:
        # Imported here because the library looks for credentials on import, and ends the process without them.
        from kaggle.api.kaggle_api_extended import KaggleApi
    except ImportError:
        raise UserError("the Kaggle client is missing; pip install -c constraints.txt -e '.[kaggle]'") from None
    except SystemExit:
        raise UserError(_HOW_TO_LOG_IN) from None
    api = KaggleApi()
    try:
        api.authenticate()
        api.competition_download_files(COMPETITION, path=str(folder))
    except SystemExit:
        raise UserError(_HOW_TO_LOG_IN) from None
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        raise UserError(f"{COMPETITION}: cannot be fetched from Kaggle: {shortened(str(error))}") from None
    return folder / f"{COMPETITION}.zip"


def extract_challenge(archive: Path, folder: Path) -> None:
    """Extract only the training images and tables from Kaggle's archive.

    Raises:
        UserError: the file is not a zip archive, is broken, is encrypted, uses a compression other than deflate, or
            lacks a table; or its contents exceed 64 GiB, the space on the disk, or the sizes in its index.
    """
    with _named_errors(archive), zipfile.ZipFile(archive) as source:
        wanted = {target: source.getinfo(name) for name, target in _wanted(archive, source).items()}
        _require_plausible(archive, list(wanted.values()), folder)
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
        for target, member in wanted.items():
            _extract(source, member, folder / target)


def _wanted(archive: Path, source: zipfile.ZipFile) -> dict[str, str]:
    """Map each wanted member, a table or a training image, to its target path."""
    names = source.namelist()
    images = [name for name in names if name.startswith(f"{IMAGES}/") and name.endswith(".dcm")]
    wanted = {name: name for name in (LABELS, CLASSES)}
    wanted |= {name: f"{IMAGES}/{Path(name).name}" for name in images}
    counts = Counter([*(name for name in names if name in (LABELS, CLASSES)), *(wanted[name] for name in images)])
    for name, count in counts.items():
        if count > 1:
            raise UserError(f"{archive}: {one_line(name)} is in it {count} times")
        if name.startswith(f"{IMAGES}/") and not _IMAGE_ID.fullmatch(Path(name).stem):
            raise UserError(f"{archive}: {one_line(name)}: must be named by a plain id")
    return wanted


def _require_plausible(archive: Path, members: list[zipfile.ZipInfo], folder: Path) -> None:
    """Check the archive's index before anything is written."""
    for member in members:
        if member.flag_bits & _ENCRYPTED:
            raise UserError(f"{archive}: {one_line(member.filename)} is encrypted; Kaggle's archive is not")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            method = f"packed by method {member.compress_type}"
            raise UserError(
                f"{archive}: {one_line(member.filename)} is {method}; only stored and deflated members are read"
            )
    size = archive.stat().st_size
    if not all(0 <= member.header_offset < size for member in members):
        raise UserError(f"{archive}: broken: its index points outside the file")
    if sum(member.compress_size for member in members) > size:
        raise UserError(f"{archive}: its members overlap, or are larger than the archive")
    total = sum(member.file_size for member in members)
    if total > _MAX_BYTES:
        raise UserError(f"{archive}: would need more than {_MAX_BYTES} bytes")
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise UserError(f"{folder}: {archive.name} needs {total} bytes there, and {free} are free")


def _extract(source: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Copy a member piece by piece: it is never in memory as a whole, nor larger on disk than the index says."""
    left = member.file_size
    with source.open(member) as packed, target.open("wb") as file:
        while chunk := packed.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                break
            file.write(chunk)
    if left:
        more = "more" if left < 0 else "less"
        raise zipfile.BadZipFile(f"{member.filename}: {more} than the {member.file_size} bytes that its index says")


@contextmanager
def _named_errors(archive: Path) -> Iterator[None]:
    """Turn any error that `zipfile` raises for a broken archive into one line; a full disk stays an `OSError`."""
    try:
        yield
    except UserError:
        raise
    except (
        zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError, ValueError, OverflowError,
        IndexError, struct.error, zlib.error,
    ) as error:  # fmt: skip
        reason = one_line(str(error.args[0] if error.args else type(error).__name__))
        raise UserError(f"{archive}: broken, or not the challenge's archive: {reason}") from None


def write_groups(mapping: Path, target: Path) -> tuple[int, int]:
    """Turn the official mapping (a list of ``subset_img_id`` and ``img_id``) into a table of patient groups.

    NIH image names are ``<patient>_<number>.png``.

    Returns:
        The number of images and the number of patients.

    Raises:
        UserError: the file is missing, is not such a list, or gives an image two patients.
    """
    try:
        rows = read_json(mapping, _MAX_MAPPING_BYTES)
        if not isinstance(rows, list):
            raise TypeError
        pairs = [(str(row["subset_img_id"]), str(row["img_id"])) for row in rows]
    except FileNotFoundError:
        raise UserError(f"{mapping}: no such file; RSNA publishes it beside the challenge") from None
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{mapping}: not a JSON list of objects with subset_img_id and img_id ({type(error).__name__})"
        ) from None
    patients: dict[str, str] = {}
    for number, (image, name) in enumerate(pairs):
        match = _NIH_NAME.fullmatch(name)
        if not match or not _IMAGE_ID.fullmatch(image):
            raise UserError(
                f"{mapping} entry {number}: subset_img_id {image[:60]!r}, img_id {name[:60]!r}: must be a plain id and"
                " <patient>_<number>.png"
            )
        if patients.setdefault(image, match[1]) != match[1]:
            raise UserError(f"{mapping} entry {number}: {image} is of patient {patients[image]} and of {match[1]}")
    lines = ["patientId,groupId", *(f"{image},{patient}" for image, patient in patients.items())]
    write_text(target, "\n".join(lines) + "\n")
    return len(patients), len(set(patients.values()))
