"""Copies of the object store's buckets: python buckets.py save|check|restore|prune STORE [BACKUP].

``STORE/objects`` holds each content once, under its SHA-256; ``BACKUP/objects.json`` says which object of which bucket
has which content. An object's key never becomes a path.
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import boto3

BUCKETS = ("mlflow", "dvc")
LISTING = "objects.json"
_CHUNK = 1 << 20

Listing = dict[str, dict[str, dict[str, Any]]]


def save(client: Any, store: Path, backup: Path) -> None:
    """Save what is in the buckets; what an earlier backup in the store has is not fetched again."""
    known = _latest(store)
    listing: Listing = {}
    for bucket in BUCKETS:
        listing[bucket] = {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for item in page.get("Contents", []):
                key, etag = item["Key"], item["ETag"]
                old = known.get(bucket, {}).get(key)
                if not (old and old["etag"] == etag and _file(store, old["sha256"]).exists()):
                    body = client.get_object(Bucket=bucket, Key=key)["Body"]
                    old = {"etag": etag, "sha256": _keep(store, body)}
                listing[bucket][key] = old
    (backup / LISTING).write_text(json.dumps(listing))


def check(store: Path, backup: Path) -> None:
    """Read all contents of a backup.

    Raises:
        SystemExit: one is missing or damaged.
    """
    for bucket, objects in _read(backup).items():
        for key, entry in objects.items():
            file = _file(store, entry["sha256"])
            if not file.exists() or _digest(file) != entry["sha256"]:
                raise SystemExit(f"error: {file}: missing or damaged; it is {key!r} of the bucket {bucket}")


def restore(client: Any, store: Path, backup: Path) -> None:
    """Bring the buckets and their objects back; what is there already and the same is not sent again."""
    made = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for bucket, objects in _read(backup).items():
        if bucket not in made:
            client.create_bucket(Bucket=bucket)
        there: dict[str, str] = {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            there |= {item["Key"]: item["ETag"] for item in page.get("Contents", [])}
        for key, entry in objects.items():
            if there.get(key) != entry["etag"]:
                client.upload_file(str(_file(store, entry["sha256"])), bucket, key)


def prune(store: Path) -> None:
    """Remove contents that no backup in the store names any more."""
    named = {
        entry["sha256"]
        for path in store.glob(f"*/{LISTING}")
        for objects in _read(path.parent).values()
        for entry in objects.values()
    }
    for file in (store / "objects").glob("*/*"):
        if file.name not in named:
            file.unlink()


def _latest(store: Path) -> Listing:
    backups = sorted(path.parent for path in store.glob(f"[0-9]*/{LISTING}"))
    return _read(backups[-1]) if backups else {}


def _read(backup: Path) -> Listing:
    listing: Listing = json.loads((backup / LISTING).read_text())
    return listing


def _file(store: Path, sha256: str) -> Path:
    return store / "objects" / sha256[:2] / sha256


def _keep(store: Path, body: BinaryIO) -> str:
    """Write a content to the store; return its SHA-256."""
    (store / "objects").mkdir(exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=store / "objects", delete=False) as file:
        while chunk := body.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
    path = _file(store, digest.hexdigest())
    path.parent.mkdir(exist_ok=True)
    Path(file.name).replace(path)
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(action: str, store: Path, *backup: Path) -> None:
    """Run one of the four actions."""
    if action == "prune":
        return prune(store)
    if action == "check":
        return check(store, *backup)
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
    return {"save": save, "restore": restore}[action](client, store, *backup)


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
