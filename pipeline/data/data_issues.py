"""Rules that a data set may break, each with its severity and advice on what to do."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """Severity: ``error``: the study cannot be used; ``warning``: it can, but look at it; ``note``: good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Rule:
    """One rule: ``title`` describes a study that breaks it, ``advice`` tells the owner what to do."""

    name: str
    severity: Severity
    title: str
    advice: str


def _rules(severity: Severity, *rules: tuple[str, str, str]) -> dict[str, Rule]:
    return {name: Rule(name, severity, title, advice) for name, title, advice in rules}


RULES: Mapping[str, Rule] = {
    **_rules(
        Severity.ERROR,
        ("target", "Target must be 0 or 1", "write 1 for a study with opacities and 0 for one without"),
        ("positive_has_box", "Target 1 needs four numbers", "give the box, or set Target to 0"),
        ("negative_has_no_box", "Target 0 must have no box", "leave x, y, width and height empty, or set Target to 1"),
        ("box_area", "a box without width or height", "draw the box again, or remove the row"),
        ("box_once", "the same box twice", "remove one of the rows"),
        ("one_target", "Target 0 and Target 1 for one study", "remove the rows that are wrong"),
        ("class_known", "no class for this study", "add the study to the class table, or remove that table"),
        ("class_fits_target", "the class contradicts Target", "correct a table, or remove that of classes"),
        ("one_class", "two classes for one study", "remove the row that is wrong"),
        ("one_group", "two groups for one study", "a study is of one patient: remove the row that is wrong"),
        ("group_known", "no group for this study, so it might leak between splits", "add it to patient_groups.csv"),
        ("image_there", "no image: there is no DICOM file of this name", "add the file, or remove the study's rows"),
        ("image_once", "several files for one study", "leave one frontal view of each study in the image folder"),
        ("readable", "the file cannot be used", "export the study again; the reason says what was not accepted"),
    ),
    **_rules(
        Severity.WARNING,
        ("class_name", "not one of the challenge's three classes", "see the class table for a misspelling"),
        ("same_file", "the same file under two names", "remove one of them; both stay in one split"),
        ("similar_image", "looks the same as another study", "see whether it is a copy; both stay in one split"),
        ("copies_disagree", "a copy of another study, with another Target", "decide which of the two labels is right"),
        ("nearly_empty", "hardly any contrast, or nearly all black or white", "look at it; remove it if empty"),
    ),
    **_rules(
        Severity.NOTE,
        ("label_there", "no label: the label table has no row for this image", "nothing, unless it should have one"),
        ("lateral", "a lateral view, set aside", "set data.lateral: keep to use it"),
        ("other_image", "another image of a study, set aside", "nothing, if the frontal view was chosen rightly"),
        ("view_known", "the view (AP, PA) is not in the header", "splits cannot be balanced by what is not known"),
        ("class_used", "a class of a study that is not there", "nothing, unless the study should be there"),
        ("metadata_used", "metadata of a study that is not there", "nothing, unless the study should be there"),
        ("split_used", "a split of a study that is not there", "nothing, unless the study should be there"),
        ("group_used", "a group of a study that is not there", "nothing, unless the study should be there"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class DataIssue:
    """A rule that a study breaks; ``detail`` says where or how, and may be empty."""

    rule: Rule
    study: str
    detail: str = ""

    def reason(self) -> str:
        """Return the rule's title and the detail in one line."""
        return f"{self.rule.title}: {self.detail}" if self.detail else self.rule.title


def unusable(issues: Iterable[DataIssue]) -> dict[str, str]:
    """Map each unusable study to the first reason why it cannot be used."""
    problems: dict[str, str] = {}
    for issue in issues:
        if issue.rule.severity is Severity.ERROR:
            problems.setdefault(issue.study, issue.reason())
    return problems


def by_rule(issues: Iterable[DataIssue]) -> dict[Rule, list[DataIssue]]:
    """Group issues by rule, errors first, in the order of `RULES`; rules without issues are left out."""
    grouped: dict[Rule, list[DataIssue]] = {rule: [] for rule in RULES.values()}
    for issue in issues:
        grouped[issue.rule].append(issue)
    return {rule: cases for rule, cases in grouped.items() if cases}
