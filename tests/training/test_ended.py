from pipeline.training.ended import ENDED, drop_ended


def folder(checkpoints, name, ended):
    made = checkpoints / name / "step-0000010"
    made.mkdir(parents=True)
    (made / "state.pt").write_text("state")
    if ended:
        (made.parent / ENDED).write_text("{}")
    return made.parent


def test_only_ended_trainings_of_other_params_are_removed(tmp_path):
    kept = [folder(tmp_path, "own", ended=True), folder(tmp_path, "interrupted", ended=False)]
    folder(tmp_path, "other", ended=True)
    folder(tmp_path, "killed.removed", ended=False)  # left by a process that was killed while it removed it
    drop_ended(tmp_path, except_for=tmp_path / "own")
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    drop_ended(tmp_path / "none", except_for=tmp_path / "own")
