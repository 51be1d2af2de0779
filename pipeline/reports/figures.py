"""Figures as PNG. Modules that draw import pyplot from here, because a server has no display."""

import io

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

__all__ = ["Figure", "plt", "png"]


def png(figure: Figure, *, tight: bool = False) -> bytes:
    """Return the figure's bytes, the same for the same figure, and close it; ``tight`` fits the size to the drawing."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, bbox_inches="tight" if tight else None)
    plt.close(figure)
    return buffer.getvalue()
