"""The joinids of a selection, in a compact form, and operations on runs of joinids.

A *position* numbers the cells of a selection from 0; a *joinid* is the ``soma_joinid`` of the store. A *run* is a
half-open range of joinids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed.errors import SelectionError

IntArray = npt.NDArray[np.int64]

JOINID = "soma_joinid"
"""Column of obs and var with the joinids."""

MAX_COLUMN_RANGES = 4
"""More column ranges are read as a single one, because each is compared with every tile of every row-block."""


@dataclass(frozen=True, eq=False)
class JoinIds:
    """Ascending, distinct joinids, stored as offsets from the first: 4 bytes per cell if the offsets fit.

    ``joinids[positions]`` returns int64 joinids in the shape of ``positions``.
    """

    base: int
    offsets: npt.NDArray[np.uint32] | IntArray

    @classmethod
    def from_sorted(cls, joinids: IntArray) -> JoinIds:
        """Store ascending joinids; raise :class:`SelectionError` if one is repeated."""
        if len(joinids) == 0:
            return cls(0, np.empty(0, np.uint32))
        base = int(joinids[0])
        span = int(joinids[-1]) - base
        offsets = np.subtract(joinids, base, dtype=np.int64)
        compact = offsets.astype(np.uint32) if span < 2**32 else offsets
        if not bool(np.all(compact[1:] > compact[:-1])):
            raise SelectionError("obs has a soma_joinid more than once; each cell must have its own")
        return cls(base, compact)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, positions: IntArray | slice) -> IntArray:
        return self.offsets[positions].astype(np.int64) + self.base

    def take(self, positions: IntArray) -> JoinIds:
        """Return the joinids at ascending positions."""
        return JoinIds(self.base, self.offsets[positions])

    def find(self, joinids: IntArray) -> IntArray:
        """Return the position of each joinid, -1 if it is absent.

        Examples
        --------
        >>> JoinIds.from_sorted(np.array([3, 5, 9])).find(np.array([9, 4, 3, -1])).tolist()
        [2, -1, 0, -1]
        """
        if len(self) == 0:
            return np.full(len(joinids), -1)
        offsets = joinids - self.base
        within = (joinids >= self.base) & (offsets <= int(self.offsets[-1]))
        own = np.where(within, offsets, 0).astype(self.offsets.dtype)  # NumPy would copy offsets of another type
        return np.where(within, find_in(self.offsets, own), -1)

    def row_block_bounds(self, extent: int) -> IntArray:
        """Return the positions at which a row-block of the array begins.

        Parameters
        ----------
        extent
            Rows in a row-block: the tile extent of the array's first dimension.

        Returns
        -------
        int64, shape (n_row_blocks + 1,): ascending, from 0 to ``len(self)``. Row-blocks without a joinid do not count.

        Examples
        --------
        >>> JoinIds.from_sorted(np.array([0, 1, 5, 9])).row_block_bounds(4).tolist()
        [0, 2, 3, 4]
        """
        n = len(self)
        if n == 0:
            return np.zeros(1, np.int64)
        first = self.base // extent
        last = (self.base + int(self.offsets[-1])) // extent
        if last - first > n:  # sparse joinids: fewer cells than row-blocks
            blocks = self[:] // extent
            starts = np.flatnonzero(np.diff(blocks)) + 1
        else:
            edges = np.arange(first + 1, last + 1) * extent - self.base
            # Equal dtypes: NumPy would otherwise copy the joinids to a wider type.
            starts = np.searchsorted(self.offsets, edges.astype(self.offsets.dtype))
        return np.unique(np.concatenate(([0], starts, [n]))).astype(np.int64)


def find_in(ascending: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> IntArray:
    """Return the index of each wanted number among ascending ones, -1 if it is absent.

    Examples
    --------
    >>> find_in(np.array([3, 5, 9]), np.array([9, 4, 3, 10])).tolist()
    [2, -1, 0, -1]
    """
    if len(ascending) == 0:
        return np.full(len(wanted), -1)
    places = np.searchsorted(ascending, wanted)
    places[places == len(ascending)] = 0
    return np.where(ascending[places] == wanted, places, -1)


def in_order(joinids: IntArray) -> tuple[IntArray, IntArray]:
    """Return the order that sorts joinids, and the repeated joinids.

    Examples
    --------
    >>> [part.tolist() for part in in_order(np.array([7, 3, 7]))]
    [[1, 0, 2], [7]]
    """
    order = np.argsort(joinids, kind="stable")
    ascending = joinids[order]
    return order, ascending[1:][ascending[1:] == ascending[:-1]]


def expand(low: IntArray, high: IntArray) -> tuple[IntArray, IntArray]:
    """Return the integers of half-open ranges, concatenated, and the index of the range of each integer.

    Examples
    --------
    >>> [part.tolist() for part in expand(np.array([3, 8]), np.array([5, 9]))]
    [[3, 4, 8], [0, 0, 1]]
    """
    sizes = high - low
    source = np.repeat(np.arange(len(low)), sizes)  # (n_integers,)
    starts = np.cumsum(sizes) - sizes  # (n_ranges,)
    return np.arange(sizes.sum()) - starts[source] + low[source], source


def runs_of(joinids: IntArray) -> IntArray:
    """Return the runs of ascending joinids.

    Returns
    -------
    int64, shape (n_runs, 2): half-open ``[start, stop)``, ascending, with gaps between them.

    Examples
    --------
    >>> runs_of(np.array([3, 4, 5, 9])).tolist()
    [[3, 6], [9, 10]]
    """
    if len(joinids) == 0:
        return np.empty((0, 2), np.int64)
    breaks = np.flatnonzero(np.diff(joinids) != 1)
    starts = joinids[np.concatenate(([0], breaks + 1))]
    stops = joinids[np.concatenate((breaks, [len(joinids) - 1]))] + 1
    return np.stack((starts, stops), axis=1)


def merge_runs(runs: IntArray, *, max_gap: int) -> IntArray:
    """Join neighbouring runs with at most ``max_gap`` unwanted joinids between them.

    An unwanted row costs a copy; a range costs a comparison with every tile.

    Examples
    --------
    >>> merge_runs(np.array([[3, 6], [9, 10], [20, 21]]), max_gap=3).tolist()
    [[3, 10], [20, 21]]
    """
    if len(runs) == 0:
        return runs
    is_gap = runs[1:, 0] - runs[:-1, 1] > max_gap  # (n_runs - 1,)
    starts = runs[np.concatenate(([True], is_gap)), 0]
    stops = runs[np.concatenate((is_gap, [True])), 1]
    return np.stack((starts, stops), axis=1)


def read_bounds(joinids: IntArray, *, extent: int, max_row_blocks: int, max_rows: int) -> IntArray:
    """Divide ascending joinids into reads of whole row-blocks, because a row-block in two reads is decoded twice.

    A read has at least one row-block. It has at most ``max_row_blocks``, and at most ``max_rows`` wanted rows unless a
    single row-block has more.

    Returns
    -------
    int64, shape (n_reads + 1,): indices into ``joinids``, from 0 to its length.

    Examples
    --------
    >>> read_bounds(np.array([0, 1, 5, 9]), extent=4, max_row_blocks=2, max_rows=100).tolist()
    [0, 3, 4]
    """
    n = len(joinids)
    edges = [0, *(np.flatnonzero(np.diff(joinids // extent)) + 1).tolist(), n]
    bounds = [0]
    n_blocks = 0
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        if n_blocks and (n_blocks == max_row_blocks or end - bounds[-1] > max_rows):
            bounds.append(start)
            n_blocks = 0
        n_blocks += 1
    return np.array([*bounds, n] if n else [0], np.int64)


def column_ranges(var_joinids: IntArray, *, extent: int, n_columns: int) -> IntArray | None:
    """Return the ranges of columns with all wanted genes, rounded to bands: the column extents of the array's tiles.

    TileDB reads whole tiles, so a range that ends inside a band saves nothing, and costs a comparison per value. More
    than ``MAX_COLUMN_RANGES`` ranges are joined to a single one.

    Returns
    -------
    int64, shape (n_ranges, 2): half-open; ``None`` if every band has a wanted gene.

    Examples
    --------
    >>> column_ranges(np.array([0, 5, 21]), extent=10, n_columns=60).tolist()
    [[0, 10], [20, 30]]
    """
    bands = np.unique(var_joinids // extent)
    if len(bands) == 0 or len(bands) == -(-n_columns // extent):
        return None
    ranges = runs_of(bands) * extent
    if len(ranges) > MAX_COLUMN_RANGES:
        ranges = np.array([[ranges[0, 0], ranges[-1, 1]]])
    return np.minimum(ranges, n_columns)
