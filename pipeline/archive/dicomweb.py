"""The HTTP side of an archive: one session with time-outs and a bound on what is read, and its DICOMweb client."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import requests
from dicomweb_client.api import DICOMwebClient

SECONDS = 30
_BOUNDARY = re.compile(r'boundary="?([^";,\s]{1,70})"?')
_CHUNK = 2**20


@contextmanager
def dicomweb(address: str) -> Iterator[tuple[DICOMwebClient, requests.Session]]:
    """Yield a client of the service, and its session; an account comes from ``~/.netrc``."""
    with requests.Session() as session:
        session.request = partial(session.request, timeout=SECONDS)  # type: ignore[method-assign]
        client = DICOMwebClient(address, session=session)
        client.set_http_retry_params(retry=False)
        yield client, session


def fetch(session: requests.Session, url: str, most: int) -> bytes:
    """Return the file of one instance, as the archive has it (WADO-RS, PS3.18, 10.4).

    The client's own method would parse the file in this process, whatever its size.

    Raises:
        requests.RequestException: the service does not answer, or not with one file.
        ValueError: the answer has more than ``most`` bytes, or is not one file.
    """
    accepted = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
    with session.get(url, headers=accepted, stream=True) as answer:
        answer.raise_for_status()
        content = bytearray()
        for chunk in answer.iter_content(_CHUNK):
            content += chunk
            if len(content) > most + _CHUNK:
                raise ValueError(f"more than {most} bytes")
        boundary = _BOUNDARY.search(answer.headers.get("Content-Type", ""))
    if boundary is None:
        raise ValueError("the answer has no parts")
    # Between the first two delimiters lie the part's headers, an empty line and the file.
    _, part, *_ = [*(b"\r\n" + content).split(b"\r\n--" + boundary[1].encode()), b"", b""]
    _, blank, file = part.partition(b"\r\n\r\n")
    if not blank:
        raise ValueError("the answer has no file")
    return bytes(file)
