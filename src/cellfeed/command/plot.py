"""A picture of settings: how well each mixes against the memory that it takes. Needs matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellfeed.errors import PictureError
from cellfeed.memory import format_bytes

EXTENSIONS = (".png", ".svg", ".pdf")

MARKERS = {"own plan": "o", "mixing": "^", "joinid order": "v", "published default": "s"}
"""The kinds of settings, and how each is drawn."""

KINDS = {"own plan": "own plan at a memory_budget", "mixing": "target of mixing"}
"""What the legend calls them, where it says more."""

TICKS = (1, 1.2, 1.5, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000)
"""Of decode amplification: where its colours are named."""

OFFSETS = [(x, y) for y in (9, -16, 24, -31, 39, -46, 54, -61) for x in (7, -7)]
"""Where a name is tried, in points beside what it names: near first, right of it and left of it in turn."""


@dataclass(frozen=True)
class Point:
    """One setting in the picture.

    Attributes
    ----------
    name, kind
        What stands beside it; one of ``MARKERS``.
    memory_bytes
        Bytes held at most.
    effective_batch_size
        In cells.
    amplification
        Values decoded for each one wanted.
    chosen
        Whether it is ringed.
    """

    name: str
    kind: str
    memory_bytes: int
    effective_batch_size: float
    amplification: float
    chosen: bool


def check_file(path: str | Path) -> Path:
    """Say now, rather than after all work, that a picture cannot be drawn.

    Raises
    ------
    PictureError
        If the file has another extension, cannot be written, or matplotlib is missing.
    """
    file = Path(path)
    if file.suffix.lower() not in EXTENSIONS:
        raise PictureError(f"picture={str(path)!r} must end in one of {', '.join(EXTENSIONS)}")
    if not file.parent.is_dir():
        raise PictureError(f"picture={str(path)!r} cannot be written: there is no folder {str(file.parent)!r}; make it")
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise PictureError(f"picture={str(path)!r} cannot be written; give a file in a folder that you may write to")
    _figure()
    return file


def _figure(**options: Any) -> Any:
    """Make an empty figure, without pyplot: no window and no state of the caller's is touched."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as cause:
        raise PictureError(
            f"a picture needs matplotlib, which cannot be imported ({cause}); install it: pip install matplotlib"
        ) from cause
    figure = Figure(**options)
    FigureCanvasAgg(figure)  # it measures text
    return figure


def scatter(points: Sequence[Point], path: Path, *, batch_size: int, title: str) -> None:
    """Draw effective batch size against memory, coloured by decode amplification.

    Parameters
    ----------
    points
        The settings, one at least; own plans are joined by a line in the order of their memory.
    path
        Where to write it; what :func:`check_file` returned.
    batch_size
        Cells of a minibatch: what a full shuffle reaches.
    title
        What stands above.

    Raises
    ------
    PictureError
        If the file cannot be written.
    """
    figure = _figure(figsize=(9, 5.8), layout="constrained")
    axes = figure.subplots()
    _set_axes(axes, points, batch_size, title)
    colours = _draw_points(axes, points)
    low, high = colours.get_clim()
    bar = figure.colorbar(colours, ax=axes, label="decode amplification (values decoded / values wanted)")
    bar.set_ticks([tick for tick in TICKS if low <= tick <= high], labels=[f"{t:g}" for t in TICKS if low <= t <= high])
    bar.minorticks_off()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.draw_without_rendering()  # from here on it is known where things are
    _write_names(axes, points)
    try:
        figure.savefig(path, dpi=150)
    except OSError as cause:
        raise PictureError(f"picture={str(path)!r} cannot be written: {cause}") from cause


def _set_axes(axes: Any, points: Sequence[Point], batch_size: int, title: str) -> None:
    memory = [point.memory_bytes for point in points]
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(memory) / 1.6, max(memory) * 1.9)  # room for the names
    axes.set_ylim(-0.05 * batch_size, 1.12 * batch_size)
    axes.xaxis.set_major_formatter(lambda n_bytes, _: format_bytes(n_bytes))
    axes.yaxis.set_major_formatter(lambda size, _: f"{size:,.4g}")
    axes.minorticks_off()
    axes.set(title=title, xlabel="peak memory, estimated", ylabel="effective batch size (cells)")
    axes.grid(True, alpha=0.2)
    axes.axhline(batch_size, color="grey", ls=":", lw=1, label=f"full shuffle: {batch_size:,} cells")


def _draw_points(axes: Any, points: Sequence[Point]) -> Any:
    """Draw line, points and ring; returns what the colours mean."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    colours: Any = ScalarMappable(LogNorm(1, max(2.0, *(point.amplification for point in points))), "viridis_r")
    axes.plot(*zip(*_own_line(points), strict=True), color="grey", lw=1, zorder=1)
    for kind, marker in MARKERS.items():
        for k, point in enumerate(p for p in points if p.kind == kind):
            colour = colours.to_rgba(point.amplification)
            place = (point.memory_bytes, point.effective_batch_size)
            axes.scatter(*place, s=70, marker=marker, color=colour, edgecolors="black", lw=0.6, zorder=3)
            if k == 0:  # colours differ within a kind, so its place in the legend has none
                axes.scatter(
                    [], [], s=70, marker=marker, color="white", edgecolors="black", lw=0.6, label=KINDS.get(kind, kind)
                )
    for point in (p for p in points if p.chosen):
        place = (point.memory_bytes, point.effective_batch_size)
        axes.scatter(*place, s=300, facecolors="none", edgecolors="crimson", lw=1.8, zorder=2)
        axes.scatter([], [], s=90, facecolors="none", edgecolors="crimson", lw=1.8, label="chosen")
    return colours


def _own_line(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Return where the own plans are, by memory."""
    return sorted((p.memory_bytes, p.effective_batch_size) for p in points if p.kind == "own plan")


def _write_names(axes: Any, points: Sequence[Point]) -> None:
    """Write each name beside its point where it covers neither another name nor a point."""
    from matplotlib.transforms import Bbox

    places = axes.transData.transform([(p.memory_bytes, p.effective_batch_size) for p in points])
    taken = [Bbox.from_extents(x - 8, y - 8, x + 8, y + 8) for x, y in places]
    line = axes.transData.transform(np.reshape(_own_line(points), (-1, 2)))
    for begin, end in zip(line[:-1], line[1:], strict=True):
        taken += [Bbox.from_bounds(x, y, 1, 1) for x, y in np.linspace(begin, end, 64)]
    for point, (x, y) in zip(points, places, strict=True):
        text = axes.text(0, 0, point.name, fontsize=8)
        width, height = text.get_window_extent().size
        text.remove()
        for dx, dy in OFFSETS:
            left, low = x + dx * axes.figure.dpi / 72 - (width if dx < 0 else 0), y + dy * axes.figure.dpi / 72
            box = Bbox.from_bounds(left, low, width, height)
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        axes.annotate(
            point.name,
            (point.memory_bytes, point.effective_batch_size),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="right" if dx < 0 else "left",
            va="bottom",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "grey", "shrinkB": 4},
            zorder=4,
        )
