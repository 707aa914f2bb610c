"""How many chunks fit in memory, and what an epoch will cost: estimates from metadata alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellfeed._geometry import ArrayGeometry
from cellfeed._joinids import IntArray, JoinIds

MAX_BUFFER_BYTES = 30 << 20
"""A read buffer that glibc still takes from the heap (its largest mmap threshold is 32 MiB)."""

TILE_BYTES = 16 << 20
"""Decoded tiles that one query holds: ``sm.mem.tile_upper_memory_limit`` of the reader."""

MINIBATCHES_HELD = 3
"""One with the consumer, one that waits, one in the making."""

BYTES_PER_PAGE_VALUE = 20
"""Two int64 coordinates and a float32, as TileDB hands them over."""


PACKED_BYTES_PER_VALUE = 3
"""A coordinate pair and a value in the files: 1.6 in a Census, 2 as tiledbsoma writes by default."""

SCRATCH_BYTES = 2 << 20
"""One unpacked tile."""

DECODE_NS_PER_VALUE = 15
"""Nanoseconds of one core to read and decode a value (benchmarks/run.py, 2026-11, 2 cores of a virtual machine)."""

SCAN_NS_PER_TILE = 3
"""Nanoseconds that a query of TileDB spends on each tile of the array, wanted or not: 2.5 to 4 where there are a
million (benchmarks/growth.py, 2026-11)."""

MAX_ROW_BLOCKS_PER_READ = 16
"""Row-blocks of one query at most: a read of few rows of many row-blocks decodes them whole all the same."""

MIN_ROWS_PER_READ = 2048
"""Arrays of small tiles are read in steps of so many rows."""

MAX_CELLS_HELD = 1 << 22
"""More cells are not held: they mix no better, and their order is work, too."""

FIRST_VALUES = 50e6
"""Values of the cells with which a walk begins where no mixing is asked for: read in about a quarter of a second."""

FIRST_REMOTE_VALUES = 10e6
"""The same on an object store: 16 MB, in less than half a second at 40 MB/s."""

REMOTE_READS = 8
"""Reads under way at once where they wait for responses and not for cores."""

REMOTE_READ_VALUES = 5e6
"""Values of a read of files on an object store: 8 MB, so that it is worth the latency."""

REQUESTS_PER_CORE, MIN_REQUESTS, MAX_REQUESTS = 4, 8, 32
"""Requests to an object store under way at once. More hold up the first minibatch: with 8, 16 and 32 it came after 1.3,
1.7 and 2.8 s over a line of 40 MB/s and 50 ms, which 8 fill (2026-11, 2 cores)."""

ORDERED_VALUES = 25e6
"""Values of a window in the order of joinids: larger ones are of no use."""

BYTES_PER_CELL = 48
"""A cell's share of a window's plan and of row pointers."""

SAFETY = 3.0
"""Standard deviations of a random window's size for which there shall be room."""


@dataclass(frozen=True)
class MemoryModel:
    """What is held at once, in bytes.

    Attributes
    ----------
    chunks
        float64, shape (n_chunks,): each chunk in the pool, its values in compact types.
    in_flight
        All reads under way.
    minibatches
        Assembled minibatches.
    ahead
        Whether what arrives next is read while a window leaves.
    """

    chunks: npt.NDArray[np.float64]
    in_flight: int
    minibatches: int
    ahead: bool

    def peak(self, pool: float) -> int:
        """Bytes held at most with a pool of so many bytes."""
        return int(pool) + self.in_flight + self.minibatches

    @property
    def least_pool(self) -> float:
        """Bytes of the smallest pool: the largest chunk, and as much that is read ahead."""
        return float(self.chunks.max(initial=0.0)) * (2 if self.ahead else 1)

    def room(self, budget: int) -> float:
        """Bytes of a budget that are left for the pool; too few are less than ``least_pool``."""
        return budget - self.in_flight - self.minibatches

    def chunks_that_fit(self, budget: int) -> float:
        """Chunks from random places that fit in a budget: their number has a mean and a spread, and both must fit."""
        room = max(self.room(budget), 0.0)
        if len(self.chunks) == 0 or self.chunks.max() == 0:
            return float(max(len(self.chunks), 2))
        mean, spread = float(self.chunks.mean()), SAFETY * float(self.chunks.std())
        if self.chunks.sum() <= room:
            return 2.0 * len(self.chunks)  # all of them, and there is no more to read ahead
        root = (-spread + math.sqrt(spread**2 + 4 * mean * room)) / (2 * mean)  # of h: mean h + spread sqrt(h) = room
        return root**2

    def neighbours_that_fit(self, budget: int) -> int:
        """Chunks of a window in the order of joinids: all are known, and the largest window must fit."""
        room = self.room(budget) / (2 if self.ahead else 1)
        total = np.concatenate(([0.0], np.cumsum(self.chunks)))
        low, high = 1, max(len(self.chunks), 1)
        while low < high:
            middle = (low + high + 1) // 2
            fits = float((total[middle:] - total[:-middle]).max()) <= room
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


