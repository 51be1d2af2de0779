"""A plot of boxes and anchors by width and height."""

import numpy as np
import numpy.typing as npt

from pipeline.reports.figures import plt, png


def plot_anchor_coverage(sizes: npt.ArrayLike, best_iou: npt.ArrayLike, anchor_sizes: npt.ArrayLike) -> bytes:
    """Plot each box as a dot, coloured by its best IoU with any anchor, and each anchor as a cross; PNG bytes.

    Args:
        sizes: width and height of the boxes, ``[N, 2]`` pixels.
        best_iou: best IoU of each box with any anchor, ``[N]``.
        anchor_sizes: width and height of the anchors of all levels, ``[S, 2]`` pixels.
    """
    figure, axes = plt.subplots(figsize=(5.4, 4.4), dpi=110, layout="constrained")
    boxes, anchors = np.asarray(sizes).reshape(-1, 2), np.asarray(anchor_sizes).reshape(-1, 2)
    dots = axes.scatter(boxes[:, 0], boxes[:, 1], c=best_iou, s=9, cmap="viridis", vmin=0.3, vmax=1, label="boxes")
    figure.colorbar(dots, label="best IoU with an anchor")
    axes.scatter(anchors[:, 0], anchors[:, 1], marker="+", color="tab:red", label="anchors")
    axes.set(xscale="log", yscale="log", xlabel="width, pixels", ylabel="height, pixels")
    axes.legend()
    return png(figure)
