"""Where the tiles of an array lie in its files, and whether they can be read without TileDB.

Everything that is not known here, from encryption to deletions, is left to TileDB: :func:`open_tiles` raises
``UnknownLayout``, which says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from cellfeed._geometry import ArrayGeometry
from cellfeed.sources.soma.tiles.files import ArrayFiles
from cellfeed.sources.soma.tiles.fragments import (
    LISTS,
    Fragment,
    UnknownLayout,
    parse_fragment,
    visible_fragments,
)
from cellfeed.sources.soma.tiles.zstd import find_zstd

COMMITS, FRAGMENTS = "__commits", "__fragments"
"""Folders of an array."""

PIPELINES = {(): 0, ("ZSTD",): 1, ("BYTESHUFFLE", "ZSTD"): 2}
"""Filters that are undone here, and the number by which the kernels know them."""


@dataclass(frozen=True)
class TileLayout:
    """How the tiles of an array are packed, from its schema.

    Attributes
    ----------
    filters
        Names of TileDB's filters of rows, columns and values, in the order in which they were applied.
    row_major
        Whether tiles and the values inside them lie in row-major order.
    allows_duplicates
        Whether the array may hold a place more than once.
    """

    filters: tuple[tuple[str, ...], ...]
    row_major: bool
    allows_duplicates: bool


@dataclass(frozen=True, eq=False)
class TileIndex:
    """Where the tiles of an array lie.

    Attributes
    ----------
    files
        Of the array.
    fragments
        Oldest first; in an array that forbids duplicates, no two of them hold a value of one place.
    extent, capacity, n_columns
        Rows of a space tile, values of a data tile, columns of the array.
    how
        How values, rows and columns are packed (see ``PIPELINES``), in the order of ``FIELDS``.
    dtype
        Of the values.
    allows_duplicates
        Whether the array may hold a place more than once.
    """

    files: ArrayFiles
    fragments: tuple[Fragment, ...]
    extent: int
    capacity: int
    n_columns: int
    how: tuple[int, int, int]
    dtype: np.dtype[Any]
    allows_duplicates: bool = True

    @property
    def column_dtype(self) -> type[np.unsignedinteger[Any]]:
        """The smallest type of the columns that hold a value."""
        largest = max((int(one.columns[:, 1].max()) for one in self.fragments), default=0)
        return np.uint16 if largest < 1 << 16 else np.uint32

    @property
    def may_repeat(self) -> bool:
        """Whether a place may have several values of different times: only TileDB selects the newest."""
        return not self.allows_duplicates and any(one.has_timestamps for one in self.fragments)

    @property
    def n_values(self) -> int:
        """Values stored."""
        return sum((len(one.rows) - 1) * self.capacity + one.last_values for one in self.fragments)


def open_tiles(files: ArrayFiles, timestamp_ms: int, geometry: ArrayGeometry, layout: TileLayout) -> TileIndex:
    """Find the tiles of an array as it was at a timestamp.

    Raises
    ------
    UnknownLayout
        If TileDB has to read the array.
    ConsolidatedLater
        If values from before and after the timestamp were consolidated into one fragment: TileDB has to read it, and
        its number of values says nothing about those before the timestamp.
    """
    if find_zstd() is None:
        raise UnknownLayout("no zstd library")
    if not layout.row_major or any(pipeline not in PIPELINES for pipeline in layout.filters):
        raise UnknownLayout(f"filters {layout.filters}, row-major: {layout.row_major}")
    rows, columns, values = (PIPELINES[pipeline] for pipeline in layout.filters)
    dtype = np.dtype(np.uint8 if geometry.dtype == "bool" else geometry.dtype)
    root, commits = files.list_folders("", COMMITS)
    if any(name.startswith("__") and name[2:3].isdigit() for name in root):
        raise UnknownLayout("it has fragments of TileDB before 2.8")
    fragments = _load_fragments(files, tuple(sorted(commits)), timestamp_ms, geometry, dtype)
    if any(int(one.columns.max()) >= 1 << 32 for one in fragments):
        raise UnknownLayout("its columns do not fit 32 bits")
    if not layout.allows_duplicates:
        _check_disjoint(fragments)
    return TileIndex(
        files=files,
        fragments=fragments,
        extent=geometry.row_extent,
        capacity=geometry.capacity,
        n_columns=geometry.n_columns,
        how=(values, rows, columns),
        dtype=dtype,
        allows_duplicates=layout.allows_duplicates,
    )


@lru_cache(maxsize=4)
def _load_fragments(
    files: ArrayFiles, commits: tuple[str, ...], timestamp_ms: int, geometry: ArrayGeometry, dtype: np.dtype[Any]
) -> tuple[Fragment, ...]:
    """Load what the files say once for all passes of a process: what was committed does not change."""
    listed = [name for name in commits if name.endswith(LISTS)]
    texts = dict(zip(listed, files.read_whole([f"{COMMITS}/{name}" for name in listed]), strict=True))
    names = visible_fragments(commits, texts, timestamp_ms)
    metadata = files.read_whole([f"{FRAGMENTS}/{name}/__fragment_metadata.tdb" for name in names])
    max_tiles = geometry.n_rows * geometry.n_columns // geometry.capacity + 1
    found = [
        parse_fragment(name, data, geometry.row_extent, dtype, max_tiles)
        for name, data in zip(names, metadata, strict=True)
    ]
    return tuple(fragment for fragment in found if fragment is not None)


def _check_disjoint(fragments: Sequence[Fragment]) -> None:
    """Refuse fragments that share rows: a place may be in both, and only TileDB knows which value stands."""
    spans = sorted((int(f.rows[:, 0].min()), int(f.rows[:, 1].max())) for f in fragments)
    if any(earlier[1] >= later[0] for earlier, later in zip(spans[:-1], spans[1:], strict=True)):
        raise UnknownLayout("its fragments share rows")
