"""Pages of the site that are made from the code: each command, and each value of params.yaml."""

import re
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click
from typer.main import get_command
from typer.models import Context

ROOT = Path(__file__).resolve().parent.parent
# Bounds in a JSON schema, and how they are read.
_BOUNDS = {
    "minimum": "at least {}", "exclusiveMinimum": "above {}", "maximum": "at most {}", "exclusiveMaximum": "below {}",
    "minItems": "at least {} items", "maxItems": "at most {} items", "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
}  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, text in (("params.md", params_page()), ("commands.md", commands_page())):
        files.append(File.generated(config, f"reference/{name}", content=text))
    return files


def commands_page() -> str:
    """Return the reference of the commands: usage, arguments and options of each."""
    from pipeline.cli import app

    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=Context(command), name="pneumoflow", title="Commands and options")
    # Typer's own options are those of any command line.
    return re.sub(r"\* `--(install|show)-completion`.*\n", "", text)


def params_page() -> str:
    """Return the reference of params.yaml: of each value, what is shipped, what is allowed, and its meaning."""
    from pipeline.params import Params

    schema = Params.model_json_schema()
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())
    comments = read_comments((ROOT / "params.yaml").read_text())
    lines = [
        "# Values of params.yaml",
        "",
        "All are needed. `dvc repro` reads them from `params.yaml`; a wrong one ends",
    ]
    lines += ["the command with one line that names it. [Params](../params.md) tells which to choose.", ""]
    for name, section in schema["properties"].items():
        found = _resolved(section, schema)
        rows = list(_rows(name, found, shipped[name], comments, schema))
        lines += [f"## {name}", "", found.get("description", "").replace("``", "`"), ""]
        lines += ["| key | shipped | allowed | meaning |", "| --- | --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def _rows(key: str, schema: dict[str, Any], shipped: Any, comments: dict[str, str], whole: dict[str, Any]) -> Any:
    if "properties" in schema and isinstance(shipped, dict):
        for name, part in schema["properties"].items():
            yield from _rows(f"{key}.{name}", _resolved(part, whole), shipped[name], comments, whole)
        return
    meaning = comments.get(key) or comments.get(key.rpartition(".")[0], "")
    cells = (f"`{key}`", f"`{_flow(shipped)}`", _allowed(schema, whole), meaning)
    yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).replace("\n...", "").strip() or "''"


def _resolved(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    return whole["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _allowed(schema: dict[str, Any], whole: dict[str, Any]) -> str:
    """Say in words which values a schema allows."""
    schema = _resolved(schema, whole)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_allowed(one, whole) for one in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = {"integer": "whole number", "array": "list", "object": "mapping", "null": "nothing", "string": "text"}
    name = schema.get("type", "")
    bounds = [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    each = f" of {_allowed(schema['items'], whole)}" if "items" in schema else ""
    return ", ".join([kind.get(name, name) + each, *bounds])


def read_comments(text: str) -> dict[str, str]:
    """Return the comment behind each key of a YAML file, or else the lines of comment above it."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            above.append(stripped.lstrip("# "))
            continue
        if match := re.match(r"( *)([a-z0-9_]+):(?:.*?\s#\s(.*))?", line):
            indent = len(match[1])
            path = [(depth, name) for depth, name in path if depth < indent] + [(indent, match[2])]
            found[".".join(name for _, name in path)] = match[3] or " ".join(above)
        above = []
    return found
