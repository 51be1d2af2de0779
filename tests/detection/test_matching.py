import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from pipeline.detection.anchors import make_anchors, shape_grid
from pipeline.detection.matching import BACKGROUND, IGNORED, _match_everything, match_anchors
from tests.detection.boxes import padded

GRID = make_anchors(64, 64, shape_grid((1.0, 1.5), (0.5, 1.0, 2.0)))
ANCHORS = GRID.boxes
box = st.tuples(st.floats(0, 40), st.floats(0, 40), st.floats(4, 60), st.floats(4, 60))


def slow_match(boxes, low_quality):
    """Match slowly: IoU >= .5 positive, < .4 negative, else ignored; each box also takes its best anchors."""
    if not len(boxes):
        return torch.full((len(ANCHORS),), BACKGROUND)
    iou = box_iou(boxes, ANCHORS)
    result = []
    for column in range(len(ANCHORS)):
        overlaps = iou[:, column].tolist()
        best = max(overlaps)
        match = overlaps.index(best) if best >= 0.5 else BACKGROUND if best < 0.4 else IGNORED
        if low_quality and any(iou[row, column] == iou[row].max() for row in range(len(boxes))):
            match = overlaps.index(best)
        result.append(match)
    return torch.tensor(result)


@pytest.mark.parametrize("low_quality", [True, False])
@given(st.lists(st.lists(box, max_size=4), min_size=1, max_size=3))
def test_equals_a_slow_reference_and_torchvision(low_quality, images):
    boxes, labels = padded(images)
    found = match_anchors(GRID, boxes, labels, 0.5, 0.4, low_quality)
    assert torch.equal(found, _match_everything(GRID.sides, boxes, labels, 0.5, 0.4, low_quality))
    for row, rows in enumerate(images):
        real = boxes[row, : len(rows)]
        assert torch.equal(found[row], slow_match(real, low_quality))
        if len(rows):
            theirs = Matcher(0.5, 0.4, allow_low_quality_matches=low_quality)(box_iou(real, ANCHORS))
            assert torch.equal(found[row], theirs)
