"""A scatter plot of settings: effective batch size against memory. Needs ``pip install "cellfeed[plot]"``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellfeed._checks import format_bytes
from cellfeed.errors import MissingDependencyError

EXTENSIONS = (".png", ".svg", ".pdf")

MARKERS = {"own plan": "o", "mixing": "^", "joinid order": "v", "published default": "s"}
"""The marker of each kind of setting."""

KINDS = {"own plan": "own plan at a memory_budget", "mixing": "target of mixing"}
"""Names in the legend that differ from the kind."""

TICKS = (1, 1.2, 1.5, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000)
"""Ticks of the colour bar of decode amplification."""


@dataclass(frozen=True)
class Point:
    """One setting in the picture.

    Attributes
    ----------
    name
        The text beside the point.
    kind
        A key of ``MARKERS``.
    memory_bytes
        Peak memory in bytes.
    effective_batch_size
        Effective batch size in cells.
    amplification
        Values decoded per value used.
    chosen
        Whether the point has a ring.
    """

    name: str
    kind: str
    memory_bytes: int
    effective_batch_size: float
    amplification: float
    chosen: bool


def check_file(path: str | Path) -> Path:
    """Return the path of a picture; raise an error if the picture cannot be drawn.

    Raises
    ------
    ValueError
        If the file has another extension.
    OSError
        If the file cannot be written.
    MissingDependencyError
        If matplotlib or adjustText is not installed.
    """
    file, argument = Path(path), f"picture={str(path)!r}"
    if file.suffix.lower() not in EXTENSIONS:
        raise ValueError(f"{argument} must end in one of {', '.join(EXTENSIONS)}")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{argument} cannot be written: there is no folder {str(file.parent)!r}; make it")
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise OSError(f"{argument} cannot be written; give a file in a writable folder")
    try:
        import adjustText  # noqa: F401 - imports matplotlib
    except ImportError as cause:
        raise MissingDependencyError(
            f'{argument} needs matplotlib and adjustText ({cause}): pip install "cellfeed[plot]"'
        ) from cause
    return file


def scatter(points: Sequence[Point], path: Path, *, batch_size: int, title: str) -> None:
    """Draw effective batch size against memory, coloured by decode amplification.

    Parameters
    ----------
    points
        The settings, at least one; a line joins the own plans in the order of their memory.
    path
        The file, from :func:`check_file`.
    batch_size
        Cells per minibatch, the effective batch size of a full shuffle.
    title
        The title of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.8), layout="constrained")  # pyplot would open a window
    FigureCanvasAgg(figure)  # a canvas that can measure text
    axes = figure.subplots()
    _set_axes(axes, points, batch_size, title)
    colours = _draw_points(axes, points)
    low, high = colours.get_clim()
    bar = figure.colorbar(colours, ax=axes, label="decode amplification (values decoded / values used)")
    bar.set_ticks([tick for tick in TICKS if low <= tick <= high], labels=[f"{t:g}" for t in TICKS if low <= t <= high])
    bar.minorticks_off()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.draw_without_rendering()  # fixes the layout before names are placed
    _write_names(axes, points)
    figure.savefig(path, dpi=150)


def _set_axes(axes: Any, points: Sequence[Point], batch_size: int, title: str) -> None:
    memory = [point.memory_bytes for point in points]
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(memory) / 1.6, max(memory) * 2.2)  # room for the names
    axes.set_ylim(-0.05 * batch_size, 1.12 * batch_size)
    axes.xaxis.set_major_formatter(lambda n_bytes, _: format_bytes(n_bytes))
    axes.yaxis.set_major_formatter(lambda size, _: f"{size:,.4g}")
    axes.minorticks_off()
    axes.set(title=title, xlabel="peak memory, estimated", ylabel="effective batch size (cells)")
    axes.grid(True, alpha=0.2)
    axes.axhline(batch_size, color="grey", ls=":", lw=1, label=f"full shuffle: {batch_size:,} cells")


def _draw_points(axes: Any, points: Sequence[Point]) -> Any:
    """Draw the line, the points and the ring; return the mappable of the colour bar."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    colours: Any = ScalarMappable(LogNorm(1, max(2.0, *(point.amplification for point in points))), "viridis_r")
    own = sorted((p.memory_bytes, p.effective_batch_size) for p in points if p.kind == "own plan")
    axes.plot(*zip(*own, strict=True), color="grey", lw=1, zorder=1)
    for kind, marker in MARKERS.items():
        for k, point in enumerate(p for p in points if p.kind == kind):
            colour = colours.to_rgba(point.amplification)
            xy = (point.memory_bytes, point.effective_batch_size)
            axes.scatter(*xy, s=70, marker=marker, color=colour, edgecolors="black", lw=0.6, zorder=3)
            if k == 0:  # without a colour, because colours differ within a kind
                axes.scatter(
                    [], [], s=70, marker=marker, color="white", edgecolors="black", lw=0.6, label=KINDS.get(kind, kind)
                )
    for point in (p for p in points if p.chosen):
        xy = (point.memory_bytes, point.effective_batch_size)
        axes.scatter(*xy, s=300, facecolors="none", edgecolors="crimson", lw=1.8, zorder=2)
        axes.scatter([], [], s=90, facecolors="none", edgecolors="crimson", lw=1.8, label="chosen")
    return colours


def _write_names(axes: Any, points: Sequence[Point]) -> None:
    """Write each name near its point, without covering names, points or lines."""
    from adjustText import adjust_text
    from matplotlib.transforms import Bbox

    names = [axes.text(p.memory_bytes, p.effective_batch_size, p.name, fontsize=8, zorder=4) for p in points]
    paths = [line.get_transform().transform_path(line.get_path()).interpolated(64) for line in axes.lines]
    centres = axes.transData.transform([name.get_position() for name in names])  # (n_points, 2), in pixels
    taken = [Bbox.from_extents(x - 9, y - 9, x + 9, y + 9) for x, y in centres]
    taken += [Bbox.from_bounds(x, y, 1, 1) for path in paths for x, y in path.vertices]
    adjust_text(
        names,
        objects=[box.transformed(axes.transData.inverted()) for box in taken],
        ax=axes,
        expand=(1.05, 1.4),
        iter_lim=500,  # a limit in seconds would make pictures irreproducible
        arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "grey"},
    )
