"""The split that comes with a data set: ``splits.csv`` beside the label table fixes the studies that it names."""

from dataclasses import replace
from pathlib import Path

from pipeline.data.annotations import Annotations
from pipeline.data.data_issues import RULES, DataIssue
from pipeline.data.prepared_tables import GIVEN, GIVEN_SPLIT, GIVEN_SPLITS
from pipeline.errors import UserError
from pipeline.escaping import printable, quoted
from pipeline.tables import is_missing, read_table, table_exists

_OTHER_NAMES = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}


def with_given_splits(annotations: Annotations, folder: Path) -> Annotations:
    """Add the column ``split`` to the studies if the folder has the table; it is empty where the table names none.

    Raises:
        UserError: the table cannot be read, has a split of another name, or gives a study to two.
    """
    path = folder / GIVEN
    if not table_exists(path):
        return annotations
    table = read_table(path, ["patientId", "split"])
    given: dict[str, str] = {}
    for line, key, cell in table.itertuples():
        if is_missing(cell):
            continue
        name = _OTHER_NAMES.get(cell.casefold(), cell.casefold())
        if name not in GIVEN_SPLITS:
            raise UserError(f"{path} line {line}: split {quoted(cell)}: must be {', '.join(GIVEN_SPLITS)}, or empty")
        if given.setdefault(key, name) != name:
            raise UserError(f"{path} line {line}: {quoted(key)} is in {name}, and in {given[key]} in a line before")
    ids = annotations.studies["patientId"]
    unused = [DataIssue(RULES["split_used"], printable(key, 60)) for key in sorted(given.keys() - set(ids))]
    studies = annotations.studies.assign(**{GIVEN_SPLIT: [given.get(key, "") for key in ids]})
    return replace(annotations, studies=studies, issues=[*annotations.issues, *unused])
