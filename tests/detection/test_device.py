import pytest
import torch

from pipeline.detection import device
from pipeline.detection.device import make_fabric, used_precision


@pytest.fixture
def cpu(monkeypatch):
    """Pretend to be a machine of a certain kind, without a GPU."""

    def pretend(machine, capability):
        monkeypatch.setattr(device.platform, "machine", lambda: machine)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return pretend


@pytest.mark.parametrize(
    ("machine", "capability", "used"),
    [
        ("x86_64", "AVX2", "32-true"), ("AMD64", "DEFAULT", "32-true"), ("x86_64", "AVX512", "bf16-mixed"),
        ("aarch64", "DEFAULT", "bf16-mixed"),
    ],
)  # fmt: skip
def test_bf16_is_used_where_it_is_not_emulated(cpu, machine, capability, used):
    cpu(machine, capability)
    assert used_precision("auto", "bf16-mixed") == used
    assert used_precision("cpu", "bf16-mixed") == used
    assert used_precision("cpu", "32-true") == "32-true"


def test_a_gpu_has_bf16_whatever_the_cpu(cpu, monkeypatch):
    cpu("x86_64", "AVX2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert used_precision("auto", "bf16-mixed") == used_precision("cuda", "bf16-mixed") == "bf16-mixed"
    assert used_precision("cpu", "bf16-mixed") == "32-true"


def test_another_precision_than_asked_for_is_said(cpu, caplog):
    cpu("x86_64", "AVX2")
    fabric = make_fabric("cpu", "bf16-mixed")
    with fabric.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert "train.precision = bf16-mixed: this CPU only emulates it; training in 32-true" in caplog.text
