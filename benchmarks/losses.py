"""Matching and both losses, forward and backward: ours, eager and compiled, against torchvision's, eager."""

from collections.abc import Callable

import torch

from benchmarks.detectors import LOSS, SHAPES, make_batch, torchvision_detector
from benchmarks.pairs import compare
from pipeline.detection.anchors import make_anchors
from pipeline.detection.device import compile_whole
from pipeline.detection.losses import DetectionLoss

SIZE, BOXES = 1024, (0, 1, 2, 3, 4, 5, 6, 8)


def main() -> None:
    torch.manual_seed(0)
    batch = make_batch(SIZE, BOXES)
    anchors = make_anchors(SIZE, SIZE, SHAPES)
    count = len(anchors.boxes)
    logits = (torch.randn(len(BOXES), count, 1) - 3).requires_grad_()
    deltas = (torch.randn(len(BOXES), count, 4) / 10).requires_grad_()
    theirs = torchvision_detector(SIZE).train()

    def step(loss: DetectionLoss) -> Callable[[], None]:
        def run() -> None:
            logits.grad = deltas.grad = None
            losses = loss(logits, deltas, anchors, batch.boxes, batch.labels)
            (losses.classification + losses.box).backward()

        return run

    def peer() -> None:
        logits.grad = deltas.grad = None
        heads = {"cls_logits": logits, "bbox_regression": deltas}
        losses = theirs.compute_loss(batch.torchvision_targets, heads, [anchors.boxes] * len(BOXES))
        torch.stack(list(losses.values())).sum().backward()

    what = f"matching and losses, {SIZE} px, batch {len(BOXES)}, 0 to 8 boxes"
    compare(f"{what}, eager", step(DetectionLoss(LOSS)), peer, 15)
    compiled = DetectionLoss(LOSS)
    compile_whole(compiled)
    compare(f"{what}, compiled", step(compiled), peer, 15)


if __name__ == "__main__":
    main()
