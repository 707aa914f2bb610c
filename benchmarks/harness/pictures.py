"""Pictures of the results of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def draw_bars(
    panels: Mapping[str, Mapping[str, float]],
    colours: Sequence[str],
    picture: Path,
    *,
    size: tuple[float, float],
) -> None:
    """Draw horizontal bars of the same names in panels side by side.

    Parameters
    ----------
    panels
        The value of each name, by the title of the panel.
    colours
        The colour of each name.
    size
        Width and height in inches.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, layout="constrained")
    for ax, (title, values) in zip(axes, panels.items(), strict=True):
        bars = ax.barh(list(values), list(values.values()), color=colours)
        ax.bar_label(bars, fmt="%.3g", padding=3)
        ax.set_title(title, fontsize=10, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.18)  # for the labels of the bars
    axes[0].invert_yaxis()
    figure.savefig(picture, dpi=160)
    plt.close(figure)
