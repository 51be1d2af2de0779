"""A profile of the time that training steps take, by operator."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, schedule

PROFILE = "profile"
_ROWS = 40


@contextmanager
def profiled(steps: int, folder: Path) -> Iterator[Callable[[], None]]:
    """Profile ``steps`` steps after the first two; call the yielded function after each step.

    Two files are written into ``folder``: ``operators.txt``, the operators that take most of the time, and
    ``trace.json``, which chrome://tracing and Perfetto show. With 0 steps nothing happens.
    """
    if steps == 0:
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]

    def write(profiled_steps: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        table = profiled_steps.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=_ROWS)
        (folder / "operators.txt").write_text(table, encoding="utf-8")
        profiled_steps.export_chrome_trace(str(folder / "trace.json"))

    # Also the threads in which the parts of a batch run, see `pipeline.detection.parts`.
    everywhere = _ExperimentalConfig(profile_all_threads=True)
    steps_to_record = schedule(wait=1, warmup=1, active=steps, repeat=1)
    with profile(
        activities=activities, schedule=steps_to_record, on_trace_ready=write, experimental_config=everywhere
    ) as running:
        yield running.step
