"""Deployments of this folder on a server; those of another folder are not taken over.

`prefect deploy` silently replaces a deployment of the same name. This file, run as a build step of
`prefect.yaml`, refuses to do that.
"""

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.responses import DeploymentResponse

from flows.reach import require_server
from pipeline.errors import UserError, run_main
from pipeline.loopback import bypass_proxy

_TAG = "folder:"
_DIRECTORY = "prefect.deployments.steps.set_working_directory"


def folder_tag() -> str:
    """Return a tag that names this folder, for served deployments, whose path does not name it."""
    return f"{_TAG}{Path.cwd()}"


def folder_of(deployment: DeploymentResponse) -> str | None:
    """Return the folder that a deployment runs in, or None if the deployment does not name it."""
    for tag in deployment.tags:
        if tag.startswith(_TAG):
            return tag.removeprefix(_TAG)
    for step in deployment.pull_steps or []:
        if _DIRECTORY in step:
            return str(step[_DIRECTORY]["directory"])
    return None


def own_deployments(client: SyncPrefectClient) -> list[UUID]:
    """Return the ids of the deployments that run in this folder."""
    return [one.id for one in client.read_deployments() if folder_of(one) == str(Path.cwd())]


def refuse_takeover(names: Sequence[str]) -> None:
    """Require that no deployment with one of these names belongs to another folder.

    Raises:
        UserError: a deployment does.
    """
    wanted = DeploymentFilter(name=DeploymentFilterName(any_=list(names)))
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments(deployment_filter=wanted):
            folder = folder_of(deployment)
            if folder not in (None, str(Path.cwd())):
                name = f"{client.read_flow(deployment.flow_id).name}/{deployment.name}"
                raise UserError(
                    f"{name} at {client.api_url}: belongs to {folder}; deploy to another server, change the name, or"
                    f" `prefect deployment delete {name}` if that folder is no longer used"
                )


def main() -> None:
    """Check the names of the deployments in ``prefect.yaml``."""
    bypass_proxy()
    require_server()
    listed = yaml.safe_load(Path("prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    refuse_takeover([one["name"] for one in listed])


if __name__ == "__main__":
    run_main(main)
