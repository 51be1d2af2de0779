"""A reader of safetensors files that may be damaged: it checks the header, then that all values are finite."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import UserError
from pipeline.escaping import one_line

# A header takes about 100 bytes per tensor: thousands of tensors fit.
_MAX_HEADER_BYTES = 2**22
_TYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


class Layout(NamedTuple):
    """The type and shape of a tensor."""

    dtype: torch.dtype | None
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


def read_layouts(path: Path) -> dict[str, Layout]:
    """Read name -> layout of the tensors in a file, from its header alone.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not a safetensors file, or it is damaged.
    """
    with _named_errors(path):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > _MAX_HEADER_BYTES:
            raise UserError(f"{path}: damaged: its header says that it has {size} bytes, at most {_MAX_HEADER_BYTES}")
        with safe_open(path, "pt") as content:
            slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118 - it is no dict
            return {name: Layout(_TYPES.get(one.get_dtype()), tuple(one.get_shape())) for name, one in slices.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors in a file onto the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not a safetensors file, it is damaged, or a value is not finite.
    """
    read_layouts(path)
    with _named_errors(path):
        weights = load_file(path)
    require_finite(weights, str(path))
    return weights


def require_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights with a NaN or an infinity, because they make a model that silently finds nothing.

    Raises:
        UserError: there are such weights; the message names the first such tensor, after ``source``.
    """
    for name, value in weights.items():
        # The sum is not finite if a value is not, and costs less; it can also overflow, so a second check follows.
        if value.is_floating_point() and not value.sum().isfinite():
            bad = int((~value.isfinite()).sum())
            if bad:
                raise UserError(f"{source}: {one_line(name)} has {bad} of {value.numel()} values that are not finite")


def require_layouts(stored: Mapping[str, Layout], model: torch.nn.Module, source: str) -> None:
    """Refuse weights that are not exactly those of ``model``.

    Raises:
        UserError: a tensor is missing, unknown, or has another shape or type.
    """
    wanted = {name: Layout(value.dtype, tuple(value.shape)) for name, value in model.state_dict().items()}
    for name, layout in wanted.items():
        if name not in stored:
            raise UserError(f"{source}: {name} ({layout}) is missing")
        if stored[name] != layout:
            raise UserError(f"{source}: {name} is {stored[name]}, must be {layout}")
    for name in stored:
        if name not in wanted:
            raise UserError(f"{source}: {one_line(name)} is not in the model")


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"{path}: damaged, or not a safetensors file: {one_line(str(error))}") from None
