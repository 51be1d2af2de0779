"""Fetch the RSNA Pneumonia Detection Challenge data from Kaggle."""

import json
import os
import re
import zipfile
from pathlib import Path

from pipeline.data.annotations import CLASSES, GROUPS, IMAGES, LABELS
from pipeline.errors import UserError
from pipeline.files import directory_atomic, write_text

COMPETITION = "rsna-pneumonia-detection-challenge"
_NIH_NAME = re.compile(r"(\d{1,12})_\d{1,6}\.png")
_IMAGE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_BYTES = 64 * 2**30

_HOW_TO_LOG_IN = (
    "no Kaggle credentials; accept the rules at"
    f" https://www.kaggle.com/c/{COMPETITION}/rules, create a token at https://www.kaggle.com/settings and put it"
    " into KAGGLE_API_TOKEN, KAGGLE_USERNAME and KAGGLE_KEY, ~/.kaggle/access_token or ~/.kaggle/kaggle.json"
)


def download_challenge(out: Path, mapping: Path | None) -> None:
    """Download the challenge's training images and tables into ``out``.

    ``mapping`` is the official mapping of the images to NIH ChestX-ray14, a JSON file that RSNA
    publishes beside the challenge; it tells which images are of one patient.

    Raises:
        UserError: the client library or the credentials are missing, Kaggle refuses, or ``out``
            has contents.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: has contents; give a new or an empty folder")
    _require_credentials()
    with directory_atomic(out) as folder:
        archive = _fetch(folder)
        extract_challenge(archive, folder)
        archive.unlink()
        if mapping:
            write_groups(mapping, folder / GROUPS)


def _require_credentials() -> None:
    home = Path(os.environ.get("KAGGLE_CONFIG_DIR", Path.home() / ".kaggle"))
    in_environment = "KAGGLE_API_TOKEN" in os.environ or {"KAGGLE_USERNAME", "KAGGLE_KEY"} <= os.environ.keys()
    if not in_environment and not any((home / name).exists() for name in ("kaggle.json", "access_token")):
        raise UserError(_HOW_TO_LOG_IN)


def _fetch(folder: Path) -> Path:
    try:
        # Imported here: the library looks for credentials, and ends the process, on import.
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
        raise UserError(f"{COMPETITION}: cannot be fetched from Kaggle: {' '.join(str(error).split())[:200]}") from None
    return folder / f"{COMPETITION}.zip"


def extract_challenge(archive: Path, folder: Path) -> None:
    """Take the training images and tables, and nothing else, out of Kaggle's archive.

    Raises:
        UserError: it is no zip archive, lacks a table, or would fill more than 64 GiB.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            wanted = {name: name for name in (LABELS, CLASSES)}
            wanted |= {
                name: f"{IMAGES}/{Path(name).name}"
                for name in source.namelist()
                if name.startswith(f"{IMAGES}/") and name.endswith(".dcm")
            }
            if sum(source.getinfo(name).file_size for name in wanted) > _MAX_BYTES:
                raise UserError(f"{archive}: would fill more than {_MAX_BYTES} bytes")
            (folder / IMAGES).mkdir(parents=True, exist_ok=True)
            for name, target in wanted.items():
                (folder / target).write_bytes(source.read(name))
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{archive}: not the challenge's archive: {error}") from None


def write_groups(mapping: Path, target: Path) -> tuple[int, int]:
    """Turn the official mapping (a list of ``subset_img_id`` and ``img_id``) into a table of patient groups.

    NIH image names are ``<patient>_<number>.png``.

    Returns:
        How many images and how many patients there are.

    Raises:
        UserError: the file is missing, is not such a list, or gives an image two patients.
    """
    try:
        rows = json.loads(mapping.read_text(encoding="utf-8"))
        pairs = [(str(row["subset_img_id"]), str(row["img_id"])) for row in rows]
    except FileNotFoundError:
        raise UserError(f"{mapping}: no such file; RSNA publishes it beside the challenge") from None
    except (ValueError, KeyError, TypeError) as error:
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
