"""Make what the servers need before their first use: two buckets in the object store, and the workers' MLflow account.

Waits until both servers answer. What is there stays, except for the workers' password, which becomes the given one.
"""

import os
import time
from collections.abc import Callable

import boto3
import requests
from botocore.exceptions import BotoCoreError, ClientError

BUCKETS = ("mlflow", "dvc")
WORKER = "worker"
PATIENCE_SECONDS = 180


def make_buckets(endpoint: str) -> None:
    """Make the buckets of MLflow and DVC, with the credentials in the environment."""
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in BUCKETS:
        if name not in there:
            client.create_bucket(Bucket=name)


def make_account(address: str, administrator: tuple[str, str], password: str) -> None:
    """Make the workers' account in MLflow, or give it another password."""
    users = f"{address}/api/2.0/mlflow/users"
    known = requests.get(f"{users}/get", params={"username": WORKER}, auth=administrator, timeout=30)
    request, path = (requests.patch, "update-password") if known.ok else (requests.post, "create")
    if not known.ok and known.status_code != requests.codes.not_found:
        known.raise_for_status()
    body = {"username": WORKER, "password": password}
    request(f"{users}/{path}", json=body, auth=administrator, timeout=30).raise_for_status()


def patiently(action: Callable[[], None], server: str) -> None:
    """Repeat an action until the server has done it.

    Raises:
        SystemExit: it has not within `PATIENCE_SECONDS`; the message has its last answer.
    """
    started = time.monotonic()
    while True:
        try:
            return action()
        except (BotoCoreError, ClientError, requests.RequestException) as error:
            if time.monotonic() - started > PATIENCE_SECONDS:
                raise SystemExit(f"error: {server}: {error}") from None
            time.sleep(1)


def main() -> None:
    """Make the buckets and the account."""
    store, mlflow = os.environ["AWS_ENDPOINT_URL"], os.environ["MLFLOW_TRACKING_URI"]
    administrator = (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"])
    patiently(lambda: make_buckets(store), store)
    patiently(lambda: make_account(mlflow, administrator, os.environ["WORKER_MLFLOW_PASSWORD"]), mlflow)


if __name__ == "__main__":
    main()
