"""Random augmentation of whole batches on the training device: the changes of `augment.py`.

Nothing here has a shape that depends on the data, so nothing waits for the device.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.detection.augment import GAMMA, MIN_SIDE, NOISE_STD
from pipeline.detection.dataset import Batch
from pipeline.detection.matching import PADDING
from pipeline.detection.settings import AugmentSettings

WHITE = 255.0


class DeviceAugmenter:
    """An augmenter of batches; torch's random state on their device decides the changes."""

    def __init__(self, settings: AugmentSettings) -> None:
        self._settings = settings

    def __call__(self, batch: Batch) -> Batch:
        """Change the images, and their boxes with them; a box that is cut off or too small becomes padding."""
        height, width = batch.images.shape[-2:]
        matrix, shift = self._movements(len(batch.images), height, width, batch.images.device)
        images = self._recoloured(_moved_images(batch.images.float(), matrix, shift))
        boxes, kept = _moved_boxes(batch.boxes, matrix, shift, height, width, self._settings.min_visibility)
        kept &= batch.labels != PADDING
        return batch._replace(
            images=images.round().to(torch.uint8),
            boxes=torch.where(kept[..., None], boxes, _padding_box(boxes)),
            labels=torch.where(kept, batch.labels, PADDING),
        )

    def _movements(self, count: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw matrices ``[B, 2, 2]`` and shifts ``[B, 2]`` in pixels, which move points about the image's centre."""
        s = self._settings
        moves = _chosen(s.affine, count, device)
        angle = torch.where(moves, _uniform(-s.rotate, s.rotate, count, device), 0.0) * (math.pi / 180)
        scales = [torch.where(moves, _uniform(1 - s.scale, 1 + s.scale, count, device), 1.0) for _ in range(2)]
        shifts = [
            torch.where(moves, (_uniform(-s.translate, s.translate, count, device) * side).trunc(), 0.0)
            for side in (width, height)
        ]
        x_scale = torch.where(_chosen(s.horizontal_flip, count, device), -scales[0], scales[0])
        cos, sin = angle.cos(), angle.sin()
        matrix = torch.stack([cos * x_scale, sin * scales[1], -sin * x_scale, cos * scales[1]], -1)
        return matrix.reshape(count, 2, 2), torch.stack(shifts, -1)

    def _recoloured(self, images: Tensor) -> Tensor:
        """Change brightness, contrast and gamma, and add noise; grey levels stay between 0 and ``WHITE``."""
        s, count, device = self._settings, len(images), images.device
        changes = _chosen(s.brightness_contrast, count, device)
        contrast = torch.where(changes, _uniform(1 - s.contrast, 1 + s.contrast, count, device), 1.0)
        brightness = torch.where(changes, _uniform(-s.brightness, s.brightness, count, device), 0.0)
        images = (images * _each(contrast) + _each(brightness * WHITE)).clamp(0, WHITE).round()
        curved = ((images / WHITE) ** _each(_uniform(*GAMMA, count, device)) * WHITE).floor()  # as the loader rounds
        images = torch.where(_each(_chosen(s.gamma, count, device)), curved, images)
        noise = torch.where(_chosen(s.noise, count, device), _uniform(*NOISE_STD, count, device), 0.0)
        return (images + (torch.randn_like(images) * _each(noise * WHITE)).trunc()).clamp(0, WHITE)


def _moved_images(images: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Move ``[B, C, H, W]``, bilinear, black outside."""
    count, _, height, width = images.shape
    # grid_sample() asks for the place in the old image of each pixel of the new one, with sides from -1 to 1.
    half = torch.full((2,), width / 2, device=images.device)
    half[1] = height / 2
    back = _inverse(matrix)
    offset = -(back @ shift[..., None])  # (B, 2, 1)
    theta = torch.cat([back * half / half[:, None], offset / half[:, None]], -1)  # (B, 2, 3)
    grid = F.affine_grid(theta, [count, 1, height, width], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _inverse(matrix: Tensor) -> Tensor:
    """Invert ``[B, 2, 2]``; torch.linalg.inv() would wait for the device to learn whether it can be inverted."""
    a, b, c, d = matrix.flatten(1).unbind(-1)
    return (torch.stack([d, -b, -c, a], -1) / (a * d - b * c)[:, None]).reshape(-1, 2, 2)


def _moved_boxes(
    boxes: Tensor, matrix: Tensor, shift: Tensor, height: int, width: int, min_visibility: float
) -> tuple[Tensor, Tensor]:
    """Move ``[B, M, 4]`` xyxy; return the part inside the image, and whether enough of each box is left, ``[B, M]``.

    A moved box is the rectangle around the ellipse in the old one: that around its corners would be too large.
    """
    sides = torch.full((2,), float(width), device=boxes.device)
    sides[1] = float(height)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 - sides / 2
    half = (boxes[..., 2:] - boxes[..., :2]) / 2
    centre = (matrix[:, None] @ centre[..., None])[..., 0] + shift[:, None] + sides / 2
    half = ((matrix[:, None] * half[..., None, :]) ** 2).sum(-1).sqrt()
    first, last = centre - half, centre + half
    area = (last - first).prod(-1)
    first, last = (torch.minimum(corner.clamp(min=0), sides) for corner in (first, last))
    inside = last - first
    kept = (inside >= MIN_SIDE).all(-1) & (inside.prod(-1) >= min_visibility * area)
    return torch.cat([first, last], -1), kept


def _padding_box(boxes: Tensor) -> Tensor:
    box = torch.zeros(4, device=boxes.device)
    box[2:] = 1
    return box


def _chosen(probability: float, count: int, device: torch.device) -> Tensor:
    return torch.rand(count, device=device) < probability


def _uniform(low: float, high: float, count: int, device: torch.device) -> Tensor:
    return torch.empty(count, device=device).uniform_(low, high)


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]
