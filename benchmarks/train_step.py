"""A training step: us (bf16, channels_last) against torchvision's RetinaNet as it comes (float32)."""

import torch
from torchvision.models.detection import retinanet_resnet50_fpn

from benchmarks.pairs import compare
from pipeline.detection.losses import DetectionLoss, LossSettings
from pipeline.detection.retinanet import Architecture, RetinaNet

SIZE, BATCH = 512, 4


def main() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 255, (BATCH, 1, SIZE, SIZE), dtype=torch.uint8)
    boxes = torch.tensor([[[100.0, 120, 220, 300], [300, 150, 420, 330]]]).repeat(BATCH, 1, 1)
    scales, ratios = (1.0, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1.0, 2.0)
    ours = RetinaNet(Architecture("resnet50", "frozen_batch", 256, 4, scales, ratios, 0.01))
    ours = ours.to(memory_format=torch.channels_last)
    loss = DetectionLoss(LossSettings("focal", 0.25, 2.0, 1.0, "per_image", "smooth_l1", 1 / 9, 1.0, 0.5, 0.4, True))
    optimizer = torch.optim.AdamW(ours.parameters(), 1e-4)
    labels = torch.zeros(BATCH, 2, dtype=torch.long)

    def our_step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = ours(images)
        losses = loss(*outputs, torch.cat(ours.anchor_levels(images)), boxes, labels)
        (losses.classification + losses.box).backward()
        optimizer.step()
        optimizer.zero_grad()

    peer = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=1, trainable_backbone_layers=5, min_size=SIZE, max_size=SIZE
    ).train()
    peer_optimizer = torch.optim.AdamW(peer.parameters(), 1e-4)
    peer_images = list((images.float() / 255).repeat(1, 3, 1, 1))
    targets = [{"boxes": one, "labels": label} for one, label in zip(boxes, labels, strict=True)]

    def peer_step() -> None:
        sum(peer(peer_images, targets).values()).backward()
        peer_optimizer.step()
        peer_optimizer.zero_grad()

    compare(f"training step, ResNet-50, {SIZE} px, batch {BATCH}", our_step, peer_step, pairs=3)


if __name__ == "__main__":
    main()
