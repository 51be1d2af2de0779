"""A plot of the loss over rising learning rates."""

from collections.abc import Sequence

from pipeline.reports.figures import plt, png


def plot_learning_rates(
    rates: Sequence[float], losses: Sequence[float], smooth: Sequence[float], suggested: tuple[float, float]
) -> bytes:
    """Plot single and smoothed losses, and the rates where the smoothed fall fastest and are lowest; as PNG."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot(rates, losses, color="0.75", linewidth=1, label="each step")
    axes.plot(rates, smooth, color="tab:blue", linewidth=2, label="median and mean of neighbours")
    for rate, name, style in zip(suggested, ("falls fastest", "is lowest"), ("--", ":"), strict=True):
        axes.axvline(rate, color="tab:orange", linestyle=style, label=f"{name}: {rate:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", ylim=(0, 1.5 * max(smooth)))
    axes.legend(frameon=False)
    return png(figure)
