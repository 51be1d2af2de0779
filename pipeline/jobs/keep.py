"""The results of a run kept where others find them: files in DVC's remote, ``dvc.lock`` and headline in the MLflow run.

`keep` sends them there, and `restore` brings them into a clone on another machine.
"""

from collections.abc import Callable
from pathlib import Path

from pipeline import provenance
from pipeline.assembly.registration import own_version
from pipeline.dvc.command import changed, run_dvc
from pipeline.dvc.remote import remote_elsewhere
from pipeline.errors import UserError
from pipeline.files import temporary_folder, write_text
from pipeline.paths import HEADLINE, MODELS, REPORTS
from pipeline.tracking import download_artifact, log_artifact, read_tags, resolve_version

LOCK = Path("dvc.lock")


def keep(tell: Callable[[str], None]) -> None:
    """Push the outputs of all stages to DVC's default remote, and add ``dvc.lock`` to the model's MLflow run.

    Nothing is pushed if the remote lies in this folder, as that of the sample does.

    Raises:
        UserError: there are no results, or the remote or MLflow does not accept them.
    """
    run_id = own_version(MODELS, REPORTS).run_id
    place = remote_elsewhere()
    if place is None:
        tell("DVC has no default remote outside this folder: the files of this run are here only")
    else:
        run_dvc(["push"], tell)
        tell(f"the files of this run are in {place}; `pneumoflow restore {run_id}` brings them into another clone")
    log_artifact(run_id, LOCK)


def restore(model: str, tell: Callable[[str], None], *, force: bool = False) -> None:
    """Bring the files of the run that made ``model`` into this folder: its id, or an address such as ``models:/...``.

    With ``force``, a ``dvc.lock`` of this folder that names other files is replaced.

    Raises:
        UserError: there is no such run, it or the remote lacks a file, or this folder has another ``dvc.lock``.
    """
    version = resolve_version(model)
    run_id = str(version.run_id) if version else model
    with temporary_folder() as folder:
        lock, headline = (
            download_artifact(run_id, name, folder).read_text(encoding="utf-8") for name in (LOCK.name, HEADLINE)
        )
    if LOCK.exists() and LOCK.read_text(encoding="utf-8") != lock and not force:
        raise UserError(f"{LOCK}: names the results of another run; commit it first, then --force replaces it")
    write_text(LOCK, lock)
    write_text(REPORTS / HEADLINE, headline)
    run_dvc(["pull"], tell)
    _compare(run_id, tell)


def _compare(run_id: str, tell: Callable[[str], None]) -> None:
    """Tell whether code, params and data of this folder are those that made the run."""
    if not (stages := sorted(changed())):
        tell("data, params and code are those that made it: `dvc repro` has nothing to do")
        return
    made, here = read_tags(run_id).get("git_commit", "unknown"), provenance.git_state()["git_commit"]
    cure = f"; it was made by commit {made}, this folder has {here}" if made != here else ""
    tell(f"`dvc repro` would run again, because something differs: {', '.join(stages)}{cure}")
