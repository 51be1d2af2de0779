import resource
import threading

import cv2
import numpy as np
import pytest

from pipeline.data.annotations import IMAGES
from pipeline.data.settings import Preprocessing
from pipeline.data.shards import ShardJob, Study, write_shard
from pipeline.dicom.limits import study_limits
from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import BadStudyError

SOME = 300 * 2**20


def eat():
    return [np.ones(2**20) for _ in range(10_000)]


def eat_in_opencv():
    image = np.zeros((100, 100), np.uint8)
    return [cv2.resize(image, (20_000, 20_000)) for _ in range(50)]


def eat_behind_another_error():
    try:
        eat()
    except MemoryError:
        raise BadStudyError("the pixels cannot be decoded") from None


@pytest.mark.parametrize("hungry", [eat, eat_in_opencv, eat_behind_another_error])
def test_more_memory_than_allowed(hungry):
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(BadStudyError, match="needs more than 300 MiB of memory to read"), study_limits(0, SOME):
        hungry()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert len(np.ones(SOME // 4)) > 0  # the limit is lifted


def test_other_errors_pass():
    for error in (BadStudyError("contains no image"), OSError("gone"), KeyError("bug")):
        with pytest.raises(type(error)) as caught, study_limits(60):
            raise error
        assert caught.value is error


def test_what_is_in_memory_before_does_not_count():
    held = np.ones(SOME // 8)
    with study_limits(0, SOME):
        assert len(np.ones(SOME // 16)) < len(held)


def test_threads_read_one_study_at_a_time():
    """Limits apply to the whole process: a thread must not lift another's limit, nor leave its own behind."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    inside, most = [], []

    def read():
        for _ in range(20):
            with study_limits(60, SOME):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_study_that_needs_too_much_memory_is_quarantined_alone(sample, tmp_path, monkeypatch):
    paths = sorted((sample / IMAGES).glob("*.dcm"))[:3]

    def read(path):
        return eat() if path == paths[1] else read_radiograph(path)

    monkeypatch.setattr("pipeline.data.shards.read_radiograph", read)
    monkeypatch.setattr("pipeline.data.shards.study_limits", lambda seconds: study_limits(seconds, SOME))
    studies = tuple(Study(path.stem, path, np.zeros((0, 4))) for path in paths)
    result = write_shard(ShardJob(tmp_path / "shard.npy", studies, Preprocessing(64, 2.0, (2, 2), ("clahe",)), 60))
    assert result.problems == {paths[1].stem: "needs more than 300 MiB of memory to read"}
    assert [row["patientId"] for row in result.rows] == [paths[0].stem, paths[2].stem]
