"""What `make` installs: each package with digests, in the version that is tested; `make pins` writes the file."""

import re
import tomllib

from packaging.requirements import Requirement

from tests.conftest import REPOSITORY


def name_of(requirement):
    return re.sub(r"[-_.]+", "-", Requirement(requirement).name).lower()


def locked():
    """Return the requirements of the lock, without digests, and the number of digests of each."""
    text = (REPOSITORY / "lock.txt").read_text().replace("\\\n", " ")
    parts = [line.split("--hash=") for line in text.splitlines()]
    return {requirement.strip(): [digest.strip() for digest in digests] for requirement, *digests in parts}


def test_each_package_has_digests():
    for requirement, digests in locked().items():
        assert digests, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in digests), requirement


def test_the_versions_are_those_of_the_constraints():
    lines = (REPOSITORY / "constraints.txt").read_text().split()
    tested = {name_of(line): line.partition("==")[2] for line in lines}
    other = [one for one in locked() if tested.get(name_of(one)) not in (None, str(Requirement(one).specifier)[2:])]
    assert other == []


def test_all_that_the_project_needs_is_in_it():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {name_of(one) for one in [*project["dependencies"], *extras["dev"]]} - {"pneumoflow"}
    for extra in Requirement(extras["dev"][0]).extras:
        needed |= {name_of(one) for one in extras[extra]} - {"pneumoflow"}
    assert needed - {name_of(one) for one in locked()} == set()
