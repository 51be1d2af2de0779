"""The shell commands that the documents show, for a test that runs them in their order."""

import re

import pytest

from tests.conftest import REPOSITORY

DOCUMENTS = [
    REPOSITORY / name
    for name in ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in REPOSITORY.glob("docs/*.md")))
]
# A code block is indented by four spaces, or stands between two fences. Blocks of other things begin in other ways.
_BLOCK = re.compile(r"(?:^ {4}.*\n)+|^```\n(?:.*\n)+?^```$", re.MULTILINE)
_COMMAND = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:\(echo|\.venv/bin/pip|cd|cp|curl|docker|dvc|git|make|mkdir|openssl|pip|pneumoflow|prefect|"
    r"python3?|rm|sh|source|trtexec) "
)
_WALKED = set()


def commands(text):
    """Return the shell commands in a document's code blocks, each with the lines on which it goes on."""
    return [command for lines in _blocks(text) if _COMMAND.match(lines[0] + " ") for command in _joined(lines)]


def first_lines_of_others(text):
    """Return the first line of each code block that has no commands."""
    return [lines[0] for lines in _blocks(text) if not _COMMAND.match(lines[0] + " ")]


def _blocks(text):
    for block in _BLOCK.findall(text):
        yield [line.removeprefix("    ") for line in block.splitlines() if not line.startswith("```")]


def _joined(lines):
    found, end = [], None
    for line in lines:
        goes_on = found and (end or found[-1].endswith(("\\", "|")))
        if goes_on:
            found[-1] += "\n" + line
        else:
            found.append(line)
        end = None if line == end else end or (line.split("<<'")[1].rstrip("'") if "<<'" in line else None)
    return found


class Walk:
    """The commands of a document in their order; a test has to name each, so that it fails if the document changes."""

    def __init__(self, name):
        self._left = commands((REPOSITORY / name).read_text())

    def next(self, start):
        """Return the next command, which begins with ``start``."""
        assert self._left, f"no command is left; expected {start}"
        assert self._left[0].startswith(start), f"expected {start}, the document has {self._left[0]}"
        return self._left.pop(0)

    def run_by(self, start, *tests):
        """Pass over the next command, which others run: each of these files has all of its words.

        Some tests start `pneumoflow` as the module that it is.
        """
        self.next(start)
        words = set(re.findall(r"[a-z-]{4,}", start)) - {"pneumoflow"}
        for test in tests:
            text = (REPOSITORY / test).read_text()
            assert [word for word in words if word not in text] == [], test

    def cannot_run(self, start, reason):
        """Pass over the next command, which needs something that a test cannot have."""
        assert reason
        self.next(start)

    def end(self):
        """Check that each command was named."""
        assert not self._left, f"not named: {self._left}"


def walk(name):
    """Give a test the `Walk` through a document, as the argument ``page``."""
    _WALKED.add(name)
    return pytest.mark.parametrize("page", [name], indirect=True)


def walked():
    """Return the names of the documents that tests walk through."""
    return _WALKED
