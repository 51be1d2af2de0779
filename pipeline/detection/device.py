"""Where and how a model runs: the device, and compiled code."""

import logging
import os
import shutil
import sys

import torch
from lightning_fabric import Fabric
from torch import nn

from pipeline.errors import UserError


def make_fabric(accelerator: str, precision: str) -> Fabric:
    """A single-device Fabric: CUDA or MPS where there is one, else the CPU.

    Raises:
        UserError: the asked accelerator is not there.
    """
    # Fabric casts what enters and leaves the model; its own messages are of no use to users.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        raise UserError(f"train.accelerator = {accelerator!r}: {' '.join(str(error).split())}") from None
    fabric.launch()
    return fabric


def compile_whole(module: nn.Module) -> None:
    """Compile ``module`` in place, as one graph.

    Raises:
        UserError: there is no C++ compiler, which the compiled code needs on a CPU.
    """
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if not torch.cuda.is_available() and shutil.which(compiler) is None:
        raise UserError(
            f"train.compile = true: needs the C++ compiler {compiler}, which is not there; install one, name another"
            " in CXX, or set train.compile: false"
        )
    # On a CPU the box loss picks its anchors: how many there are is in the data, and the graph may say so.
    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    module.compile(fullgraph=True)