def row_blocks_per_read(geometry: ArrayGeometry, *, kept_bytes: int, memory_budget: int) -> int:
    """Row-blocks that one query takes, so that looking through all tiles is a tenth of its work or less.

    Every query compares its ranges with every tile of the array once, which is nothing in a small array and tens of
    milliseconds in a Census. More row-blocks a query also hold more memory: a quarter of the budget at most.
    """
    values = max(geometry.values_per_row * geometry.row_extent, 1.0)
    scan_ns = geometry.n_values / geometry.capacity * SCAN_NS_PER_TILE
    wanted = math.ceil(scan_ns / (0.1 * values * DECODE_NS_PER_VALUE))
    affordable = int(memory_budget / 4 / (values * kept_bytes * 2))
    return max(1, min(wanted, affordable, MAX_ROW_BLOCKS_PER_READ))


def bytes_per_query(values_per_read: float, *, kept_bytes: int, buffer_bytes: int) -> int:
    """Bytes of one query under way: a page, decoded tiles, staged values and the block made of them."""
    decoded = int(values_per_read * BYTES_PER_PAGE_VALUE)
    page = min(3 * buffer_bytes, decoded) + min(TILE_BYTES, decoded)
    return max(1, page + int(values_per_read * kept_bytes * 2))


def bytes_per_file_read(values_per_read: float) -> int:
    """Bytes of one read of files under way: packed tiles and scratch; the rows made of them are the window's."""
    return int(values_per_read * PACKED_BYTES_PER_VALUE) + SCRATCH_BYTES


def reads_bytes(budget: int, per_read: int) -> int:
    """Bytes set aside for reads under way, whatever the number of cores: a quarter of the budget, or one read."""
    return max(budget // 4, per_read)


def buffer_bytes(budget: int) -> int:
    """Bytes of one read buffer: as large as pays, smaller where the budget is."""
    return max(1 << 16, min(MAX_BUFFER_BYTES, budget // 24))


def decode_amplification(joinids: JoinIds, fetches: list[IntArray], geometry: ArrayGeometry) -> float:
    """Values decoded for each value wanted, from the geometry of the tiles.

    A data tile holds ``capacity`` values in the order of row-block, gene band, row. A visit to a
    row-block therefore touches every band; with T data tiles and C bands to a row-block, about
    ``min(T, 1.5 C)`` tiles span all of its rows or hold any given one, and the rest are
    touched in proportion to the rows between the first and the last wanted one. Measured on tiles of
    Census-like stores this is 19 for a lone chunk of 64 rows, 1.0 for a whole row-block.

    Parameters
    ----------
    fetches
        Ascending positions of the windows to judge by; rows of one window that share a row-block are
        decoded once.
    """
    values_per_block = geometry.values_per_row * geometry.row_extent
    tiles = values_per_block / geometry.capacity
    bands = -(-geometry.n_columns // max(geometry.column_extent, 1))
    decoded = wanted = 0.0
    for positions in fetches:
        ids = joinids[positions]
        if len(ids) == 0:
            continue
        edges = np.flatnonzero(np.diff(ids // geometry.row_extent)) + 1
        first, last = np.concatenate(([0], edges)), np.concatenate((edges, [len(ids)])) - 1
        span = np.minimum((ids[last] - ids[first] + 1) / geometry.row_extent, 1.0)
        everywhere = min(tiles, 1.5 * bands)
        touched = np.maximum(1.0, everywhere + (tiles - everywhere) * span)
        # Neighbouring row-blocks can share a tile, and the last row-block of an array is cut short.
        decoded += min(float(touched.sum()) / max(tiles, 1e-12) * geometry.row_extent, geometry.n_rows)
        wanted += len(ids)
    return max(1.0, decoded / wanted) if wanted else 1.0
