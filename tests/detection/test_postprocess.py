from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from pipeline.detection.anchors import encode_boxes, make_anchors
from pipeline.detection.detect import detect
from pipeline.detection.postprocess import post_process, separate
from pipeline.detection.retinanet import HeadOutputs, RetinaNet
from tests.detection import settings

GRID = make_anchors(128, 128, [(1.0, 1.0)])
ANCHORS = GRID.boxes
POST_PROCESSING = replace(
    settings.POST_PROCESSING, score_thresh=0.3, nms_thresh=0.3, detections_per_img=5, topk_candidates=50
)


def outputs(images, **found):
    """Return outputs of heads that see only the given boxes: (image, anchor) -> (box, logit)."""
    logits, deltas = torch.full((images, len(ANCHORS), 1), -9.0), torch.zeros(images, len(ANCHORS), 4)
    for (image, anchor), (box, logit) in found["boxes"].items():
        logits[image, anchor] = logit
        deltas[image, anchor] = encode_boxes(torch.tensor(box, dtype=torch.float32), ANCHORS[anchor])
    return HeadOutputs(logits, deltas)


def detections(*args):
    return separate(post_process(*args))


def test_finds_what_the_heads_say():
    first, second = [30.0, 30, 60, 70], [80.0, 20, 120, 60]
    found = detections(
        outputs(2, boxes={(0, 37): (first, 2.0), (0, 40): (second, 3.0), (1, 90): (first, 0.0)}),
        GRID,
        (128, 128),
        POST_PROCESSING,
    )
    torch.testing.assert_close(found[0]["boxes"], torch.tensor([second, first]), atol=1e-3, rtol=0)
    torch.testing.assert_close(found[0]["scores"], torch.tensor([3.0, 2.0]).sigmoid())
    assert found[0]["labels"].tolist() == [0, 0]
    assert len(found[1]["boxes"]) == 1


def test_overlaps_low_scores_and_boxes_outside_go():
    box = [30.0, 30, 60, 70]
    found = detections(
        outputs(
            1,
            boxes={
                (0, 37): (box, 2.0),
                (0, 38): ([31.0, 31, 61, 70], 1.5),
                (0, 39): ([90.0, 90, 120, 120], -2.0),
                (0, 40): ([-50.0, -50, -20, -20], 3.0),
                (0, 41): ([100.0, 100, 150, 150], 1.0),
            },
        ),
        GRID,
        (128, 128),
        POST_PROCESSING,
    )[0]
    torch.testing.assert_close(found["boxes"], torch.tensor([box, [100.0, 100, 128, 128]]), atol=1e-3, rtol=0)


def test_counts_and_order_on_random_heads():
    torch.manual_seed(0)
    heads = HeadOutputs(torch.randn(3, len(ANCHORS), 1), torch.randn(3, len(ANCHORS), 4) / 10)
    for found in detections(heads, GRID, (128, 128), POST_PROCESSING):
        assert len(found["boxes"]) == POST_PROCESSING.detections_per_img
        assert (found["scores"].diff() <= 0).all()
        assert float((box_iou(found["boxes"], found["boxes"]) - torch.eye(5)).max()) <= 0.3
        assert float(found["boxes"].min()) >= 0
        assert float(found["boxes"].max()) <= 128


def test_a_second_look_at_the_mirrored_image(architecture):
    """The boxes of a mirrored image, mirrored back, are boxes of the image."""
    torch.manual_seed(0)
    model = RetinaNet(replace(architecture, prior_probability=0.4)).eval()
    nn.init.normal_(model.class_head.last.weight, std=0.3)
    images = torch.randint(0, 255, (2, 1, 128, 128))
    post_processing = replace(POST_PROCESSING, flip=True, score_thresh=0.1, detections_per_img=200)
    with torch.no_grad():
        found, mirrored = detect(model, images, post_processing), detect(model, images.flip(3), post_processing)
        once = detect(model, images, replace(post_processing, flip=False))
    for one, other in zip(found, mirrored, strict=True):
        x0, y0, x1, y1 = other["boxes"].unbind(1)
        back = torch.stack([128 - x1, y0, 128 - x0, y1], 1)
        assert len(one["boxes"]) == len(back) > 0
        assert (torch.cdist(one["boxes"], back, p=torch.inf).min(1).values < 1e-2).all()
    assert any(len(one["boxes"]) != len(other["boxes"]) for one, other in zip(found, once, strict=True))


def test_boxes_shrink_about_their_centres():
    heads = outputs(1, boxes={(0, 37): ([30.0, 30, 60, 70], 2.0)})
    (found,) = detections(heads, GRID, (128, 128), replace(POST_PROCESSING, box_shrink=0.12))
    torch.testing.assert_close(found["boxes"], torch.tensor([[31.8, 32.4, 58.2, 67.6]]), atol=1e-3, rtol=0)


def test_the_score_gate():
    heads = outputs(2, boxes={(image, 37): ([30.0, 30, 60, 70], 2.0) for image in (0, 1)})
    opinions = torch.tensor([[3.0, 1.0, 0.0], [-4.0, 0.0, 4.0]])
    gated = heads._replace(image_class=opinions)
    found = detections(gated, GRID, (128, 128), replace(POST_PROCESSING, score_gate=True))
    p = opinions.softmax(1)
    score = torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(found[0]["scores"][0], torch.sqrt(score * (p[0, 0] + 0.1 * p[0, 1])))
    assert len(found[1]["scores"]) == 0  # the image-level head says: no opacity
    assert len(detections(gated, GRID, (128, 128), POST_PROCESSING)[1]["scores"]) == 1


@pytest.mark.parametrize("suppression", ["soft_nms", "weighted_fusion"])
def test_other_ways_to_suppress(suppression):
    box = [30.0, 30, 60, 70]
    heads = outputs(
        1, boxes={(0, 37): (box, 2.0), (0, 38): ([31.0, 31, 61, 70], 1.5), (0, 5): ([90.0, 90, 120, 120], 0)}
    )
    (found,) = detections(
        heads, GRID, (128, 128), replace(POST_PROCESSING, suppression=suppression, soft_nms_sigma=0.1)
    )
    assert len(found["boxes"]) == 2
