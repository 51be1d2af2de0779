"""Boxes in the form of a batch."""

import torch

from pipeline.detection.matching import PADDING


def padded(images):
    """Turn each image's list of x, y, width, height into boxes ``[B, M, 4]`` xyxy and labels ``[B, M]``."""
    most = max(1, *(len(rows) for rows in images))
    boxes = torch.ones(len(images), most, 4)
    labels = torch.full((len(images), most), PADDING)
    for row, rows in enumerate(images):
        for column, (x, y, width, height) in enumerate(rows):
            boxes[row, column] = torch.tensor([x, y, x + width, y + height])
            labels[row, column] = 0
    return boxes, labels
