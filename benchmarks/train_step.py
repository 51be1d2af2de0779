"""A training step (forward, loss, backward, optimizer): ours in bf16 and channels_last, against torchvision's."""

import torch

from benchmarks.detectors import make_batch, our_detector, our_step, torchvision_detector, torchvision_step
from benchmarks.pairs import compare
from pipeline.detection.malloc import keep_freed_memory

SIZE, BOXES = 512, (0, 1, 2, 2)


def main() -> None:
    torch.manual_seed(0)
    batch = make_batch(SIZE, BOXES)
    ours = our_step(our_detector(), batch)
    what = f"training step, ResNet-50, {SIZE} px, batch {len(BOXES)}"
    for kept in (False, True):
        memory = "freed memory kept, for both" if kept else "malloc as it comes, for both"
        if kept:
            keep_freed_memory()  # a setting of the whole process, so the peer has it too
        for name, tuned in (("as it comes (float32)", False), ("in bf16 and channels_last", True)):
            peer = torchvision_step(torchvision_detector(SIZE), batch, tuned)
            compare(f"{what}, torchvision {name}, {memory}", ours, peer, pairs=7)


if __name__ == "__main__":
    main()
