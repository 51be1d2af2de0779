"""Parts of a batch on a CPU: which there are, where they run, and that detection in parts finds the same."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.detection.detect import NotFiniteError, detect, is_large
from pipeline.detection.ensemble import Ensemble
from pipeline.detection.parts import map_parts, one_core, part_count
from pipeline.detection.retinanet import RetinaNet
from tests.detection.settings import POST_PROCESSING, TINY

CPU = torch.device("cpu")


@pytest.fixture
def cores():
    own = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(own)


@given(st.integers(1, 100), st.integers(1, 9))
def test_there_are_as_many_parts_as_cores_and_none_is_small(images, least):
    count = part_count(images, CPU, least)
    assert 1 <= count <= torch.get_num_threads()
    assert count == 1 or images // count >= least
    assert count == torch.get_num_threads() or images // (count + 1) < least
    assert part_count(images, torch.device("cuda"), least) == 1


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("cores_together", "count", "each"), [(2, 2, 1), (4, 2, 2), (2, 1, 1), (4, 1, 2), (6, 4, 1)])
def test_the_threads_share_the_cores(cores_together, count, each, large):
    """A single part has half of them, and a large one all."""
    own = torch.get_num_threads()
    found = map_parts(lambda part: (part, torch.get_num_threads()), list(range(count)), cores_together, large=large)
    wanted = cores_together if large and count == 1 else each
    assert found == [(part, wanted) for part in range(count)]
    assert torch.get_num_threads() == own
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == own


def test_parts_run_at_the_same_time():
    together = threading.Barrier(2)
    map_parts(lambda _: together.wait(60), [0, 1], 2)


def test_single_parts_of_two_callers_run_at_the_same_time():
    """As the requests of a server do."""
    together = threading.Barrier(2)
    with ThreadPoolExecutor(2) as callers:
        list(callers.map(lambda _: map_parts(lambda _: together.wait(60), [0], 2), range(2)))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_the_modes_of_the_caller_hold(autocast, grad):
    def modes(_):
        return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_grad_enabled()

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.set_grad_enabled(grad):
        assert map_parts(modes, [0, 1], 2) == [(autocast, torch.bfloat16, grad)] * 2
    assert map_parts(modes, [0], 2)[0][::2] == (False, True)


@pytest.mark.parametrize(
    ("size", "weights", "large"),
    [(1024, 3_300_000, True), (512, 3_300_000, False), (512, 32_000_000, True), (256, 32_000_000, False)],
)
def test_large_images_of_the_measured_networks(size, weights, large):
    network = torch.nn.Linear(weights, 1, bias=False, device="meta")
    assert is_large(network, size, size) == large


@pytest.mark.parametrize("members", [0, 1, 3])
def test_an_image_that_is_large_for_its_network_has_all_cores(members, cores, monkeypatch):
    """Members of an ensemble work one after another, so what counts are the weights of one."""
    cores(2)
    networks = [RetinaNet(TINY).eval() for _ in range(max(members, 1))]
    used = []
    networks[0].register_forward_hook(lambda *_: used.append(torch.get_num_threads()))
    work = 128 * 128 * sum(one.numel() for one in networks[0].parameters())
    for least in (work, work + 1):
        monkeypatch.setattr("pipeline.detection.detect._LARGE", least)
        with torch.no_grad():
            detect(Ensemble(networks, None) if members else networks[0], torch.zeros(1, 1, 128, 128), POST_PROCESSING)
    assert used == [2, 1]


def test_an_error_in_a_part_is_raised():
    with pytest.raises(ZeroDivisionError):
        map_parts(lambda part: 1 / part, [1, 0], 2)
    assert map_parts(lambda part: part, [1, 0], 2) == [1, 0]


def test_one_core(cores):
    cores(2)
    with one_core():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("suppression", ["nms", "soft_nms", "weighted_fusion"])
@pytest.mark.parametrize("images", [1, 2, 3, 8])
def test_detection_in_parts_finds_the_same(images, suppression, cores):
    torch.manual_seed(2)
    model = RetinaNet(replace(TINY, norm="frozen_batch", prior_probability=0.3)).eval()
    batch = torch.randint(0, 256, (images, 1, 128, 128), dtype=torch.uint8)
    rules = replace(POST_PROCESSING, suppression=suppression, flip=True)
    found = []
    for count in (1, 2, 5):
        cores(count)
        with torch.no_grad():
            found.append(detect(model, batch, rules))
    for others in found[1:]:
        assert len(others) == images
        for one, other in zip(found[0], others, strict=True):
            assert len(one["boxes"]) > 0
            for name, value in one.items():
                torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-3)


def test_images_are_counted_over_all_parts(cores):
    cores(2)
    model = RetinaNet(TINY).eval()
    batch = torch.zeros(5, 1, 128, 128)
    batch[1], batch[4] = torch.nan, torch.nan
    with torch.no_grad(), pytest.raises(NotFiniteError) as error:
        detect(model, batch, POST_PROCESSING)
    assert error.value.indices == [1, 4]
