"""The first sentences of a report and of a model card: what the numbers say."""

from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.summary import Summary


def conclusion(test: Summary, outcomes: Outcomes, champion: tuple[str, Comparison] | None, classes: int) -> str:
    """Return what the model does on test, and whether it is better than the champion, in a few sentences."""
    found, ill = outcomes.true_positives, outcomes.true_positives + outcomes.false_negatives
    alarms, healthy = outcomes.false_positives, outcomes.false_positives + outcomes.true_negatives
    what = "a box" if classes > 1 else "an opacity"
    sentences = [
        f"On {test['images']} test images of {test['patients']} patients, the model reports something on"
        f" {_share(found, ill)} images with {what}, and on {_share(alarms, healthy)} without."
    ]
    mean = f", the mean of {classes} classes," if classes > 1 else ""
    sentences.append(
        f"Its RSNA score{mean} is {_value(test, 'rsna_score')}, its mAP at IoU .5 {_value(test, 'map_50')}."
    )
    if champion:
        sentences.append(_against(*champion))
    return " ".join(sentences)


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({100 * part / whole:.0f} %)" if whole else "")


def _value(summary: Summary, key: str) -> str:
    value, low, high = summary[key], summary[f"{key}_low"], summary[f"{key}_high"]
    if value is None:
        return "not defined"
    return f"{value:.3f}" + ("" if low is None or high is None else f" (95 % interval {low:.3f} to {high:.3f})")


def _against(version: str, comparison: Comparison) -> str:
    value, low, high = comparison.differences["rsna_score"]
    if value is None or low is None or high is None:
        return f"Against the champion (version {version}), the difference in RSNA score is not defined."
    verdict = "surely better than" if low > 0 else "surely worse than" if high < 0 else "not surely different from"
    return (
        f"It is {verdict} the champion (version {version}): RSNA score {value:+.3f} ({low:+.3f} to {high:+.3f}) on the"
        f" same {comparison.images} images."
    )
