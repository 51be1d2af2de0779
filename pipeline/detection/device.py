"""The device and the precision that a model runs with, and its compilation."""

import logging
import os
import platform
import shutil
import sys
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import nn

from pipeline.detection.malloc import keep_freed_memory
from pipeline.errors import UserError

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=nn.Module)


def world_size() -> int:
    """Return the number of processes that torchrun has started for this run; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def emulates_bf16() -> bool:
    """Return whether this CPU has no instructions for bf16: x86 without AVX-512.

    A training step in bf16 then takes about eight times as long as one in float32.
    """
    return platform.machine() in ("x86_64", "AMD64") and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


def used_precision(accelerator: str, precision: str) -> str:
    """Return the precision that a run uses: ``precision``, but float32 for bf16 on a CPU that only emulates it."""
    on_cpu = accelerator == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    return "32-true" if precision == "bf16-mixed" and on_cpu and emulates_bf16() else precision


def make_fabric(accelerator: str, precision: str, *, alone: bool = False) -> Fabric:
    """Make and launch Fabric, with one device for each of torchrun's processes.

    Args:
        accelerator: ``auto`` (CUDA or MPS if there is one, else the CPU), ``cpu``, ``cuda`` or ``mps``.
        precision: ``32-true``, ``tf32`` (float32, but CUDA's matrix units use 10 bits of its fraction),
            ``bf16-mixed`` (see `used_precision`) or ``16-mixed``.
        alone: leave out the other processes, if there are any.

    Raises:
        UserError: the requested accelerator is not available.
    """
    # Fabric casts the model's inputs and outputs; its own messages are of no use to users.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    if (used := used_precision(accelerator, precision)) != precision:
        logger.warning("train.precision = %s: this CPU only emulates it; training in %s", precision, used)
        precision = used
    set_tf32(precision == "tf32")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    shared = world_size() > 1 and not alone
    rest: dict[str, Any] = (
        {"devices": local, "num_nodes": world_size() // local, "strategy": "ddp"}
        if shared
        else {"devices": 1, "plugins": [LightningEnvironment()]}
    )
    try:
        fabric = Fabric(accelerator=accelerator, precision=precision.replace("tf32", "32-true"), **rest)  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        raise UserError(f"train.accelerator = {accelerator!r}: {' '.join(str(error).split())}") from None
    fabric.launch()
    if shared and fabric.device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local))  # otherwise each process would use all cores
    return fabric


def place(model: Model, device: torch.device) -> Model:
    """Move a model to the device where it is to detect; on a CPU, arrange weights and memory for speed there."""
    if device.type == "cpu":
        keep_freed_memory()
        model = model.to(memory_format=torch.channels_last)
    return model.to(device)


def set_tf32(allowed: bool) -> None:
    """Allow or forbid CUDA to shorten float32 to TF32; torch's default allows it for convolutions only."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether a collective operation failed because another process is gone."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()


def compile_whole(module: nn.Module, *, cuda_graphs: bool = False) -> None:
    """Compile ``module`` in place, as one graph for each shape of its inputs.

    With ``cuda_graphs`` a GPU also replays the kernels of a pass as one launch; an output then holds only until the
    module is called again.

    Raises:
        UserError: there is no C++ compiler, which the compiled code needs on a CPU.
    """
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if not torch.cuda.is_available() and shutil.which(compiler) is None:
        raise UserError(
            f"train.compile = true: needs the C++ compiler {compiler}, which is not there; install one, name another"
            " in CXX, or set train.compile: false"
        )
    # On a CPU the box loss selects its anchors; their number depends on the data, which this lets the graph contain.
    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    module.compile(fullgraph=True, dynamic=False, mode="reduce-overhead" if cuda_graphs else None)
