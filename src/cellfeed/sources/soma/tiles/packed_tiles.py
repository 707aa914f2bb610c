"""Arguments of the kernels that decode tiles: packed tiles, segments and recorded statistics. Without numba.

A *segment* is a run of consecutive values of a tile that belong to the same row. A *section* is the part of a tile that
is decoded or skipped as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray
from cellfeed.sources.soma.tiles.fragments import Fragment

CHUNK_BYTES = 1 << 16
"""Largest number of bytes of a decoded chunk; TileDB packs tiles by chunks."""

SECTION_SIZE = CHUNK_BYTES // 8
"""Number of values of a section: that of a chunk of coordinates, which are int64."""

DAMAGED, NOT_COUNTS, FULL = -1, -2, -3
"""Status of kernels: the bytes of a tile are inconsistent; a value is not a count or too large for the type of the
rows; the arrays of segments are too small."""


class Codec(IntEnum):
    """How a field is packed."""

    PLAIN = 0
    ZSTD = 1
    SHUFFLED_ZSTD = 2
    """Bytes are shuffled to planes before zstd."""


class Decoder(NamedTuple):
    """zstd and its memory; one thread uses it at a time.

    Attributes
    ----------
    unpack
        Address of the kernel that unpacks a tile.
    decompress, context
        Addresses of ``ZSTD_decompressDCtx`` and of a context for it.
    chunk
        uint8, shape (``CHUNK_BYTES``,): memory for a decoded chunk.
    """

    unpack: int
    decompress: int
    context: int
    chunk: npt.NDArray[np.uint8]


class PackedField(NamedTuple):
    """One field (values, rows or columns) of some tiles.

    Attributes
    ----------
    data
        uint8: packed bytes, as in the file.
    places
        int64, shape (n_tiles, 2): where each tile begins and ends in ``data``.
    codec
        A :class:`Codec`, as a plain integer.
    unpacked
        shape (capacity,): memory for one unpacked tile. Its type may be narrower than that in the file.
    """

    data: npt.NDArray[np.uint8]
    places: IntArray
    codec: int
    unpacked: npt.NDArray[Any]


class Segments(NamedTuple):
    """Segments of wanted rows in the tiles of a fragment.

    Attributes
    ----------
    row, start, size
        int32, shape (capacity,): index of each segment's row among the wanted rows, its start in the tile, its size.
    ends
        int64, shape (n_tiles,): number of segments up to and including each tile.
    counts
        int64, shape (n_tiles,): number of values of each tile.
    wanted
        bool, shape (n_tiles, n_sections): sections to decode.
    """

    row: npt.NDArray[np.int32]
    start: npt.NDArray[np.int32]
    size: npt.NDArray[np.int32]
    ends: IntArray
    counts: IntArray
    wanted: npt.NDArray[np.bool_]


class RowStatistics(NamedTuple):
    """Recorded row numbers of tiles.

    Attributes
    ----------
    bounds
        uint32 or int64, shape (n_tiles, 2): smallest and largest row.
    sums
        int64, shape (n_tiles,): sum of row numbers; empty if it is not to be verified.
    """

    bounds: npt.NDArray[Any]
    sums: IntArray


class ValueStatistics(NamedTuple):
    """Recorded columns and values of tiles.

    Attributes
    ----------
    column_bounds
        int64, shape (n_tiles, 2): smallest and largest column.
    column_sums, value_sums
        int64, or float64 for values that are floats, shape (n_tiles,): empty if they are not to be verified.
    smallest, largest
        Type of the values in the file, shape (n_tiles,).
    """

    column_bounds: IntArray
    column_sums: IntArray
    value_sums: npt.NDArray[Any]
    smallest: npt.NDArray[Any]
    largest: npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class PackedTiles:
    """Packed tiles of one fragment.

    Attributes
    ----------
    fragment
        The fragment.
    tiles
        int64, shape (n_tiles,): indices of the tiles in the fragment.
    values, rows, columns
        The fields of the tiles.
    """

    fragment: Fragment
    tiles: IntArray
    values: PackedField
    rows: PackedField
    columns: PackedField

    @property
    def n_bytes(self) -> int:
        """Number of packed bytes."""
        return sum(
            int((field.places[:, 1] - field.places[:, 0]).sum()) for field in (self.values, self.rows, self.columns)
        )

    def counts(self, capacity: int) -> IntArray:
        """Return the number of values of each tile: all tiles are full except the last of the fragment."""
        return np.where(self.tiles == len(self.fragment.rows) - 1, self.fragment.last_values, capacity)

    def row_statistics(self, *, verify: bool) -> RowStatistics:
        """Return what the metadata records about rows."""
        tiles_to_verify = self.tiles if verify else self.tiles[:0]
        return RowStatistics(self.fragment.rows[self.tiles], self.fragment.row_sums[tiles_to_verify])

    def value_statistics(self, n_columns: int, *, verify: bool) -> ValueStatistics:
        """Return what the metadata records about columns and values."""
        fragment, tiles = self.fragment, self.tiles
        tiles_to_verify = tiles if verify else tiles[:0]
        return ValueStatistics(
            column_bounds=np.minimum(fragment.columns[tiles].astype(np.int64), n_columns - 1),
            column_sums=fragment.column_sums[tiles_to_verify],
            value_sums=fragment.value_sums[tiles_to_verify],
            smallest=fragment.smallest[tiles],
            largest=fragment.largest[tiles],
        )

    def request_unverified(self, segments: Segments) -> None:
        """Mark all sections of the tiles that this process has not verified yet as wanted."""
        segments.wanted[~self.fragment.verified[self.tiles]] = True

    def set_verified(self, segments: Segments) -> None:
        """Mark the tiles that have segments as verified."""
        self.fragment.verified[self.tiles[np.diff(segments.ends, prepend=0) > 0]] = True
