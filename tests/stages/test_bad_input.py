"""Mistakes of users, given to the command that DVC runs."""

import os
import shutil

import pandas as pd
import pytest
import yaml

from pipeline.data.annotations import CLASSES, GROUPS, IMAGES, LABELS

STAGE = "pipeline.stages.preprocess"


@pytest.fixture
def stage(rsna, small_params, write_params, run, tmp_path):
    """Return a function that runs preprocess with changed params: ``stage(data={...})``."""

    def call(name=STAGE, **sections):
        for section, values in sections.items():
            small_params[section] |= values
        write_params(small_params)
        return run(name, cwd=tmp_path)

    return call


def quarantine(tmp_path):
    return pd.read_csv(tmp_path / "reports/quarantine.csv").set_index("patientId")["reason"].to_dict()


def studies(rsna, count):
    return sorted(path.stem for path in (rsna / IMAGES).iterdir())[:count]


def test_a_good_data_set(stage, tmp_path):
    done = stage()
    assert done.returncode == 0, done.stderr
    assert "prepared 60 studies, quarantined 0" in done.stderr
    assert quarantine(tmp_path) == {}
    index = pd.read_csv(tmp_path / "data/prepared/index.csv")
    assert len(index) == 60
    assert index["shard"].nunique() == 4


def test_a_missing_folder(stage, rsna, one_line_error, tmp_path):
    shutil.rmtree(rsna)
    one_line_error(stage(), "data/rsna", "no such folder", "dvc pull")
    assert not (tmp_path / "data/prepared").exists()


def test_an_empty_folder(stage, rsna, one_line_error):
    shutil.rmtree(rsna)
    rsna.mkdir()
    one_line_error(stage(), LABELS, "no such file")


def test_a_folder_without_images(stage, rsna, one_line_error):
    shutil.rmtree(rsna / IMAGES)
    one_line_error(stage(), IMAGES, "no DICOM, PNG or JPEG files; the folder contains: nothing")


def test_a_missing_column(stage, rsna, one_line_error):
    table = pd.read_csv(rsna / LABELS).drop(columns="width")
    table.to_csv(rsna / LABELS, index=False)
    one_line_error(stage(), LABELS, "'width' is missing")


def test_an_unknown_key(stage, one_line_error):
    one_line_error(stage(loss={"gama": 2}), "loss.gama = 2: unknown key")


def test_no_params_file(run, tmp_path, one_line_error):
    one_line_error(run(STAGE, cwd=tmp_path), "params.yaml: not found")


def break_studies(rsna, kind, keys):
    labels = pd.read_csv(rsna / LABELS, dtype=str, keep_default_na=False)
    for key in keys:
        path = rsna / IMAGES / f"{key}.dcm"
        if kind == "outside":
            labels = labels[labels["patientId"] != key]
            row = {"patientId": key, "x": "100", "y": "10", "width": "60", "height": "20", "Target": "1"}
            labels = pd.concat([labels, pd.DataFrame([row])])
        elif kind == "corrupt":
            path.write_bytes(os.urandom(3000))
        elif kind == "truncated":
            path.write_bytes(path.read_bytes()[:2000])
        elif kind == "no image":
            path.unlink()
        else:
            labels = labels[labels["patientId"] != key]
    labels.to_csv(rsna / LABELS, index=False)
    for name in (CLASSES, GROUPS):
        (rsna / name).unlink(missing_ok=True)


REASONS = {
    "outside": "reaches outside the image of 128 x 128",
    "corrupt": "the file cannot be used: ",
    "truncated": "the file cannot be used: ",
    "no image": "no image",
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_few_bad_studies_are_quarantined(stage, rsna, tmp_path, kind):
    keys = studies(rsna, 2)
    break_studies(rsna, kind, keys)
    done = stage(data={"max_bad_fraction": 0.05})
    assert done.returncode == 0, done.stderr
    found = quarantine(tmp_path)
    assert sorted(found) == keys
    assert all(REASONS[kind] in reason for reason in found.values())
    assert not set(pd.read_csv(tmp_path / "data/prepared/index.csv")["patientId"]) & set(keys)


@pytest.mark.parametrize("kind", ["corrupt", "no image"])
def test_too_many_bad_studies_stop_and_lose_nothing(stage, rsna, tmp_path, one_line_error, kind):
    assert stage().returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "data/prepared").iterdir()}
    keys = studies(rsna, 4)
    break_studies(rsna, kind, keys)
    one_line_error(
        stage(data={"max_bad_fraction": 0.05}), "4 of 60", "data.max_bad_fraction = 0.05 allows 3", "quarantine.csv"
    )
    assert sorted(quarantine(tmp_path)) == keys
    assert {path: path.read_bytes() for path in (tmp_path / "data/prepared").iterdir()} == before
    assert not [path for path in (tmp_path / "data").iterdir() if path.name.endswith(".tmp")]


