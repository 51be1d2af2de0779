"""Load and memory of CPU and GPU during a run, as MLflow's monitors measure them."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

_FIRST_SECONDS, _SECONDS = 1.0, 10
Note = Callable[[Mapping[str, float | None], int], None]


class _Monitor(SystemMetricsMonitor):
    """A monitor that measures like MLflow's, but delivers by ``note``: MLflow's ends at the first server error."""

    def __init__(self, run_id: str, note: Note, first_step: int) -> None:
        super().__init__(run_id, sampling_interval=_SECONDS)  # type: ignore[no-untyped-call]
        self._note, self._step = note, first_step

    def monitor(self) -> None:
        """Measure until the monitor is told to stop."""
        pause = min(_FIRST_SECONDS, self.sampling_interval)
        while not self._shutdown_event.wait(pause):
            self.collect_metrics()  # type: ignore[no-untyped-call]
            measured = self.aggregate_metrics()  # type: ignore[no-untyped-call]
            self._note({f"system/{key}": value for key, value in measured.items()}, self._step)
            for one in self.monitors:
                one.clear_metrics()
            self._step += 1
            pause = self.sampling_interval


@contextmanager
def measure_system(run_id: str, note: Note, first_step: int) -> Iterator[None]:
    """Give ``note`` numbered measurements inside the block: one second after its start, then every ten seconds."""
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # it logs that there is no GPU
    monitor = _Monitor(run_id, note, first_step)
    monitor.start()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        monitor.finish()  # type: ignore[no-untyped-call]
