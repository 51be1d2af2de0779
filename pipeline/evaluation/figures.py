"""Figures as PNG. Whoever draws imports pyplot from here: there is no display on a server."""

import io

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

__all__ = ["Figure", "plt", "png"]


def png(figure: Figure, *, tight: bool = False) -> bytes:
    """The figure's bytes, the same for the same figure; it is closed. ``tight``: as large as what is drawn."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, bbox_inches="tight" if tight else None)
    plt.close(figure)
    return buffer.getvalue()
