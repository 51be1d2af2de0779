import json
import os

import pytest
import torch

from pipeline.detection.checkpoint import (
    DamagedCheckpointError,
    drop_bests,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)


def save(folder, step):
    save_checkpoint(folder, step, {"model": {"w": torch.full((100,), float(step))}}, {"epoch": step, "lr": [0.1]})


def test_the_last_two_are_kept_whole(tmp_path):
    for step in (5, 10, 15):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]
    weights, state = load_checkpoint(tmp_path)
    assert torch.equal(weights["model"]["w"], torch.full((100,), 15.0))
    assert state == {"epoch": 15, "lr": [0.1]}
    assert load_checkpoint(tmp_path / "nothing") is None


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def tamper(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, tamper, os.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "manifest.json"])
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path, caplog, damage, name):
    save(tmp_path, 5)
    save(tmp_path, 10)
    damage(tmp_path / "step-00000010" / name)
    assert load_checkpoint(tmp_path)[1]["epoch"] == 5
    assert f"{tmp_path}/step-00000010: " in caplog.text
    assert (name if damage is not tamper or name != "manifest.json" else "SHA-256") in caplog.text
    assert "trying the one before" in caplog.text


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    save(tmp_path, 5)
    (tmp_path / ".step-00000010.tmp").mkdir()
    (tmp_path / ".step-00000010.tmp" / "model.safetensors").write_bytes(b"half")
    assert load_checkpoint(tmp_path)[1]["epoch"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_one_that_carries_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    save(tmp_path, 5)
    save(tmp_path, 10)
    folder = tmp_path / "step-00000010"
    torch.save({"epoch": Evil()}, folder / "state.pt")
    # Whoever can write the file can write its digest too.
    from pipeline.detection.checkpoint import _digest

    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"state.pt": _digest(folder / "state.pt")}))
    assert load_checkpoint(tmp_path)[1]["epoch"] == 5
    assert not (tmp_path / "pwned").exists()


def test_best_weights(tmp_path):
    for epoch in range(3):
        save_best(tmp_path, epoch, {"w": torch.ones(3) * epoch})
    drop_bests(tmp_path, {1, 2})
    assert torch.equal(load_best(tmp_path, 2)["w"], torch.ones(3) * 2)
    with pytest.raises(DamagedCheckpointError, match="best-0000.json or a file that it names"):
        load_best(tmp_path, 0)
    tamper(tmp_path / "best-0001.safetensors")
    with pytest.raises(DamagedCheckpointError, match="best-0001.safetensors is not as it was written"):
        load_best(tmp_path, 1)
