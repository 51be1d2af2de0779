"""Promotion of a model to champion, an alias in the registry, under the conditions in the params."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.assembly.champion import AgainstChampion, OtherClassesError, compare_with_champion
from pipeline.assembly.detections import with_truth
from pipeline.assembly.inputs import SplitData, read_inputs
from pipeline.assembly.registration import own_version, register
from pipeline.delivery.model_config import CONFIG_FILE, ModelConfig, read_config
from pipeline.errors import UserError, run_main
from pipeline.evaluation.comparison import Scored, judge
from pipeline.files import write_json
from pipeline.metrics.bootstrap import interval, patient_weights
from pipeline.metrics.results import ImageResult
from pipeline.params import Params, load_params
from pipeline.paths import DETECTIONS, MODELS, REPORTS
from pipeline.submission import read_submission
from pipeline.tracking import (
    ChampionChangedError,
    ChampionGoneError,
    Registered,
    make_champion,
    note_decision,
    registered_champion,
)

logger = logging.getLogger(__name__)

PROMOTION = "promotion.json"
_FEWEST = 10  # test studies; with fewer, a comparison means nothing
_ROUNDS = 3


@dataclass(frozen=True)
class Decision:
    """The decision on the evaluated model, and its reasons; both versions are given by their number in this store."""

    challenger: str
    champion: str | None
    promoted: bool
    reasons: list[str]
    run_id: str
    weights_sha256: str

    def __str__(self) -> str:
        what = f"version {self.champion} stays champion, not {self.challenger}"
        if self.champion is None:
            what = f"version {self.challenger} does not become champion; there is none"
        if self.promoted:
            what = f"version {self.challenger} is the champion"
        return "\n  ".join([what, *self.reasons])


def promote(params: Params, models: Path = MODELS, reports: Path = REPORTS, force: str | None = None) -> Decision:
    """Compare the model in ``models`` with the champion on the test split, and decide.

    Without a champion, a model above ``promote.floor`` becomes champion. With ``force``, a reason, the model is
    promoted without a comparison. The decision is written to ``reports/promotion.json``, its reasons to the registry.
    If somebody else changes the champion in the meantime, the model is compared with the new champion.

    Raises:
        UserError: the store does not have the model, ``models`` and ``reports`` do not belong together, the
            champion was deleted, or the store cannot be queried; nothing was changed.
    """
    own = own_version(models, reports)
    for _ in range(_ROUNDS):
        champion = _champion(force)
        decision = _decide(params, own, champion, models, reports, force)
        try:
            _carry_out(decision, own, champion)
        except ChampionChangedError as error:
            logger.info("%s meanwhile; comparing again", error)
            continue
        write_json(reports / PROMOTION, asdict(decision))
        return decision
    raise UserError(f"the champion was changed {_ROUNDS} times in the meantime; `pneumoflow promote` tries again")


def _champion(force: str | None) -> Registered | None:
    try:
        return registered_champion()
    except ChampionGoneError:
        if force is None:
            raise
        return None


def _carry_out(decision: Decision, own: Registered, champion: Registered | None) -> None:
    reasons = "; ".join(decision.reasons)
    if not decision.promoted:
        note_decision(own.version, reasons, promoted=False)
    elif champion is None or champion.version != own.version:
        make_champion(own, reasons, champion)


def _decide(
    params: Params, own: Registered, champion: Registered | None, models: Path, reports: Path, force: str | None
) -> Decision:
    former = champion.version if champion else None

    def decision(promoted: bool, reasons: list[str]) -> Decision:
        return Decision(own.version, former, promoted, reasons, own.run_id, own.weights_sha256)

    if champion is not None and champion.version == own.version:
        return decision(True, ["it was so before"])
    if force:
        return decision(True, [f"by hand: {force}"])
    name, floor = params.promote.metric, params.promote.floor
    if champion is None and not floor:
        return decision(True, ["the first model"])
    test = read_inputs(params)["test"]
    results, config = _own_results(test, models, reports)
    scored = Scored(results, config.thresholds, config.calibrations)
    if floor and not (low := _lower_end(params, scored, test)) > floor:
        return decision(False, [f"{name}: the interval begins at {low:.3f}, must be above promote.floor, {floor:g}"])
    if champion is None:
        return decision(True, [f"the first model, and {name} is above promote.floor, {floor:g}"])
    try:
        against = compare_with_champion(params, test, scored, champion)
    except OtherClassesError as error:
        return decision(False, [f"{error}: no comparison; `pneumoflow promote --force REASON` decides by hand"])
    return decision(*_judge(params, against))


def _judge(params: Params, against: AgainstChampion) -> tuple[bool, list[str]]:
    conditions = params.promote
    if against.comparison.images < _FEWEST:
        left = f"only {against.comparison.images} test studies are of patients that the champion has not seen"
        return False, [f"{left}: no comparison; `pneumoflow promote --force REASON` decides by hand"]
    promoted, reasons = judge(
        against.comparison, conditions.metric, conditions.margin, conditions.subgroups, conditions.subgroup_margin
    )
    if against.seen:
        reasons.append(f"{against.seen} test studies are of patients that the champion has seen, and are left out")
    return promoted, reasons


def _lower_end(params: Params, scored: Scored, test: SplitData) -> float:
    """Return the lower end of the metric's 95 % interval on test; NaN, which passes no floor, if it is not defined."""
    weights = patient_weights(test.index["groupId"].to_list(), params.evaluate.bootstrap_draws, params.seed)
    return interval(scored.metrics().draws(weights)[params.promote.metric])[0]


def _own_results(test: SplitData, models: Path, reports: Path) -> tuple[list[ImageResult], ModelConfig]:
    """Read the detections that the evaluation found with this model, and its configuration."""
    config = read_config(models / CONFIG_FILE)
    submission = read_submission(reports / DETECTIONS, config.classes)
    lacking = [key for key in test.index["patientId"] if key not in submission]
    if lacking:
        raise UserError(f"{reports / DETECTIONS}: lacks study {lacking[0]}; run `dvc repro evaluate`")
    studies = zip(test.index["patientId"], test.boxes, test.labels, strict=True)
    return [with_truth(submission[key], *truth) for key, *truth in studies], config


def main() -> None:
    """Decide by ``params.yaml``; first register a model that DVC has restored and this store does not have."""
    params = load_params()
    register(params, MODELS, REPORTS)
    logger.info("%s", promote(params))


if __name__ == "__main__":
    run_main(main)
