import json
import os

import pytest
import torch

from pipeline.errors import UserError
from pipeline.files import _PREFIX, _SUFFIX
from pipeline.training.checkpoint import (
    DamagedCheckpointError,
    drop_bests,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)


def save(folder, step, best=-1):
    state = {"epoch": step, "lr": [0.1], "best": {"epoch": best}}
    save_checkpoint(folder, step, {"model": {"w": torch.full((100,), float(step))}}, state)


def test_the_last_two_are_kept_whole(tmp_path):
    for step in (5, 10, 15):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]
    weights, state, best = load_checkpoint(tmp_path)
    assert torch.equal(weights["model"]["w"], torch.full((100,), 15.0))
    assert state == {"epoch": 15, "lr": [0.1], "best": {"epoch": -1}}
    assert best == {}
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
    assert load_checkpoint(tmp_path).state["epoch"] == 5
    assert f"{tmp_path}/step-00000010: " in caplog.text
    assert (name if damage is not tamper or name != "manifest.json" else "SHA-256") in caplog.text
    assert "trying the checkpoint before it" in caplog.text


def test_one_whose_best_weights_are_damaged_is_passed_over(tmp_path, caplog):
    for step, epoch in ((5, 0), (10, 1)):
        save_best(tmp_path, epoch, {"w": torch.ones(3) * epoch})
        save(tmp_path, step, epoch)
    truncate(tmp_path / "best-0001.safetensors")
    found = load_checkpoint(tmp_path)
    assert (found.state["epoch"], found.best["w"].tolist()) == (5, [0, 0, 0])
    assert "best-0001.safetensors differs from the file that was written" in caplog.text


def test_a_run_of_which_nothing_is_whole_does_not_start_afresh_by_itself(tmp_path):
    save(tmp_path, 5)
    truncate(tmp_path / "step-00000005/state.pt")
    with pytest.raises(UserError, match=f"{tmp_path}: all its checkpoints are damaged; remove this folder"):
        load_checkpoint(tmp_path)


def test_a_full_disk_leaves_the_checkpoint_before(small_disk):
    save(small_disk, 5)
    large = {"w": torch.zeros(500_000)}
    state = {"epoch": 10, "best": {"epoch": -1}}
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_checkpoint(small_disk, 10, {"model": large}, state)
    assert str(small_disk / "step-00000010") in str(caught.value)
    with pytest.raises(OSError, match=r"No space left on device.*best-0001\.safetensors"):
        save_best(small_disk, 1, large)
    # The other part of a checkpoint is written by torch.
    with pytest.raises(OSError, match="No space left on device"):
        save_checkpoint(small_disk, 10, {"model": {}}, state | {"large": large})
    assert [path.name for path in small_disk.iterdir()] == ["step-00000005"]
    assert load_checkpoint(small_disk).state["epoch"] == 5


def test_what_a_killed_process_left_half_written_is_passed_over_and_removed(tmp_path):
    folder = tmp_path / "run"
    (folder / f"{_PREFIX}dead{_SUFFIX}" / "new").mkdir(parents=True)
    (folder / f"{_PREFIX}dead{_SUFFIX}" / "new" / "model.safetensors").write_bytes(b"half")
    assert load_checkpoint(folder) is None
    save(folder, 5)
    assert load_checkpoint(folder).state["epoch"] == 5
    assert [path.name for path in folder.iterdir()] == ["step-00000005"]


def test_one_that_carries_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    save(tmp_path, 5)
    save(tmp_path, 10)
    folder = tmp_path / "step-00000010"
    torch.save({"epoch": Evil()}, folder / "state.pt")
    # An attacker with write access to the file can write its digest too.
    from pipeline.files import sha256_of

    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"state.pt": sha256_of(folder / "state.pt")}))
    assert load_checkpoint(tmp_path).state["epoch"] == 5
    assert not (tmp_path / "pwned").exists()


def test_best_weights(tmp_path):
    for epoch in range(3):
        save_best(tmp_path, epoch, {"w": torch.ones(3) * epoch})
    drop_bests(tmp_path, {1, 2})
    assert torch.equal(load_best(tmp_path, 2)["w"], torch.ones(3) * 2)
    with pytest.raises(DamagedCheckpointError, match="best-0000.json or a file that it names"):
        load_best(tmp_path, 0)
    tamper(tmp_path / "best-0001.safetensors")
    with pytest.raises(DamagedCheckpointError, match="best-0001.safetensors differs from the file that was written"):
        load_best(tmp_path, 1)
