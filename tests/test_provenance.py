import subprocess

from pipeline.provenance import fingerprint, git_state, input_hashes


def test_fingerprint_covers_values_names_and_bytes(tmp_path):
    file = tmp_path / "a.npy"
    file.write_bytes(b"1")
    first = fingerprint({"lr": 1}, [file])
    assert first == fingerprint({"lr": 1}, [file])
    assert first != fingerprint({"lr": 2}, [file])
    file.write_bytes(b"2")
    assert first != fingerprint({"lr": 1}, [file])


def test_git_state(tmp_path):
    assert git_state() == {"git_commit": "unknown", "git_dirty": "unknown"}
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    state = git_state()
    assert len(state["git_commit"]) == 40
    assert state["git_dirty"] == "false"
    (tmp_path / "dvc.lock").write_text("DVC writes it while it runs")
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/metrics.json").write_text("and a stage writes this")
    subprocess.run([*git, "add", "dvc.lock", "reports"], check=True)
    assert git_state()["git_dirty"] == "false"
    (tmp_path / "a").write_text("2")
    assert git_state()["git_dirty"] == "true"


def test_input_hashes_name_the_data_and_not_the_outputs(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rsna.dvc").write_text("outs:\n- md5: aa.dir\n  path: rsna\n")
    (tmp_path / "dvc.lock").write_text(
        "stages:\n  split:\n    outs:\n    - path: data/splits.csv\n      md5: bb\n"
        "  train:\n    outs:\n    - path: models/model.json\n      md5: cc\n"
    )
    assert input_hashes("data/rsna") == {"data/rsna": "aa.dir", "data/splits.csv": "bb"}
    # Of a folder that nobody has recorded nothing is known, least of all another one's hash.
    assert input_hashes("/mnt/disk") == {"data/splits.csv": "bb"}
    with (tmp_path / "dvc.lock").open("a") as lock:
        lock.write("  preprocess:\n    deps:\n    - path: /mnt/disk\n      md5: dd.dir\n")
    assert input_hashes("/mnt/other/../disk") == {"/mnt/other/../disk": "dd.dir", "data/splits.csv": "bb"}
    assert input_hashes("data/rsna") == {"data/rsna": "aa.dir", "data/splits.csv": "bb"}
