"""Two processes never write the outputs of one stage at once, no matter how they were started."""

import os

import pytest

from pipeline.folder_lock import only_run_of


@pytest.mark.parametrize("stage", ["preprocess", "split", "train", pytest.param("evaluate", marks=pytest.mark.long)])
def test_a_second_run_of_a_stage_says_who_is_at_work(stage, run, write_params, small_params, tmp_path, one_line_error):
    write_params(small_params)
    with only_run_of(stage):
        done = run(f"pipeline.stages.{stage}", cwd=tmp_path)
    one_line_error(
        done, f".pneumoflow/stages/{stage}.lock", f"run of stage {stage}", f"process {os.getpid()}, since 20"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [".pneumoflow", "params.yaml"]


def test_stages_of_other_folders_and_names_run(run, write_params, small_params, tmp_path, rsna):
    write_params(small_params)
    with only_run_of("train"):
        assert run("pipeline.stages.preprocess", cwd=tmp_path).returncode == 0