def test_an_unwritable_output_folder(stage, tmp_path, one_line_error):
    """A file is where a folder must be, because root may write anywhere else."""
    (tmp_path / "reports").write_text("in the way")
    one_line_error(stage(), "reports")
    assert not (tmp_path / "data/prepared").exists()


@pytest.mark.long
def test_stages_out_of_order(stage, one_line_error):
    one_line_error(stage("pipeline.stages.split"), "index.csv: no such file", "dvc repro preprocess")
    one_line_error(stage("pipeline.stages.train"), "index.csv: no such file")
    assert stage().returncode == 0
    one_line_error(stage("pipeline.stages.train"), "splits.csv: no such file", "dvc repro split")
    assert stage("pipeline.stages.split").returncode == 0
    one_line_error(stage("pipeline.stages.evaluate"), "mlflow_run.json: no such file", "dvc repro train")


def test_more_workers_give_the_same_bytes(stage, tmp_path):
    contents = []
    for workers in (1, 2):
        assert stage(preprocess={"workers": workers}).returncode == 0
        folder = tmp_path / "data/prepared"
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]


def test_check_lists_what_is_wrong(rsna, run, one_line_error):
    done = run("pipeline.cli", "check", rsna, "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "studies: 60 of" in done.stdout
    assert "boxes: " in done.stdout
    keys = studies(rsna, 2)
    break_studies(rsna, "truncated", keys)
    done = run("pipeline.cli", "check", rsna, "--workers", "1")
    one_line_error(done, "2 unusable studies")
    assert all(f"{key}: " in done.stdout for key in keys)
    assert run("pipeline.cli", "check").returncode == 2


def test_the_real_profile_trains_a_step(repository, small_params, rsna, write_params, tmp_path):
    """profiles/rsna.yaml as it is, but for weights that no test can fetch, the GPU, its precision and the run time."""
    from pipeline.assembly.inputs import read_inputs
    from pipeline.assembly.training import architecture_of, build_trainer
    from pipeline.detection.device import make_fabric
    from pipeline.params import load_params
    from pipeline.stages.preprocess import preprocess
    from pipeline.stages.split import split

    values = yaml.safe_load((repository / "profiles/rsna.yaml").read_text())
    values["preprocess"]["workers"] = 1
    values["model"] |= {"weights": "none", "frozen_stages": 0}
    # On a CPU that only emulates bf16, one step at this size takes minutes.
    cpu = {"accelerator": "cpu", "precision": "32-true", "workers": 0}
    values["train"] |= cpu | {"epochs": 1, "batch_size": 1, "log_every_steps": 1}
    params = load_params(write_params(values))
    preprocess(params)
    split(params)
    parts = read_inputs(params)
    architecture = architecture_of(params, parts["train"])
    fabric = make_fabric("cpu", params.train.precision)
    trainer = build_trainer(params, fabric, architecture, parts["train"], parts["val"], tmp_path / "checkpoints")
    batches = next(trainer.batches.groups(0, 0))
    assert batches[0].images.shape == (1, 1, 1024, 1024)
    metrics = trainer.train_step.step(batches, 0.001)
    assert 0 < float(metrics["train/loss"]) < 100


def test_every_study_is_prepared_once_per_shard_order(stage, rsna, tmp_path):
    """Studies added at the end leave the full shards before them as they were."""
    assert stage().returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "data/prepared").glob("*.npy")}
    new = "added-later"
    shutil.copy(next((rsna / IMAGES).iterdir()), rsna / IMAGES / f"{new}.dcm")
    for name, line in ((LABELS, f"{new},,,,,0"), (CLASSES, f"{new},Normal"), (GROUPS, f"{new},{new}")):
        with (rsna / name).open("a") as file:
            file.write(line + "\n")
    assert stage().returncode == 0
    after = {path.name: path.read_bytes() for path in (tmp_path / "data/prepared").glob("*.npy")}
    assert [name for name in before if before[name] != after[name]] == ["images-00003.npy"]


@pytest.mark.long
def test_images_of_other_params_are_not_trained_on(stage, small_params, write_params, run, tmp_path, one_line_error):
    assert stage().returncode == 0
    assert run("pipeline.stages.split", cwd=tmp_path).returncode == 0
    small_params["preprocess"]["image_size"] = 256
    write_params(small_params)
    done = run("pipeline.stages.train", cwd=tmp_path)
    one_line_error(done, "data/prepared: has images of 128 pixels and 1 channels, but preprocess.image_size is 256")
    assert not (tmp_path / "mlflow.db").exists()
