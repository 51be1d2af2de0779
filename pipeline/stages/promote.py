"""Champion or not: the registry's aliases, by rules in the params."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.delivery.model_file import ModelConfig, load_model
from pipeline.documents import read_json_object
from pipeline.errors import UserError, run_main
from pipeline.evaluation.comparison import judge
from pipeline.evaluation.results import ImageResult, image_result
from pipeline.files import write_json
from pipeline.params import Params, load_params
from pipeline.stages.champion import AgainstChampion, compare_with_champion
from pipeline.stages.evaluate import DETECTIONS, REGISTERED, REPORTS
from pipeline.stages.inputs import SplitData, read_inputs
from pipeline.stages.train import MODELS
from pipeline.submission import read_submission
from pipeline.tracking import CHALLENGER, CHAMPION, Registered, make_champion, note_decision, registered

logger = logging.getLogger(__name__)

PROMOTION = "promotion.json"
_FEWEST = 10  # test studies, for a comparison that means anything


@dataclass(frozen=True)
class Decision:
    """What became of the newest version, and why."""

    challenger: str
    champion: str | None
    promoted: bool
    reasons: list[str]

    def __str__(self) -> str:
        what = f"version {self.champion} stays champion, not {self.challenger}"
        if self.promoted:
            what = f"version {self.challenger} is the champion"
        return "\n  ".join([what, *self.reasons])


def promote(params: Params, models: Path = MODELS, reports: Path = REPORTS, force: str | None = None) -> Decision:
    """Compare the newest registered model with the champion on the test split, and decide.

    The first model becomes champion. With ``force``, a reason, no comparison is asked. Writes
    ``reports/promotion.json``, and the reasons into the registry.

    Raises:
        UserError: there is no registered model, or ``models`` and ``reports`` are of another one.
    """
    challenger, champion = registered(CHALLENGER), registered(CHAMPION)
    if challenger is None:
        raise UserError("no registered model has the alias challenger; run `dvc repro evaluate` first")
    decision = _decide(params, challenger, champion, models, reports, force)
    if decision.promoted and (champion is None or champion.version != challenger.version):
        make_champion(challenger.version, "; ".join(decision.reasons))
    elif not decision.promoted:
        note_decision(challenger.version, "; ".join(decision.reasons), promoted=False)
    write_json(reports / PROMOTION, asdict(decision))
    return decision


def _decide(
    params: Params, challenger: Registered, champion: Registered | None, models: Path, reports: Path, force: str | None
) -> Decision:
    former = champion.version if champion else None
    if champion is not None and champion.version == challenger.version:
        return Decision(challenger.version, former, True, ["it was so before"])
    if force:
        return Decision(challenger.version, former, True, [f"by hand: {force}"])
    if champion is None:
        return Decision(challenger.version, former, True, ["the first model"])
    test = read_inputs(params.preprocess)["test"]
    results, config = _own_results(challenger, test, models, reports)
    against = compare_with_champion(params, test, results, config.operating_threshold)
    assert against is not None
    promoted, reasons = _judge(params, against)
    return Decision(challenger.version, former, promoted, reasons)


def _judge(params: Params, against: AgainstChampion) -> tuple[bool, list[str]]:
    rules = params.promote
    if against.comparison.images < _FEWEST:
        left = f"only {against.comparison.images} test studies are of patients that the champion has not seen"
        return False, [f"{left}: no comparison; `pneumoflow promote --force REASON` decides by hand"]
    promoted, reasons = judge(against.comparison, rules.metric, rules.margin, rules.subgroups, rules.subgroup_margin)
    if against.seen:
        reasons.append(f"{against.seen} test studies are of patients that the champion has seen, and are left out")
    return promoted, reasons


def _own_results(
    challenger: Registered, test: SplitData, models: Path, reports: Path
) -> tuple[list[ImageResult], ModelConfig]:
    """What the evaluation found with this model."""
    file = reports / REGISTERED
    version = read_json_object(file).get("version") if file.exists() else None
    if version != challenger.version:
        raise UserError(f"{file}: version {version}, but the challenger is {challenger.version}; run `dvc repro` first")
    found = read_submission(reports / DETECTIONS)
    lacking = [key for key in test.index["patientId"] if key not in found]
    if lacking:
        raise UserError(f"{reports / DETECTIONS}: lacks study {lacking[0]}; run `dvc repro evaluate`")
    pairs = zip(test.index["patientId"], test.boxes, strict=True)
    return [image_result(*found[key], truth) for key, truth in pairs], load_model(models)[1]


def main() -> None:
    """Decide by ``params.yaml``."""
    logger.info("%s", promote(load_params()))


if __name__ == "__main__":
    run_main(main)
