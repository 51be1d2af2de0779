"""Adaptive sample selection against a slow transcription of the paper's algorithm 1."""

import statistics

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from pipeline.detection.anchors import make_anchors, shape_grid
from pipeline.detection.atss import NEAREST, select_samples
from pipeline.detection.matching import BACKGROUND, PADDING
from tests.detection.boxes import padded

SHAPES = shape_grid((1.0, 1.5), (0.5, 1.0, 2.0))
GRID = make_anchors(256, 192, SHAPES)
box = st.tuples(st.floats(0, 150), st.floats(0, 200), st.floats(4, 150), st.floats(4, 150))


def slow_selection(boxes):
    """Follow algorithm 1 line by line; ties of distance go to the first cell, ties of IoU to the first box."""
    best = [(0.0, BACKGROUND)] * len(GRID.boxes)
    iou = box_iou(boxes, GRID.boxes)
    for number, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        candidates, start = [], 0
        for level in GRID.levels:
            centres = ((level[:, :2] + level[:, 2:]) / 2).tolist()
            distances = [(x - (x0 + x1) / 2) ** 2 + (y - (y0 + y1) / 2) ** 2 for x, y in centres[:: len(SHAPES)]]
            nearest = sorted(range(len(distances)), key=distances.__getitem__)[:NEAREST]
            candidates += [start + cell * len(SHAPES) + shape for cell in nearest for shape in range(len(SHAPES))]
            start += len(level)
        overlaps = [iou[number, candidate].item() for candidate in candidates]
        threshold = statistics.mean(overlaps) + statistics.stdev(overlaps)
        for candidate, overlap in zip(candidates, overlaps, strict=True):
            left, top, right, bottom = GRID.boxes[candidate].tolist()
            x, y = (left + right) / 2, (top + bottom) / 2
            inside = min(x - x0, y - y0, x1 - x, y1 - y) > 0.01
            assume(not inside or abs(overlap - threshold) > 1e-5)  # nearer than that, float32 may decide otherwise
            if overlap >= threshold and inside and overlap > best[candidate][0]:
                best[candidate] = (overlap, number)
    return torch.tensor([number for _, number in best])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(box, max_size=4), min_size=1, max_size=3))
def test_equals_a_slow_transcription(images):
    boxes, labels = padded(images)
    matched = select_samples(GRID, boxes, labels)
    for row, rows in enumerate(images):
        assert torch.equal(matched[row], slow_selection(boxes[row, : len(rows)]))


def test_positives_lie_inside_their_box_and_every_ordinary_box_has_some():
    torch.manual_seed(0)
    corner = torch.rand(1, 30, 2) * 120
    boxes = torch.cat([corner, corner + 20 + torch.rand(1, 30, 2) * 60], 2)
    matched = select_samples(GRID, boxes, torch.zeros(1, 30, dtype=torch.int64))[0]
    assert set(range(30)) == set(matched.unique().tolist()) - {BACKGROUND}
    positive = (matched != BACKGROUND).nonzero().flatten()
    centre = (GRID.boxes[positive, :2] + GRID.boxes[positive, 2:]) / 2
    own = boxes[0, matched[positive]]
    assert ((centre > own[:, :2]) & (centre < own[:, 2:])).all()


def test_an_image_without_boxes_is_all_background():
    matched = select_samples(GRID, torch.ones(2, 1, 4), torch.full((2, 1), PADDING))
    assert (matched == BACKGROUND).all()
    assert matched.dtype == torch.int64
