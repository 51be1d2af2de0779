"""Licences of what an installation brings: none of the GPL or AGPL, beyond what DVC itself needs."""

import re
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

ROOT = "pneumoflow"
# Licences that ask the same of a program that uses the library. The LGPL and the MPL do not.
_STRONG = re.compile(r"\b(A?GPL|GNU (Affero )?General Public)", re.IGNORECASE)


def needs(name, *, without=()):
    """Return the packages that a package needs, directly or not; extras count as far as they are asked for."""
    found, waiting = {}, [(name, frozenset())]
    while waiting:
        package, extras = waiting.pop()
        key = package.lower().replace("_", "-")
        if key in without or (extras <= found.get(key, frozenset(["none"])) - {"none"} and key in found):
            continue
        found[key] = found.get(key, frozenset()) | extras
        try:
            requirements = map(Requirement, distribution(package).requires or [])
        except PackageNotFoundError:  # for another system
            continue
        for one in requirements:
            environments = [{"extra": extra} for extra in (extras or {""})]
            if one.marker is None or any(one.marker.evaluate(environment) for environment in environments):
                waiting.append((one.name, frozenset(one.extras)))
    return set(found) - {name}


def licence(package):
    """Return what a package says of its licence: an expression, a text's first line, or classifiers."""
    try:
        data = distribution(package).metadata.json
    except PackageNotFoundError:
        return ""
    text = str(data.get("license_expression") or data.get("license") or "").strip()
    classifiers = [one for one in data.get("classifier", []) if one.startswith("License")]
    return "; ".join([*text.splitlines()[:1], *classifiers])


def strong(package):
    """Tell whether only a strong copyleft licence is offered."""
    parts = re.split(r"\bOR\b|;", licence(package))
    stated = [part for part in parts if part.strip() and part.strip() != "OSI Approved"]
    return (
        bool(stated)
        and any(_STRONG.search(part) and "Lesser" not in part for part in stated)
        and not any(re.search(r"MIT|BSD|Apache|LGPL|Lesser|MPL|EPL|Artistic", part) for part in stated)
    )


def test_the_closure_is_found():
    packages = needs(ROOT)
    assert {"torch", "mlflow", "prefect", "dvc", "numpy", "bokeh"} <= packages
    assert "pytest" not in packages
    assert "dvc-s3" not in packages  # of the extra `team`


def test_no_strong_copyleft_beyond_dvc():
    assert [package for package in sorted(needs(ROOT, without=("dvc",))) if strong(package)] == []


def test_strong_licences_are_recognised(monkeypatch):
    for text, expected in (
        ("GPL-3.0-or-later", True), ("AGPL-3.0-only", True), ("GNU General Public License v3", True),
        ("LGPL-3.0", False), ("Apache-2.0 OR GPL-2.0-or-later", False), ("MIT", False), ("", False),
    ):  # fmt: skip
        monkeypatch.setitem(globals(), "licence", lambda _, text=text: text)
        assert strong("x") is expected, text
