"""Deployments of this folder on a server; those of another project are not taken over.

`prefect deploy` silently replaces a deployment of the same name. This file, run as a build step of
`prefect.yaml`, refuses to do that, and prints the code that workers are to run.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.responses import DeploymentResponse

from flows.reach import require_server
from flows.workspace import STEP, Source, deployed_source
from pipeline.errors import UserError, run_main
from pipeline.loopback import bypass_proxy
from pipeline.provenance import git_state

_TAG = "folder:"


def folder_tag() -> str:
    """Return a tag that names this folder, for served deployments, whose path does not name it."""
    return f"{_TAG}{Path.cwd()}"


def folder_of(deployment: DeploymentResponse) -> str | None:
    """Return the folder that a deployment runs in, or None if the deployment does not name it."""
    for tag in deployment.tags:
        if tag.startswith(_TAG):
            return tag.removeprefix(_TAG)
    source = _source_of(deployment)
    return source.folder if source else None


def _source_of(deployment: DeploymentResponse) -> Source | None:
    for step in deployment.pull_steps or []:
        if STEP in step:
            with suppress(ValueError, TypeError, KeyError):  # written by another version, or by hand
                return Source.parse(str(step[STEP]["source"]))
    return None


def own_deployments(client: SyncPrefectClient) -> list[UUID]:
    """Return the ids of the deployments that run in this folder."""
    return [one.id for one in client.read_deployments() if folder_of(one) == str(Path.cwd())]


def refuse_takeover(names: Sequence[str]) -> None:
    """Require that no deployment with one of these names belongs to another project.

    A clone of the same repository is the same project, and may deploy another commit of it.

    Raises:
        UserError: a deployment does.
    """
    own = deployed_source()
    wanted = DeploymentFilter(name=DeploymentFilterName(any_=list(names)))
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments(deployment_filter=wanted):
            folder, other = folder_of(deployment), _source_of(deployment)
            same_project = other is not None and own.repository and other.repository == own.repository
            if folder not in (None, own.folder) and not same_project:
                name = f"{client.read_flow(deployment.flow_id).name}/{deployment.name}"
                raise UserError(
                    f"{name} at {client.api_url}: belongs to {folder}; deploy to another server, change the name, or"
                    f" `prefect deployment delete {name}` if that folder is no longer used"
                )


def main() -> None:
    """Check the names of the deployments in ``prefect.yaml``, and print the source of this folder."""
    bypass_proxy()
    require_server()
    listed = yaml.safe_load(Path("prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    refuse_takeover([one["name"] for one in listed])
    if (source := deployed_source()).repository and git_state()["git_dirty"] == "true":
        print("changes that are not committed do not reach workers on other machines", file=sys.stderr, flush=True)
    print(source, flush=True)


if __name__ == "__main__":
    run_main(main)
