"""Index of the tiles of an array, if they can be decoded without TileDB.

Arrays with features that are not supported here, such as encryption or deletions, are read through TileDB:
:func:`open_tiles` raises ``UnknownLayout`` with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from cellfeed._geometry import ArrayGeometry
from cellfeed.sources.soma.tiles.files import ArrayFiles
from cellfeed.sources.soma.tiles.fragment_metadata import parse_fragment
from cellfeed.sources.soma.tiles.fragments import LISTS, Fragment, UnknownLayout, visible_fragments
from cellfeed.sources.soma.tiles.packed_tiles import Codec
from cellfeed.sources.soma.tiles.zstd import find_zstd

COMMITS, FRAGMENTS = "__commits", "__fragments"
"""Folders of an array."""

CODECS = {(): Codec.PLAIN, ("ZSTD",): Codec.ZSTD, ("BYTESHUFFLE", "ZSTD"): Codec.SHUFFLED_ZSTD}
"""Codec of each supported pipeline of TileDB's filters."""


@dataclass(frozen=True)
class TileLayout:
    """How the tiles of an array are packed, according to its schema.

    Attributes
    ----------
    filters
        Names of TileDB's filters of rows, columns and values, in the order in which they are applied.
    row_major
        Whether tiles and the values inside them are in row-major order.
    allows_duplicates
        Whether the array may have several values of one place.
    """

    filters: tuple[tuple[str, ...], ...]
    row_major: bool
    allows_duplicates: bool


@dataclass(frozen=True, eq=False)
class TileIndex:
    """The tiles of an array.

    Attributes
    ----------
    files
        Files of the array.
    fragments
        Fragments, oldest first. In an array without duplicates, no two of them have values of the same place.
    extent, capacity, n_columns
        Number of rows of a space tile, of values of a data tile, of columns of the array.
    codecs
        How values, rows and columns are packed, in the order of ``FIELDS``.
    dtype
        Type of the values.
    allows_duplicates
        Whether the array may have several values of one place.
    """

    files: ArrayFiles
    fragments: tuple[Fragment, ...]
    extent: int
    capacity: int
    n_columns: int
    codecs: tuple[Codec, Codec, Codec]
    dtype: np.dtype[Any]
    allows_duplicates: bool = True

    @property
    def column_dtype(self) -> type[np.unsignedinteger[Any]]:
        """The smallest type that represents all columns with values."""
        largest = max((int(fragment.columns[:, 1].max()) for fragment in self.fragments), default=0)
        return np.uint16 if largest < 1 << 16 else np.uint32

    @property
    def may_repeat(self) -> bool:
        """Whether a place may have several values of different times, of which TileDB selects the newest."""
        return not self.allows_duplicates and any(fragment.has_timestamps for fragment in self.fragments)

    @property
    def n_values(self) -> int:
        """Number of stored values."""
        return sum((len(f.rows) - 1) * self.capacity + f.last_values for f in self.fragments)


def open_tiles(files: ArrayFiles, timestamp_ms: int, geometry: ArrayGeometry, layout: TileLayout) -> TileIndex:
    """Return the tiles of an array as of a timestamp.

    Raises
    ------
    UnknownLayout
        If TileDB has to read the array.
    ConsolidatedLater
        If values from before and after the timestamp were consolidated into one fragment. TileDB has to read it, and
        the number of values before the timestamp is unknown.
    """
    if find_zstd() is None:
        raise UnknownLayout("no zstd library")
    if not layout.row_major or any(pipeline not in CODECS for pipeline in layout.filters):
        raise UnknownLayout(f"filters {layout.filters}, row-major: {layout.row_major}")
    rows, columns, values = (CODECS[pipeline] for pipeline in layout.filters)
    dtype = np.dtype(np.uint8 if geometry.dtype == "bool" else geometry.dtype)
    root, commits = files.list_folders("", COMMITS)
    if any(name.startswith("__") and name[2:3].isdigit() for name in root):
        raise UnknownLayout("it has fragments of TileDB before 2.8")
    fragments = _load_fragments(files, tuple(sorted(commits)), timestamp_ms, geometry, dtype)
    if any(int(fragment.columns.max()) >= 1 << 32 for fragment in fragments):
        raise UnknownLayout("its columns do not fit 32 bits")
    if not layout.allows_duplicates:
        _check_disjoint(fragments)
    return TileIndex(
        files=files,
        fragments=fragments,
        extent=geometry.row_extent,
        capacity=geometry.capacity,
        n_columns=geometry.n_columns,
        codecs=(values, rows, columns),
        dtype=dtype,
        allows_duplicates=layout.allows_duplicates,
    )


@lru_cache(maxsize=4)
def _load_fragments(
    files: ArrayFiles, commits: tuple[str, ...], timestamp_ms: int, geometry: ArrayGeometry, dtype: np.dtype[Any]
) -> tuple[Fragment, ...]:
    """Load the metadata of fragments, once per process for all epochs: committed fragments do not change."""
    listed = [name for name in commits if name.endswith(LISTS)]
    texts = dict(zip(listed, files.read_whole([f"{COMMITS}/{name}" for name in listed]), strict=True))
    names = visible_fragments(commits, texts, timestamp_ms)
    metadata = files.read_whole([f"{FRAGMENTS}/{name}/__fragment_metadata.tdb" for name in names])
    max_tiles = geometry.n_rows * geometry.n_columns // geometry.capacity + 1
    fragments = (
        parse_fragment(name, data, geometry.row_extent, dtype, max_tiles)
        for name, data in zip(names, metadata, strict=True)
    )
    return tuple(fragment for fragment in fragments if fragment is not None)


def _check_disjoint(fragments: Sequence[Fragment]) -> None:
    """Raise UnknownLayout if fragments share rows: both may have a value of a place, and TileDB selects one."""
    spans = sorted((int(f.rows[:, 0].min()), int(f.rows[:, 1].max())) for f in fragments)
    if any(earlier[1] >= later[0] for earlier, later in zip(spans[:-1], spans[1:], strict=True)):
        raise UnknownLayout("its fragments share rows")
