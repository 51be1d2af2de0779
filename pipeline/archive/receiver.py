"""A receiver of images by C-STORE (DICOM PS3.4, B), which an archive or a device sends to; they go into a folder.

Who may send, and how much, is limited; a sender is identified by its AE title only, which anyone can claim, so the
receiver must be reachable by trusted hosts alone.
"""

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from pipeline.dicom.radiograph import MAX_FILE_BYTES, TRANSFER_SYNTAXES
from pipeline.errors import UserError
from pipeline.escaping import printable
from pipeline.files import write_atomic

logger = logging.getLogger(__name__)

# Images of one X-ray exposure; nothing else is accepted.
STORAGE_CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)
# Status codes of PS3.4, B.2.3.
STORED, OUT_OF_RESOURCES, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000
_PDU_BYTES = 2**17
# Senders keep to the size that was agreed. A longer message is no message.
_MOST_PDU_BYTES = 2**20
_MINUTE = 60.0
_IDLE_SECONDS = 60


@dataclass(frozen=True)
class Limits:
    """Limits of the receiver: bytes of an image, images of a sender in a minute, and connections at once."""

    image_bytes: int = MAX_FILE_BYTES
    images_per_minute: int = 600
    connections: int = 8


@dataclass
class Receiver:
    """Stores each image once in ``folder``, under a name made of its instance UID.

    An image is on the disk before its sender is told that it is stored, so that a sender repeats what a kill cut off.

    Attributes:
        folder: where the images go.
        limits: what a sender may send.
        clock: seconds that pass.
    """

    folder: Path
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.monotonic
    _times: dict[str, deque[float]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def store(self, sender: str, instance: str, content: Callable[[], bytes]) -> int:
        """Store one image; return the status that the sender gets.

        Args:
            sender: its AE title, one of those that are accepted.
            instance: the image's SOP instance UID, as the sender states it.
            content: gives the file.
        """
        if not self._may_send(sender):
            logger.warning("%s: more than %d images in a minute; refused", sender, self.limits.images_per_minute)
            return OUT_OF_RESOURCES
        if not instance or len(instance) > 64 or not UID(instance).is_valid:
            logger.warning("%s: an image whose instance UID is not valid; refused", sender)
            return NOT_UNDERSTOOD
        path = self._path(instance)
        if path.exists():
            return STORED
        data = content()
        if len(data) > self.limits.image_bytes:
            logger.warning("%s: an image of more than %d bytes; refused", sender, self.limits.image_bytes)
            return NOT_UNDERSTOOD
        try:
            write_atomic(path, lambda new: new.write_bytes(data), private=True)
        except OSError as error:
            logger.warning("%s: an image could not be stored (%s); refused", sender, printable(error.strerror or error))
            return OUT_OF_RESOURCES
        logger.info("stored %s from %s", path.name, sender)
        return STORED

    def has(self, instance: str) -> bool:
        """Return whether the image with this instance UID is stored."""
        return self._path(instance).exists()

    def _path(self, instance: str) -> Path:
        return self.folder / f"{hashlib.sha256(instance.encode()).hexdigest()[:32]}.dcm"

    def _may_send(self, sender: str) -> bool:
        now = self.clock()
        with self._lock:
            times = self._times.setdefault(sender, deque())
            while times and now - times[0] >= _MINUTE:
                times.popleft()
            if len(times) >= self.limits.images_per_minute:
                return False
            times.append(now)
            return True


class _BoundedReading:
    """Reads from a connection, and ends it when a message, or all messages of one image, are too long."""

    def __init__(self, read: Callable[[int], bytearray], most: int) -> None:
        self._read, self._most = read, most
        self.received = 0

    def __call__(self, count: int) -> bytearray:
        self.received += count
        if count > _MOST_PDU_BYTES or self.received > self._most:
            logger.warning("a message that is too long; the connection is closed")
            raise OSError("too long")
        return self._read(count)


@contextmanager
def receiving(receiver: Receiver, title: str, senders: Sequence[str], host: str, port: int) -> Iterator[int]:
    """Receive images during the block; yield the port, a free one if ``port`` is 0.

    Args:
        receiver: takes the images.
        title: the AE title by which senders call this receiver.
        senders: the AE titles from which images are accepted.
        host: the address to listen on.
        port: the port.

    Raises:
        UserError: there are no senders, a title is invalid, or the address cannot be used.
    """
    if not senders:
        raise UserError("no sender is accepted; name the AE title of each")
    # The library quotes headers in its log.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    try:
        entity = AE(ae_title=title)
        entity.require_calling_aet = list(senders)
    except (TypeError, ValueError):
        raise UserError(f"AE titles {printable([title, *senders])}: 1 to 16 ASCII characters each") from None
    entity.require_called_aet = True
    entity.maximum_associations = receiver.limits.connections
    entity.maximum_pdu_size = _PDU_BYTES
    entity.network_timeout = entity.acse_timeout = entity.dimse_timeout = _IDLE_SECONDS
    entity.add_supported_context(Verification)
    for storage_class in STORAGE_CLASSES:
        entity.add_supported_context(storage_class, sorted(TRANSFER_SYNTAXES))
    receiver.folder.mkdir(parents=True, exist_ok=True)
    handlers = [(evt.EVT_CONN_OPEN, _bound, [receiver.limits]), (evt.EVT_C_STORE, _store, [receiver])]
    try:
        server = entity.start_server((host, port), block=False, evt_handlers=handlers)  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot be listened on ({error.strerror})") from None
    assert server is not None
    try:
        yield int(server.server_address[1])
    finally:
        entity.shutdown()


def _bound(event: Any, limits: Limits) -> None:
    connection = event.assoc.dul.socket
    # Commands and headers of messages come on top of the image.
    connection.recv = _BoundedReading(connection.recv, 2 * limits.image_bytes + _MOST_PDU_BYTES)


def _store(event: Any, receiver: Receiver) -> int:
    event.assoc.dul.socket.recv.received = 0
    sender = str(event.assoc.requestor.ae_title).strip()
    try:
        return receiver.store(sender, str(event.request.AffectedSOPInstanceUID or ""), event.encoded_dataset)
    except Exception as error:  # noqa: BLE001 - a parser of hostile bytes fails in any way, and quotes what it reads
        logger.warning("%s: an image that cannot be used (%s); refused", sender, type(error).__name__)
        return NOT_UNDERSTOOD
