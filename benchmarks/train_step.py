"""A training step (forward, loss, backward, optimizer): us in bf16 and channels_last, against torchvision."""

import torch

from benchmarks.detectors import LOSS, make_batch, our_detector, torchvision_detector
from benchmarks.pairs import compare
from pipeline.detection.losses import DetectionLoss
from pipeline.detection.memory import keep_freed_memory

SIZE, BOXES = 512, (0, 1, 2, 2)


def main() -> None:
    torch.manual_seed(0)
    batch = make_batch(SIZE, BOXES)
    model, loss = our_detector(), DetectionLoss(LOSS)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def our_step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(batch.images)
        losses = loss(outputs.logits, outputs.deltas, model.anchors_for(batch.images), batch.boxes, batch.labels)
        (losses.classification + losses.box).backward()
        optimizer.step()
        optimizer.zero_grad()

    what = f"training step, ResNet-50, {SIZE} px, batch {len(BOXES)}"
    for tuned in (False, True):
        memory = "freed memory kept for all" if tuned else "malloc as it comes for all"
        if tuned:
            keep_freed_memory()  # of the process: the peer has it too
        compare(f"{what}, torchvision as it comes (float32), {memory}", our_step, _torchvision_step(batch, False), 7)
        compare(f"{what}, torchvision in bf16 and channels_last, {memory}", our_step, _torchvision_step(batch, True), 7)


def _torchvision_step(batch, tuned):
    model = torchvision_detector(SIZE).train()
    if tuned:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=tuned):
            losses = model(batch.torchvision_images, batch.torchvision_targets)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
