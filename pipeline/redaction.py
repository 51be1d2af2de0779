"""Removal of passwords from text that goes to a log, a page, a tag or another program."""

import os
import re
from collections.abc import Iterator
from urllib.parse import unquote

HIDDEN = "***"
# The credentials of a URL end at the last @ before its path.
_CREDENTIALS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#'\"<>]*@")
_IN_A_QUERY = re.compile(r"((?:password|passwd|pwd|token|secret|api_key)=)[^\s&'\"<>]+", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^\s:/@]*:([^\s]+)@")
_SECRET_NAMES = ("PASSWORD", "TOKEN", "SECRET", "API_KEY", "ACCESS_KEY")
# A shorter secret is not replaced, because it occurs in other words too.
_SHORTEST = 4


def redact(text: str) -> str:
    """Return ``text`` with ``***`` for the credentials in its URLs and every password in this process's environment."""
    # Known passwords are replaced first, because the pattern for URLs would match a part of one that contains ://.
    for secret in sorted(_known_secrets(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _CREDENTIALS.sub(rf"\1{HIDDEN}@", text)
    return _IN_A_QUERY.sub(rf"\1{HIDDEN}", text)


def _known_secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        secrets = _PASSWORD.findall(value)
        if name.endswith(_SECRET_NAMES):
            secrets.append(value)
        for secret in secrets:
            yield from (word for word in {secret, unquote(secret)} if len(word) >= _SHORTEST)
