"""Versions of the registered model: look them up, and find the one with given weights.

Only the store's own "does not exist" means that there is none. After any other failure the request is repeated, and
finally it is an error. A version is identified by the digest of its weights and by its run; its number has a meaning
in one store only.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.entities.model_registry import ModelVersion, RegisteredModel

from pipeline.errors import UserError
from pipeline.tracking.asking import BrokenAnswerError, MissingError, ask
from pipeline.tracking.place import shown_uri
from pipeline.tracking.store import open_client

MODEL_NAME = "rsna-retinanet"
_OF_REGISTRY = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/]+))")
CHALLENGER, CHAMPION = "challenger", "champion"
WEIGHTS, PACKAGE, RESULTS_RUN = (f"pneumoflow.{name}" for name in ("weights_sha256", "package", "results_run"))


@dataclass(frozen=True)
class Identity:
    """The properties that make two registered models the same.

    Attributes:
        weights_sha256: the digest of the weights.
        package: the digest of all that is logged with them.
        results_run: the id of the run that the results name.
    """

    weights_sha256: str
    package: str
    results_run: str

    def tags(self) -> dict[str, str]:
        """Return the tags in which a version carries it."""
        return {WEIGHTS: self.weights_sha256, PACKAGE: self.package, RESULTS_RUN: self.results_run}


@dataclass(frozen=True)
class Registered:
    """A version of the registered model.

    Attributes:
        weights_sha256: the digest of its weights; empty for versions from before digests were stored.
    """

    version: str
    run_id: str
    weights_sha256: str = ""

    @property
    def uri(self) -> str:
        """Return the address at which `download_model` finds it."""
        return f"models:/{MODEL_NAME}/{self.version}"


def read_model(name: str = MODEL_NAME) -> RegisteredModel | None:
    """Return a registered model with its aliases and tags; None if the store has none of that name.

    Raises:
        UserError: the store cannot be queried.
    """

    def call() -> RegisteredModel:
        model = open_client().get_registered_model(name)
        if model.name != name:
            raise BrokenAnswerError(f"the answer does not name model {name}")
        return model

    try:
        return ask(f"looking for the model {name}", call)
    except MissingError:
        return None


def resolve_version(uri: str) -> ModelVersion | None:
    """Return the version that ``models:/name/version`` or ``models:/name@alias`` means now; None for other addresses.

    Raises:
        UserError: there is no such version, or the store cannot be queried.
    """
    match = _OF_REGISTRY.fullmatch(uri)
    if match is None:
        return None
    name, number = match["name"], match["version"]
    if number is None:
        # MLflow answers "bad request" for a missing alias; the model's own list distinguishes it from other errors.
        model = read_model(name)
        number = str(model.aliases.get(match["alias"], "")) if model else ""
    version = _read(name, number) if number else None
    if version is None:
        raise UserError(f"{uri}: no such model in {shown_uri()}")
    return version


def read_version(number: str) -> Registered | None:
    """Return a version by its number; None if it does not exist, or was deleted.

    Raises:
        UserError: the store cannot be queried.
    """
    version = _read(MODEL_NAME, number)
    return _registered(version) if version else None


def _read(name: str, number: str) -> ModelVersion | None:
    def call() -> ModelVersion:
        version = open_client().get_model_version(name, number)
        if (version.name, str(version.version)) != (name, number):
            raise BrokenAnswerError(f"the answer does not name version {number}")
        return version

    try:
        return ask(f"looking for version {number} of {name}", call)
    except MissingError:
        return None


def find_version(weights_sha256: str, run_id: str, package: str | None = None) -> Registered | None:
    """Return the newest version with these weights that is of this run, or whose results are of this run.

    With ``package``, the version must also have this digest of all that is logged with the weights (`Identity`).

    Raises:
        UserError: the store cannot be queried.
    """
    # An answer that was cut off to nothing would look like "no version", so check first that the model exists.
    if read_model() is None:
        return None
    condition = f"name = '{MODEL_NAME}' and tags.`{WEIGHTS}` = '{weights_sha256}'"
    versions = ask("looking for versions", lambda: list(open_client().search_model_versions(condition)))
    ours = [one for one in versions if _belongs(one.tags, weights_sha256, str(one.run_id), run_id, package)]
    return _registered(max(ours, key=lambda one: int(one.version))) if ours else None


def _belongs(tags: Mapping[str, str], weights_sha256: str, its_run: str, run_id: str, package: str | None) -> bool:
    return (
        tags.get(WEIGHTS) == weights_sha256
        and run_id in (its_run, tags.get(RESULTS_RUN))
        and package in (None, tags.get(PACKAGE))
    )


def _registered(version: ModelVersion) -> Registered:
    return Registered(str(version.version), str(version.run_id), version.tags.get(WEIGHTS, ""))
