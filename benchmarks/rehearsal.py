"""The data path at the size of RSNA: ``python -m benchmarks.rehearsal NEW_FOLDER [STUDIES]``.

It is not part of ``make bench``. It renders STUDIES studies at 256 px (26,684 by default), then times ``check``,
``preprocess`` (once killed half-way and started again, once in one go) and ``split``, and prints the
largest memory of the main process and of any worker. It compares the two results of ``preprocess`` byte by byte, and
times ``dvc repro`` with nothing to do.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import yaml

STUDIES = 26684
ROOT = Path(__file__).resolve().parent.parent
PARTS = Path("data/.prepared.parts")


def main() -> None:
    folder, studies = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else STUDIES
    _make_project(folder)
    os.chdir(folder)
    _timed("sample", ["pipeline.cli", "sample", "data/rsna", "--studies", str(studies), "--size", "256"])
    _timed("check", ["pipeline.cli", "check", "data/rsna"])
    _killed_half_way(studies)
    _timed("preprocess, the second half", ["pipeline.stages.preprocess"])
    resumed = _digests()
    shutil.rmtree("data/prepared")
    _timed("preprocess, in one go", ["pipeline.stages.preprocess"])
    print("byte-identical:", _digests() == resumed, flush=True)
    _timed("split", ["pipeline.stages.split"])
    _dvc()


def _make_project(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("pipeline", "dvc.yaml", "pyproject.toml", ".dvcignore"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    params = yaml.safe_load((ROOT / "profiles/sample.yaml").read_text())
    params["preprocess"]["image_size"] = 256
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def _timed(name: str, command: list[str]) -> None:
    """Run a command to its end; print its seconds and the peak memory of it and of its largest descendant."""
    started = time.perf_counter()
    process = psutil.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL)
    peaks = {"main": 0.0, "worker": 0.0}
    watch = threading.Thread(target=_watch, args=(process, peaks))
    watch.start()
    code = process.wait()
    watch.join()
    seconds = time.perf_counter() - started
    memory = f"main {peaks['main']:.0f} MiB, largest worker {peaks['worker']:.0f} MiB"
    print(f"{name}: {seconds:.1f} s, {memory}, exit code {code}", flush=True)


def _watch(process: psutil.Popen, peaks: dict[str, float]) -> None:
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # it may have just ended
            peaks["main"] = max(peaks["main"], process.memory_info().rss / 2**20)
            below = [child.memory_info().rss / 2**20 for child in process.children(recursive=True)]
            peaks["worker"] = max([peaks["worker"], *below])
        time.sleep(0.1)


def _killed_half_way(studies: int) -> None:
    half = studies // 64 // 2
    process = subprocess.Popen([sys.executable, "-m", "pipeline.stages.preprocess"])
    while len(list(PARTS.glob("*.json"))) < half:
        time.sleep(0.05)
    process.kill()
    process.wait()
    time.sleep(1)
    print(f"killed: {len(list(PARTS.glob('*.json')))} shards are done", flush=True)


def _digests() -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path("data/prepared").iterdir())
    }


def _dvc() -> None:
    dvc = [sys.executable, "-m", "dvc"]
    for command in (["git", "init", "-q"], [*dvc, "init", "-q"], [*dvc, "add", "-q", "data/rsna"],
                    [*dvc, "repro", "-q", "split"]):  # fmt: skip
        started = time.perf_counter()
        subprocess.run(command, check=True)
        print(f"{' '.join(command[-3:])}: {time.perf_counter() - started:.1f} s", flush=True)
    for _ in range(3):
        _timed("dvc repro split, nothing to do", ["dvc", "repro", "-q", "split"])


if __name__ == "__main__":
    main()
