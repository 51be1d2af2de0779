"""Signatures of models (Ed25519): who has the private key made the model, and nothing in it was changed since.

`SIGNING_KEY` names a file with the private key, with which models are signed when they are written. `TRUSTED_KEY` names
one with a public key; models without a signature of its private key are then refused. Both are in PEM format.
"""

import base64
import binascii
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from pipeline.errors import UserError
from pipeline.files import sha256_of

SIGNING_KEY, TRUSTED_KEY = "PNEUMOFLOW_SIGNING_KEY", "PNEUMOFLOW_TRUSTED_KEY"
FIELD = "signature"
_PURPOSE = b"pneumoflow model 1\n"


def signed(config: Mapping[str, Any], weights: Path) -> dict[str, Any]:
    """Return the configuration with a signature of it and of the weights; unchanged if no `SIGNING_KEY` is set.

    Raises:
        UserError: the key cannot be used.
    """
    values = {key: value for key, value in config.items() if key != FIELD}
    place = os.environ.get(SIGNING_KEY)
    if not place:
        return values
    signature = _private_key(place).sign(_message(values, weights))
    return values | {FIELD: base64.b64encode(signature).decode()}


def require_signature(config: Mapping[str, Any], weights: Path, source: str) -> None:
    """Require a signature by the private key that belongs to `TRUSTED_KEY`, if that is set.

    Raises:
        UserError: there is none, it is not of that key, or a file was changed since; or the key cannot be used.
    """
    place = os.environ.get(TRUSTED_KEY)
    if not place:
        return
    key, text = _public_key(place), config.get(FIELD)
    if not text:
        raise UserError(f"{source}: not signed; {TRUSTED_KEY} is set, so only models that its key has signed are used")
    values = {name: value for name, value in config.items() if name != FIELD}
    try:
        key.verify(base64.b64decode(str(text), validate=True), _message(values, weights))
    except (InvalidSignature, binascii.Error):
        raise UserError(
            f"{source}: not signed by the key of {TRUSTED_KEY} ({place}), or it or {weights.name} was changed since"
        ) from None


def _message(values: Mapping[str, Any], weights: Path) -> bytes:
    """Return what is signed: the digest of the weights, and the configuration in one way of writing it."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return _PURPOSE + sha256_of(weights).encode() + b"\n" + text.encode()


def _private_key(place: str) -> Ed25519PrivateKey:
    content = _read(place, SIGNING_KEY)
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{SIGNING_KEY} = {place}: not a private Ed25519 key in PEM format without a password")
    return key


def _public_key(place: str) -> Ed25519PublicKey:
    content = _read(place, TRUSTED_KEY)
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{TRUSTED_KEY} = {place}: not a public Ed25519 key in PEM format")
    return key


def _read(place: str, variable: str) -> bytes:
    try:
        return Path(place).read_bytes()
    except OSError as error:
        raise UserError(f"{variable} = {place}: {error.strerror}") from None
