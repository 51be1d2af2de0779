"""A search for better params with Optuna: many short runs; hopeless ones are ended early."""

import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import yaml
from filelock import FileLock
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import MaxTrialsCallback
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from pipeline.assembly.inputs import SplitData, read_inputs
from pipeline.assembly.run_identity import run_tags
from pipeline.assembly.run_log import epoch_hooks, run_of
from pipeline.assembly.training import make_trainer, training_fingerprint
from pipeline.errors import UserError
from pipeline.files import write_atomic, write_text
from pipeline.params import Choices, Params, Range
from pipeline.provenance import fingerprint
from pipeline.reports.sweep_plot import plot_sweep
from pipeline.tracking import PARENT, ParentRun, parent_run

logger = logging.getLogger(__name__)

BEST = "best.yaml"
_STORE = "optuna.db"
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)
# A trial whose process has sent no heartbeat for the grace period is tried again, from its last checkpoint.
_HEARTBEAT_SECONDS, _GRACE_SECONDS = 20, 60


_ENDS = {TrialState.PRUNED: "ended early", TrialState.FAIL: "failed"}
_FAILURES = 3


class _Pruned(optuna.TrialPruned):
    """The trial is behind the others at the same epoch."""


def sweep(base: Params, out: Path, trials: int | None) -> Path:
    """Run trials until ``sweep.trials`` are done, write the best params, and return their path.

    Any number of processes may run a sweep at once in one folder; each new process takes part, and
    continues the trials of processes that were ended. Each trial is an MLflow run. Trials are compared
    by val's mAP, because test is for the model that is chosen in the end.
    """
    out.mkdir(parents=True, exist_ok=True)
    splits = read_inputs(base)
    study = _study(base, out)
    wanted = trials or base.sweep.trials
    with _group(study, base, out) as group:

        def run_trial(trial: optuna.Trial) -> float:
            try:
                return _run(trial, suggest(trial, base), splits, out, group.run_id)
            except UserError as error:  # the other trials go on
                logger.warning("trial %d: %s", trial.number, error)
                raise

        if len(study.get_trials(states=_DONE)) < wanted:
            callbacks: list[Any] = [MaxTrialsCallback(wanted, states=_DONE), _say, _end_if_all_fail]
            study.optimize(run_trial, callbacks=callbacks, catch=UserError)
        return _write(study, base, out, group)


@contextmanager
def _group(study: optuna.Study, base: Params, out: Path) -> Iterator[ParentRun]:
    """Open the parent MLflow run of the trials; all processes share it."""
    with ExitStack() as stack:
        with FileLock(out / ".group.lock"):
            tags = run_tags(base) | {"mlflow.runName": f"sweep {study.study_name}"}
            group = stack.enter_context(parent_run(study.user_attrs.get("run_id"), tags))
            study.set_user_attr("run_id", group.run_id)
        yield group


def _end_if_all_fail(study: optuna.Study, _: FrozenTrial) -> None:
    last = study.get_trials(states=(*_DONE, TrialState.FAIL))[-_FAILURES:]
    if len(last) == _FAILURES and all(trial.state is TrialState.FAIL for trial in last):
        raise UserError(f"sweep: {_FAILURES} trials in a row failed; the lines above say why; see sweep.space")


