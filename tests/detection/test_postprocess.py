import torch
from torchvision.ops import box_iou

from pipeline.detection.anchors import encode_boxes, make_anchors
from pipeline.detection.postprocess import PostProcessing, detect
from pipeline.detection.retinanet import HeadOutputs

GRID = make_anchors(128, 128, [(1.0, 1.0)])
ANCHORS = GRID.boxes
RULES = PostProcessing(score_thresh=0.3, nms_thresh=0.3, detections_per_img=5, topk_candidates=50)


def outputs(images, **found):
    """Heads that see nothing but the given boxes: anchor -> (box, logit)."""
    logits, deltas = torch.full((images, len(ANCHORS), 1), -9.0), torch.zeros(images, len(ANCHORS), 4)
    for (image, anchor), (box, logit) in found["boxes"].items():
        logits[image, anchor] = logit
        deltas[image, anchor] = encode_boxes(torch.tensor(box, dtype=torch.float32), ANCHORS[anchor])
    return HeadOutputs(logits, deltas)


def test_finds_what_the_heads_say():
    first, second = [30.0, 30, 60, 70], [80.0, 20, 120, 60]
    found = detect(
        outputs(2, boxes={(0, 37): (first, 2.0), (0, 40): (second, 3.0), (1, 90): (first, 0.0)}),
        GRID,
        (128, 128),
        RULES,
    )
    torch.testing.assert_close(found[0]["boxes"], torch.tensor([second, first]), atol=1e-3, rtol=0)
    torch.testing.assert_close(found[0]["scores"], torch.tensor([3.0, 2.0]).sigmoid())
    assert found[0]["labels"].tolist() == [0, 0]
    assert len(found[1]["boxes"]) == 1


def test_overlaps_low_scores_and_boxes_outside_go():
    box = [30.0, 30, 60, 70]
    found = detect(
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
        RULES,
    )[0]
    torch.testing.assert_close(found["boxes"], torch.tensor([box, [100.0, 100, 128, 128]]), atol=1e-3, rtol=0)


def test_counts_and_order_on_random_heads():
    torch.manual_seed(0)
    heads = HeadOutputs(torch.randn(3, len(ANCHORS), 1), torch.randn(3, len(ANCHORS), 4) / 10)
    for found in detect(heads, GRID, (128, 128), RULES):
        assert len(found["boxes"]) == RULES.detections_per_img
        assert (found["scores"].diff() <= 0).all()
        assert float((box_iou(found["boxes"], found["boxes"]) - torch.eye(5)).max()) <= 0.3
        assert float(found["boxes"].min()) >= 0
        assert float(found["boxes"].max()) <= 128
