"""Figures as PNG. Whoever draws imports pyplot from here: there is no display on a server."""

import io

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

__all__ = ["Figure", "plt", "png"]


def png(figure: Figure) -> bytes:
    """The figure's bytes, the same for the same figure; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
