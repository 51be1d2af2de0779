"""Params -> the rules by which rows of the label table become boxes."""

from pipeline.data.box_classes import LabelRules
from pipeline.params import Params


def label_rules_of(params: Params) -> LabelRules:
    """Return the classes of boxes, and what becomes of other classes and of several readers' boxes."""
    return LabelRules(params.class_aliases, params.data.other_classes == "drop", params.data.reader_iou)
