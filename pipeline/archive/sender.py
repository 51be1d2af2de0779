"""Answers to an archive, by C-STORE or STOW-RS: each stays on the disk until the archive has taken all of it."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pydicom
import requests
from filelock import FileLock, Timeout
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE

from pipeline.archive.dicomweb import SECONDS, dicomweb
from pipeline.delivery.answers import ANSWERS, SENT, WAITING
from pipeline.delivery.structured_report import quiet_dicom
from pipeline.errors import UserError
from pipeline.escaping import one_line, printable
from pipeline.redaction import redact

logger = logging.getLogger(__name__)

STORAGE_CLASSES = (Comprehensive3DSRStorage, GrayscaleSoftcopyPresentationStateStorage, SecondaryCaptureImageStorage)
_PEER = re.compile(r"(?P<title>[^@]{1,16})@(?P<host>[^@:]+):(?P<port>\d{1,5})")
# Sends objects; returns None, or the reason why the archive did not take them all.
Send = Callable[[Sequence[pydicom.Dataset]], str | None]
Connect = Callable[[], AbstractContextManager[Send]]


def send_waiting(scored: Path, archive: str, title: str) -> str:
    """Send the answers that wait below ``scored``; return in words how many were sent.

    An answer that was sent, but not noted as such before a kill, is sent again: its objects have the same UIDs, by
    which an archive knows them.

    Args:
        scored: the folder of ``scored.csv``.
        archive: ``AETITLE@HOST:PORT``, or the address of a DICOMweb service.
        title: our own AE title.

    Raises:
        UserError: the address is malformed, another process sends, or answers wait because the archive is away or did
            not take them; the message gives the first reason.
    """
    connect = _connection_to(archive, title)
    folder = scored / ANSWERS
    if not _waiting(folder):
        return f"{redact(archive)}: no answers wait"
    try:
        with FileLock(folder / ".sending.lock", timeout=0), quiet_dicom():
            waiting = _waiting(folder)
            sent, problems = _send_all(waiting, folder / SENT, connect)
    except Timeout:
        raise UserError(f"{folder}: another process is sending; wait for it, or end it") from None
    said = f"{redact(archive)}: {sent} answers sent"
    if problems:
        raise UserError(f"{said}, {len(waiting) - sent} wait; the first reason: {problems[0]}")
    return said


def _waiting(folder: Path) -> list[Path]:
    """Return the answers that wait; a hidden folder is one that is being written, or was when its writer was killed."""
    entries = (folder / WAITING).iterdir() if (folder / WAITING).is_dir() else ()
    return sorted(path for path in entries if not path.name.startswith("."))


def _send_all(waiting: Sequence[Path], done: Path, connect: Connect) -> tuple[int, list[str]]:
    """Send each answer and move its folder to ``done``; return how many were sent, and the reasons of the others."""
    done.mkdir(mode=0o700, exist_ok=True)
    sent, problems = 0, list[str]()
    try:
        with connect() as send:
            for folder in waiting:
                if reason := _send_one(folder, send):
                    problems.append(reason)
                    continue
                folder.rename(done / folder.name)
                sent += 1
    except (OSError, requests.RequestException) as error:
        problems.append(one_line(redact(str(error))))
    return sent, problems


def _send_one(folder: Path, send: Send) -> str | None:
    paths = sorted(folder.glob("*.dcm"))
    try:
        objects = [pydicom.dcmread(path) for path in paths]
    except pydicom.errors.InvalidDicomError:
        objects = []
    return send(objects) if objects else f"{folder}: damaged; remove it"


def _connection_to(archive: str, title: str) -> Connect:
    if archive.startswith(("http://", "https://")):
        return lambda: _stow(archive)
    match = _PEER.fullmatch(archive)
    if match is None or not 0 < int(match["port"]) < 2**16:
        raise UserError(f"{printable(archive)}: must be AETITLE@HOST:PORT, or an address that begins with http")
    return lambda: _c_store(match["title"], match["host"], int(match["port"]), title)


@contextmanager
def _c_store(called: str, host: str, port: int, title: str) -> Iterator[Send]:
    """Connect to an archive for C-STORE."""
    try:
        entity = AE(ae_title=title)
    except (TypeError, ValueError):
        raise UserError(f"--ae-title {printable(title)}: 1 to 16 ASCII characters") from None
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = SECONDS
    for storage_class in STORAGE_CLASSES:
        entity.add_requested_context(storage_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    connection = entity.associate(host, port, ae_title=called)
    if not connection.is_established:
        raise ConnectionError(f"{called} at {host}:{port} does not accept the connection, or does not answer")
    accepted = {context.abstract_syntax for context in connection.accepted_contexts}
    for storage_class in sorted(set(STORAGE_CLASSES) - accepted):
        logger.warning("%s does not accept %s; answers are sent without it", called, storage_class.name)

    def send(objects: Sequence[pydicom.Dataset]) -> str | None:
        for one in (one for one in objects if one.SOPClassUID in accepted):
            if not connection.is_established:
                raise ConnectionError(f"{called} has closed the connection")
            # Without an answer, the status is empty. Warnings (0xB...) mean that the object is stored.
            status = connection.send_c_store(one).get("Status", -1)
            if status != 0 and status >> 12 != 0xB:
                return f"{called} answered {'nothing' if status < 0 else f'0x{status:04X}'}"
        return None

    try:
        yield send
    finally:
        connection.release()


@contextmanager
def _stow(address: str) -> Iterator[Send]:
    """Connect to a DICOMweb service for STOW-RS."""
    with dicomweb(address) as (client, _):

        def send(objects: Sequence[pydicom.Dataset]) -> str | None:
            answer = client.store_instances(list(objects))
            failed = answer.get("FailedSOPSequence") or []
            return f"{redact(address)} refused {len(failed)} of {len(objects)} objects" if failed else None

        yield send
