"""The variables by which torchrun tells a process its rank among others; trusted only if torchrun set them."""

import logging
import os

logger = logging.getLogger(__name__)

_SET_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"
_VARIABLES = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


def rank() -> int:
    """Return the number of this process among those of its run; 0 without torchrun."""
    return int(os.environ["RANK"]) if _SET_BY_TORCHRUN in os.environ else 0


def forget_stray_ranks() -> None:
    """Remove the variables if torchrun did not set them.

    Left in a shell, they make a process wait for others that do not exist, or stay silent as if it were the second
    of two.
    """
    stray = [name for name in _VARIABLES if name in os.environ]
    if stray and _SET_BY_TORCHRUN not in os.environ:
        logger.warning("ignored: %s set in the environment, but not by torchrun", ", ".join(stray))
        for name in stray:
            del os.environ[name]
