"""Bounds on network outputs of any finite size, for losses that stay finite: sums of squares of 1e38 do not."""

import torch
from torch import Tensor

# Far beyond any ordinary output: exp(-1e4) is 0 in any floating-point type.
LOGIT_LIMIT = 1e4


def bounded(values: Tensor, limit: float) -> Tensor:
    """Clamp values, as float32 or wider, to at most ``limit`` away from 0; gradients pass as if nothing were cut off.

    With `clamp` alone, an output beyond the limit would have no gradient and never come back.
    """
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    return wide.detach().clamp(-limit, limit) + (wide - wide.detach())
