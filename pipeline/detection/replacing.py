"""Replacement of convolutions in a network that others have built."""

from collections.abc import Callable

from torch import nn


def replace_convolutions(
    body: nn.Module, fits: Callable[[nn.Module], bool], make: Callable[[nn.Conv2d], nn.Module]
) -> None:
    """Replace each convolution in ``body`` for which ``fits`` is true by what ``make`` makes of it.

    Names and values of the parameters stay if the new module has ``weight`` and ``bias`` of the old one.
    """
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and fits(child):
                setattr(parent, name, make(child))
