"""Make what the servers need before their first use.

In the object store, the buckets of MLflow and DVC; in MLflow, the role ``engineers``, which may log runs and register
models, and the workers' account, which has it. Waits until both servers answer. What is there stays, except for the
workers' password, which becomes the given one. MLflow's variables name the server and its administrator.
"""

import os
import time
from collections.abc import Callable

import boto3
import requests
from botocore.exceptions import BotoCoreError, ClientError
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client

BUCKETS = ("mlflow", "dvc")
ROLE, WORKER = "engineers", "worker"
# Of MLflow, which has one workspace unless more are asked for.
WORKSPACE = "default"
PATIENCE_SECONDS = 180


def make_buckets(endpoint: str) -> None:
    """Make the buckets of MLflow and DVC, with the credentials in the environment."""
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in BUCKETS:
        if name not in there:
            client.create_bucket(Bucket=name)


def make_accounts(address: str, password: str) -> None:
    """Make the role and the workers' account in MLflow, or give the account another password."""
    client = get_app_client("basic-auth", address)
    role = next((one for one in client.list_roles(WORKSPACE) if one.name == ROLE), None)
    role = role or client.create_role(WORKSPACE, ROLE, "may log runs and register models")
    granted = {one.resource_type for one in client.list_role_permissions(role.id)}
    for kind in ("experiment", "registered_model"):
        if kind not in granted:
            client.add_role_permission(role.id, kind, "*", "EDIT")
    try:
        client.get_user(WORKER)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_user(WORKER, password)
    else:
        client.update_user_password(WORKER, password)
    if role.id not in {one.id for one in client.list_user_roles(WORKER)}:
        client.assign_role(WORKER, role.id)


def patiently(action: Callable[[], None], server: str) -> None:
    """Repeat an action until the server has done it.

    Raises:
        SystemExit: it has not within `PATIENCE_SECONDS`; the message has its last answer.
    """
    started = time.monotonic()
    while True:
        try:
            return action()
        except (BotoCoreError, ClientError, MlflowException, requests.RequestException) as error:
            if time.monotonic() - started > PATIENCE_SECONDS:
                raise SystemExit(f"error: {server}: {error}") from None
            time.sleep(1)


def main() -> None:
    """Make the buckets, the role and the account."""
    store, mlflow = os.environ["AWS_ENDPOINT_URL"], os.environ["MLFLOW_TRACKING_URI"]
    patiently(lambda: make_buckets(store), store)
    patiently(lambda: make_accounts(mlflow, os.environ["WORKER_MLFLOW_PASSWORD"]), mlflow)


if __name__ == "__main__":
    main()
