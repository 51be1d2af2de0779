"""Detection: post-processing alone, and an image from pixels to boxes."""

import torch

from benchmarks.detectors import POST_PROCESSING, SHAPES, make_batch, our_detector, torchvision_detector
from benchmarks.pairs import compare
from pipeline.detection.anchors import make_anchors
from pipeline.detection.postprocess import post_process, separate
from pipeline.detection.retinanet import HeadOutputs

SIZE = 1024


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    _post_processing()
    for precision in (torch.float32, torch.bfloat16):
        _whole_image(precision)


def _post_processing() -> None:
    anchors = make_anchors(SIZE, SIZE, SHAPES)
    sizes = [len(level) for level in anchors.levels]
    theirs = torchvision_detector(SIZE).eval()
    for images in (1, 8):
        # Few anchors reach the threshold, as in a trained model.
        logits, deltas = torch.randn(images, sum(sizes), 1) * 1.5 - 6, torch.randn(images, sum(sizes), 4) / 10
        heads = {"cls_logits": list(logits.split(sizes, 1)), "bbox_regression": list(deltas.split(sizes, 1))}
        compare(
            f"post-processing, {SIZE} px, {images} images",
            lambda: separate(post_process(HeadOutputs(logits, deltas), anchors, (SIZE, SIZE), POST_PROCESSING)),  # noqa: B023 - called in the loop
            lambda: theirs.postprocess_detections(heads, [list(anchors.levels)] * images, [(SIZE, SIZE)] * images),  # noqa: B023
            15,
        )


def _whole_image(precision: torch.dtype) -> None:
    batch = make_batch(SIZE, (1,))
    ours, theirs = our_detector().eval(), torchvision_detector(SIZE).eval()

    def our_detection() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            outputs = ours(batch.images)
        separate(post_process(outputs, ours.anchors_for(batch.images), (SIZE, SIZE), POST_PROCESSING))

    def peer() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            theirs(batch.torchvision_images)

    compare(f"inference, ResNet-50, {SIZE} px, batch 1, {precision}", our_detection, peer, 7)


if __name__ == "__main__":
    main()
