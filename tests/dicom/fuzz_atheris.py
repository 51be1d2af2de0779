"""Coverage-guided fuzzing of the reader; run by hand, on Linux, with ``pip install atheris``.

    python -m tests.dicom.fuzz_atheris seeds CORPUS [FILE...]     pydicom's files, and more, as the first inputs
    python -m tests.dicom.fuzz_atheris CORPUS -max_total_time=1200 -rss_limit_mb=3072 -timeout=20

Each input is one file's content. libFuzzer ends with a file ``crash-*``, ``timeout-*`` or ``oom-*`` when an input
raises anything but ``BadStudyError``, crashes a decoder, takes too long or needs too much memory.
"""

import hashlib
import sys
from pathlib import Path

import data_store
import pydicom.data

from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import BadStudyError

# Larger files show the fuzzer nothing more than small ones do, and each run on them takes longer.
_LARGEST_SEED = 64 * 2**10


def write_seeds(corpus: Path, more: list[Path]) -> int:
    """Copy the small DICOM files that come with pydicom, and ``more``, into ``corpus``; return their number."""
    corpus.mkdir(parents=True, exist_ok=True)
    folders = (Path(pydicom.data.__file__).parent / "test_files", Path(data_store.__file__).parent / "data")
    files = [*more, *(path for folder in folders for path in folder.glob("*.dcm"))]
    contents = [path.read_bytes() for path in files if path.stat().st_size <= _LARGEST_SEED]
    for content in contents:
        (corpus / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
    return len(contents)


def read(content: bytes) -> None:
    """Read one input; ``BadStudyError`` is a correct answer, and any other error is a finding."""
    try:
        radiograph = read_radiograph(content)
    except BadStudyError:
        return
    assert radiograph.levels.ndim == 2
    assert radiograph.levels.min() < radiograph.levels.max()


def main() -> None:
    """Write the seeds, or fuzz."""
    if sys.argv[1:2] == ["seeds"]:
        print(write_seeds(Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]]))
        return
    import atheris  # type: ignore[import-not-found, unused-ignore]

    atheris.instrument_all()
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
