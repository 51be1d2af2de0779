"""The forward and the backward pass of a batch, whole or in parts."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn

from pipeline.detection.dataset import Batch
from pipeline.detection.losses import Totals
from pipeline.detection.parts import map_parts, one_core, part_count
from pipeline.detection.retinanet import HeadOutputs
from pipeline.training.network_with_losses import NetworkWithLosses, Values

# Smaller parts make a step slower on an idle machine.
_LEAST_IMAGES = 2


class Pass(NamedTuple):
    """The losses of a forward pass, and the function that adds the gradients of one to the parameters."""

    values: Values
    backward: Callable[[Tensor], None]


class _Part(NamedTuple):
    """Some images of a batch; ``factors`` are theirs of `RetinaNet.draw_dropout`."""

    images: Tensor
    factors: Sequence[Tensor] | None


class Passes:
    """The passes of a network in training: of a batch in parts, one per core of a CPU, or of all of it at once.

    ``module`` wraps a `NetworkWithLosses`; if it is ``compiled``, the batch stays whole.
    """

    def __init__(self, fabric: Fabric, module: _FabricModule, batch_size: int, *, compiled: bool) -> None:
        self._fabric, self._module = fabric, module
        self._inner = cast(NetworkWithLosses, module.module)
        self._network = self._inner.network
        scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
        # A compiled network, gradients that are scaled, and those that processes exchange need the whole batch. So do
        # random numbers, which parts would draw in any order.
        whole = compiled or scaled or fabric.world_size > 1 or _draws_random_numbers(self._network)
        self._count = 1 if whole else part_count(batch_size, fabric.device, _LEAST_IMAGES)
        self._cores = torch.get_num_threads()

    def rest_on_one_core(self) -> AbstractContextManager[None]:
        """Return a context for a step, in which only the passes in parts use more than one core."""
        return one_core() if self._count > 1 else nullcontext()

    def forward(self, batch: Batch, totals: Totals | None = None) -> Pass:
        """Run the network and the losses; ``totals`` are the counts of a step of which the batch is only a part."""
        images, count = batch.images, self._count
        factors, truth = self._network.draw_dropout(images), self._inner.truth(batch, totals)
        if count == 1:
            return Pass(self._module(images, factors, *truth), self._fabric.backward)
        shares = zip(*(one.tensor_split(count) for one in factors), strict=True) if factors else [None] * count
        parts = [_Part(*pair) for pair in zip(images.tensor_split(count), shares, strict=True)]
        outputs, add_gradients = self._in_parts(parts)

        def backward(loss: Tensor) -> None:
            self._fabric.backward(loss)
            add_gradients()

        return Pass(self._inner.losses(outputs, *truth), backward)

    def _in_parts(self, parts: Sequence[_Part]) -> tuple[HeadOutputs, Callable[[], None]]:
        """Return the outputs, float32, and the function that takes their gradients back into each part."""
        with self._fabric.autocast():
            ends = map_parts(lambda part: self._network(part.images, dropout_factors=part.factors), parts, self._cores)
        # The losses take the whole batch.
        outputs = _joined([end.map(Tensor.detach) for end in ends]).map(lambda one: one.float().requires_grad_())
        return outputs, lambda: self._add_gradients([end.tensors() for end in ends], outputs.tensors())

    def _add_gradients(self, ends: Sequence[Sequence[Tensor]], outputs: Sequence[Tensor]) -> None:
        """Add the gradients of all parts to the parameters, in the parts' order.

        ``ends`` are the parts of ``outputs``, which have gradients.
        """
        parameters = [one for one in self._network.parameters() if one.requires_grad]
        upstream = zip(*(_gradient(one).tensor_split(len(ends)) for one in outputs), strict=True)

        def gradients(part: tuple[Sequence[Tensor], Sequence[Tensor]]) -> tuple[Tensor | None, ...]:
            end, given = part
            given = [gradient.to(one.dtype) for gradient, one in zip(given, end, strict=True)]
            return torch.autograd.grad(end, parameters, given, allow_unused=True)

        for found in map_parts(gradients, list(zip(ends, upstream, strict=True)), self._cores):
            for parameter, gradient in zip(parameters, found, strict=True):
                if gradient is None:
                    continue
                if parameter.grad is None:
                    parameter.grad = gradient
                else:
                    parameter.grad += gradient


def _joined(parts: Sequence[HeadOutputs]) -> HeadOutputs:
    """Return the outputs of all parts as those of one batch."""
    columns = zip(*parts, strict=True)
    return HeadOutputs(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


def _gradient(output: Tensor) -> Tensor:
    return torch.zeros_like(output) if output.grad is None else output.grad


def _draws_random_numbers(network: nn.Module) -> bool:
    """Return whether a module of the network has a random mode, such as the stochastic depth of some backbones."""
    return any(
        (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0) or getattr(module, "drop_prob", 0)
        for module in network.modules()
    )
