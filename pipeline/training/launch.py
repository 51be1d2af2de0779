"""The launch of several processes for one training run, by torchrun's agent in this process."""

import logging
import os
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.errors import Killed, UserError


def launch(module: str, arguments: Sequence[str], processes: int, restarts: int) -> None:
    """Run ``python -m module`` with ``arguments`` in ``processes`` processes, as ``torchrun --standalone`` does.

    When one of them dies, the others are ended, and all are started again, at most ``restarts`` times.

    Raises:
        UserError: a process was ended by a signal, after the last restart.
        SystemExit: a process failed, and has reported the reason.
        Killed: this process was asked to end; the others have ended.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it logs tracebacks; a line is enough
    # Otherwise restarted processes find the addresses of their predecessors in the agent's store.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",  # where the processes meet; other machines need no access
        max_restarts=restarts,
        monitor_interval=0.5,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise UserError(f"process {rank} of {processes} was ended by signal {-failure.exitcode}") from None
        raise SystemExit(failure.exitcode) from None
    except SignalException as error:
        raise Killed(str(error)) from None
