import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from pipeline.detection.anchors import (
    BASE_SIZE,
    LEVEL_STRIDES,
    decode_boxes,
    encode_boxes,
    level_grid,
    make_anchors,
    shape_grid,
)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (320, 192), (128, 384)])
def test_anchors_are_torchvisions(height, width):
    scales, ratios = (1.0, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1.0, 2.0)
    sizes = tuple(tuple(int(BASE_SIZE * stride * scale) for scale in scales) for stride in LEVEL_STRIDES)
    generator = AnchorGenerator(sizes, (ratios,) * len(sizes))
    maps = [torch.zeros(1, 1, level_grid(height, stride), level_grid(width, stride)) for stride in LEVEL_STRIDES]
    wanted = generator(ImageList(torch.zeros(1, 1, height, width), [(height, width)]), maps)[0]
    found = make_anchors(height, width, shape_grid(scales, ratios)).boxes
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


def boxes(count=6):
    corner = st.tuples(st.floats(0, 200), st.floats(0, 200), st.floats(4, 200), st.floats(4, 200))
    return st.lists(corner, min_size=count, max_size=count).map(
        lambda rows: torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows], dtype=torch.float64)
    )


@given(boxes(), boxes())
def test_decoding_inverts_encoding_and_both_are_torchvisions(box, anchor):
    deltas = encode_boxes(box, anchor)
    torch.testing.assert_close(decode_boxes(deltas, anchor), box, rtol=1e-6, atol=1e-6)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(deltas, coder.encode_single(box, anchor), rtol=1e-6, atol=1e-6)
    large = deltas * 3  # these can exceed the clamp
    torch.testing.assert_close(decode_boxes(large, anchor), coder.decode_single(large, anchor), rtol=1e-6, atol=1e-6)