def _study(base: Params, out: Path) -> optuna.Study:
    """Open the study of these params, data and code; trials of other studies are not mixed with its own."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings about failed trials are tracebacks
    with warnings.catch_warnings():
        # Optuna calls heartbeats experimental; without them a killed process's trial would be lost.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = RDBStorage(
            f"sqlite:///{out.resolve() / _STORE}",
            engine_kwargs={"connect_args": {"timeout": 60}},
            heartbeat_interval=_HEARTBEAT_SECONDS,
            grace_period=_GRACE_SECONDS,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
    space = {key: rule.model_dump() for key, rule in base.sweep.space.items()}
    return optuna.create_study(
        storage=storage,
        study_name=fingerprint({"base": training_fingerprint(base), "space": space, "epochs": base.sweep.epochs}, []),
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
    )


def suggest(trial: BaseTrial, base: Params) -> Params:
    """Return the params of a trial: ``base`` with a value for each key of the search space."""
    values = base.model_dump()
    for key, rule in base.sweep.space.items():
        section, name = key.rsplit(".", 1)
        level: Any = values
        for part in section.split("."):
            level = level[part]
        level[name] = _value(trial, key, rule)
    values["train"]["epochs"] = base.sweep.epochs
    return Params.model_validate(values)


def _value(trial: BaseTrial, key: str, rule: Range | Choices) -> Any:
    if isinstance(rule, Choices):
        return trial.suggest_categorical(key, rule.choices)
    if isinstance(rule.low, int) and isinstance(rule.high, int):
        return trial.suggest_int(key, rule.low, rule.high, log=rule.log)
    return trial.suggest_float(key, rule.low, rule.high, log=rule.log)


def _run(trial: optuna.Trial, params: Params, splits: Mapping[str, SplitData], out: Path, parent: str) -> float:
    folder = out / "checkpoints" / training_fingerprint(params)
    tags = run_tags(params) | {"mlflow.runName": f"trial {trial.number}", PARENT: parent}

    def note(values: Mapping[str, float], epoch: int) -> None:
        trial.report(values["map"], epoch)
        if trial.should_prune() and epoch + 1 < params.train.epochs:
            raise _Pruned(f"after epoch {epoch + 1}")

    with run_of(folder, tags) as run:
        trial.set_user_attr("run_id", run.run_id)
        run.log_params(params.model_dump(mode="json"))
        trainer = make_trainer(params, splits, folder)
        trainer.resume()
        pruned: _Pruned | None = None
        try:
            with run.stopping.deferred():
                best = trainer.fit(epoch_hooks(run, splits["val"], note))
        except _Pruned as error:
            pruned = error  # for MLflow the run ends normally
            run.set_tags({"sweep.pruned": "true"})
        except UserError:
            shutil.rmtree(folder)
            raise
    shutil.rmtree(folder)  # only interrupted trials are resumed
    if pruned:
        raise pruned
    return best.score


def _say(study: optuna.Study, trial: FrozenTrial) -> None:
    value = _ENDS.get(trial.state) or f"map {trial.value:.3f}"
    chosen = {key: f"{one:.4g}" if isinstance(one, float) else one for key, one in trial.params.items()}
    settings = ", ".join(f"{key} {one}" for key, one in chosen.items())
    logger.info("trial %d: %s; %s; the best so far %.3f", trial.number, value, settings, _best(study))


def _best(study: optuna.Study) -> float:
    values = [trial.value for trial in study.get_trials(states=(TrialState.COMPLETE,)) if trial.value is not None]
    return max(values, default=float("nan"))


def _write(study: optuna.Study, base: Params, out: Path, group: ParentRun) -> Path:
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        raise UserError(f"sweep: none of {len(study.trials)} trials was completed; set more sweep.trials")
    table = study.trials_dataframe(attrs=("number", "value", "state", "params", "user_attrs", "duration"))
    write_text(out / "trials.csv", table.to_csv(index=False))
    for name, picture in plot_sweep(study).items():
        write_atomic(out / f"{name}.png", partial(_put, picture))
    best = suggest(optuna.trial.FixedTrial(study.best_params), base)
    values = best.model_dump(mode="json")
    values["train"]["epochs"] = base.train.epochs
    said = f"val map {study.best_value:.3f} after {base.sweep.epochs} epochs"
    head = f"# The best of {len(study.trials)} trials: {said}.\n"
    write_text(out / BEST, head + yaml.safe_dump(values, sort_keys=False))
    group.log_metrics({"val/map": study.best_value, "trials": len(study.trials)})
    for path in (out / BEST, out / "trials.csv", *out.glob("*.png")):
        group.log_file(path)
    return out / BEST


def _put(content: bytes, path: Path) -> None:
    path.write_bytes(content)
