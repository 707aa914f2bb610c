"""The memory budget of one process, and the cost of reads: estimates from metadata alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cellfeed._checks import format_bytes, parse_bytes
from cellfeed._geometry import ArrayGeometry
from cellfeed._joinids import IntArray, JoinIds

MAX_BUFFER_BYTES = 30 << 20
"""Largest read buffer that glibc takes from the heap (its largest mmap threshold is 32 MiB)."""

TILE_BYTES = 16 << 20
"""Decoded tiles held by one query: ``sm.mem.tile_upper_memory_limit`` of the reader."""

MINIBATCHES_HELD = 3
"""One in the training loop, one prefetched, one being assembled."""

BYTES_PER_PAGE_VALUE = 20
"""Two int64 coordinates and a float32: a value as TileDB returns it."""

PACKED_BYTES_PER_VALUE = 3
"""A value and its coordinates in the files: 1.6 bytes in a Census, 2 as tiledbsoma writes by default."""

SCRATCH_BYTES = 2 << 20
"""One unpacked tile."""

COPY_BYTES_PER_VALUE = 1.7
"""A value and its column in a local copy: 1.61 for a store like a Census, compressed by LZ4."""

DECODE_NS_PER_VALUE = 15
"""Nanoseconds of one core to read and decode a value (benchmarks/run.py, 2026-11, 2 cores of a virtual machine)."""

SCAN_NS_PER_TILE = 3
"""Nanoseconds of a TileDB query per tile of the array, wanted or not: 2.5 to 4 with a million tiles
(benchmarks/growth.py, 2026-11)."""

MAX_ROW_BLOCKS_PER_READ = 16
"""Row-blocks per query: a read of few rows of many row-blocks decodes all of these row-blocks."""

MIN_ROWS_PER_READ = 2048
"""Rows per read of arrays with smaller tiles."""

MAX_CELLS_HELD = 1 << 22
"""Cells in the pool: more cells hardly mix better, and computing their order takes time."""

FIRST_NNZ = 50e6
"""nnz of the chunks that are fetched first, unless ``mixing`` is given: reading them takes about 0.25 s."""

FIRST_REMOTE_NNZ = 10e6
"""The same on an object store: 16 MB, less than half a second at 40 MB/s."""

REMOTE_READS = 8
"""Concurrent reads of an object store, which wait for responses and not for cores."""

REMOTE_READ_NNZ = 5e6
"""nnz per read of files on an object store: 8 MB, so that latency is a small part of the time."""

REQUESTS_PER_CORE, MIN_REQUESTS, MAX_REQUESTS = 4, 8, 32
"""Concurrent requests to an object store. More delay the first minibatch: with 8, 16 and 32 requests it came after 1.3,
1.7 and 2.8 s over a line of 40 MB/s and 50 ms, which 8 requests fill (2026-11, 2 cores)."""

ORDERED_NNZ = 25e6
"""nnz per window in joinid order: larger windows have no benefit."""

BYTES_PER_CELL = 48
"""Bytes per cell for a window's plan and row pointers."""

SAFETY = 3.0
"""Standard deviations of a random window's size that the budget has room for."""


@dataclass(frozen=True, eq=False)
class ReadBudget:
    """The memory of the reads of one matrix.

    No property depends on the number of cores, or orders would differ between machines.

    Attributes
    ----------
    n_bytes
        The budget, of which reads take a quarter, or one query.
    geometry
        Geometry of the array.
    is_remote
        Whether the array is on an object store.
    value_bytes
        Bytes per value in the pool, its gene included.
    nnz, max_nnz_per_row
        Total nnz of the selected cells, and nnz per cell of the row-block in which it is highest.
    """

    n_bytes: int
    geometry: ArrayGeometry
    is_remote: bool
    value_bytes: int
    nnz: float
    max_nnz_per_row: float

    def _max_nnz(self, n_rows: int) -> float:
        return min(self.max_nnz_per_row * n_rows, self.nnz)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of each of the three buffers of a query."""
        return max(1 << 16, min(MAX_BUFFER_BYTES, self.n_bytes // 24))

    @cached_property
    def rows_per_query(self) -> int:
        """Most rows per query: whole row-blocks, so that scanning all tiles is at most a tenth of its work.

        Every query compares its ranges with every tile of the array, which takes tens of milliseconds in a Census. More
        row-blocks per query need more memory: at most a quarter of the budget.
        """
        geometry = self.geometry
        block_nnz = max(geometry.nnz_per_row * geometry.row_extent, 1.0)
        scan_ns = geometry.nnz / geometry.capacity * SCAN_NS_PER_TILE
        wanted = math.ceil(scan_ns / (0.1 * block_nnz * DECODE_NS_PER_VALUE))
        affordable = int(self.n_bytes / 4 / (block_nnz * self.value_bytes * 2))
        n_row_blocks = max(1, min(wanted, affordable, MAX_ROW_BLOCKS_PER_READ))
        return max(n_row_blocks * geometry.row_extent, MIN_ROWS_PER_READ)

    @cached_property
    def query_bytes(self) -> int:
        """Bytes of one running query: a page, decoded tiles, staged values and the rows made of them."""
        nnz = self._max_nnz(self.rows_per_query)
        decoded = int(nnz * BYTES_PER_PAGE_VALUE)
        page = min(3 * self.buffer_bytes, decoded) + min(TILE_BYTES, decoded)
        return max(1, page + int(nnz * self.value_bytes * 2))

    @property
    def reads_bytes(self) -> int:
        """Bytes reserved for running reads: a quarter of the budget, or one query."""
        return max(self.n_bytes // 4, self.query_bytes)

    @cached_property
    def rows_per_file_read(self) -> int:
        """Most rows per read of files: a row-block, or more on an object store to make up for its latency."""
        least = max(self.geometry.row_extent, MIN_ROWS_PER_READ)
        if not self.is_remote:
            return least
        affordable = self.reads_bytes / REMOTE_READS / PACKED_BYTES_PER_VALUE
        return max(least, int(min(REMOTE_READ_NNZ, affordable) / max(self.max_nnz_per_row, 1.0)))

    @property
    def file_read_bytes(self) -> int:
        """Bytes of one running read of files: packed tiles and scratch. The rows made of them belong to the pool."""
        nnz = self._max_nnz(max(self.rows_per_file_read, self.rows_per_query))
        return int(nnz * PACKED_BYTES_PER_VALUE) + SCRATCH_BYTES


@dataclass(frozen=True, eq=False)
class ProcessBudget(ReadBudget):
    """The memory of one process, divided among reads, minibatches and the pool.

    Attributes
    ----------
    chunk_bytes
        float64, shape (n_chunks,): bytes of each chunk in the pool, over all matrices.
    minibatch_bytes
        Bytes of all minibatches in memory.
    prefetch
        Whether chunks are read before their window begins.
    further
        The matrices that are read beside X.
    held_bytes
        Bytes of embeddings and numeric columns of obs, which stay in memory.
    """

    chunk_bytes: npt.NDArray[np.float64]
    minibatch_bytes: int
    prefetch: bool
    further: tuple[ReadBudget, ...] = ()
    held_bytes: int = 0

    @cached_property
    def matrices(self) -> tuple[ReadBudget, ...]:
        """The budgets of the reads of X and of each further matrix, which have equal parts of the whole."""
        own = ReadBudget(**{field.name: getattr(self, field.name) for field in fields(ReadBudget)})
        n_bytes = self.n_bytes // (1 + len(self.further))
        return tuple(replace(matrix, n_bytes=n_bytes) for matrix in (own, *self.further))

    @property
    def all_reads_bytes(self) -> int:
        """Bytes reserved for running reads of all matrices."""
        return sum(matrix.reads_bytes for matrix in self.matrices)

    @property
    def pool_bytes(self) -> int:
        """Bytes that all else leaves for the pool; negative if the budget is too small for it."""
        return self.n_bytes - self.peak_bytes(0)

    @cached_property
    def min_pool_bytes(self) -> float:
        """Bytes of the smallest pool: the largest chunk, and another one if chunks are prefetched."""
        return float(self.chunk_bytes.max(initial=0.0)) * (2 if self.prefetch else 1)

    @property
    def is_enough(self) -> bool:
        """Whether the smallest pool fits in the budget."""
        return self.pool_bytes >= self.min_pool_bytes

    def peak_bytes(self, pool_bytes: float) -> int:
        """Return the most bytes in memory with a pool of ``pool_bytes``."""
        return int(pool_bytes) + self.all_reads_bytes + self.minibatch_bytes + self.held_bytes

    @cached_property
    def chunks_that_fit(self) -> float:
        """Number of random chunks that fit in the pool.

        Their total size has a mean of ``mean * h`` and a standard deviation of ``std * sqrt(h)`` for ``h`` chunks, and
        ``h`` solves ``mean * h + SAFETY * std * sqrt(h) = pool_bytes``.
        """
        chunks, room = self.chunk_bytes, max(self.pool_bytes, 0.0)
        if len(chunks) == 0 or chunks.max() == 0:
            return float(max(len(chunks), 2))
        if chunks.sum() <= room:
            return 2.0 * len(chunks)  # all chunks are in the pool, and none is left to prefetch
        mean, spread = float(chunks.mean()), SAFETY * float(chunks.std())
        root = (-spread + math.sqrt(spread**2 + 4 * mean * room)) / (2 * mean)
        return root**2

    @cached_property
    def neighbours_that_fit(self) -> int:
        """Number of consecutive chunks that fit in the pool, wherever they begin; at least 1."""
        room = self.pool_bytes / (2 if self.prefetch else 1)
        ends = np.concatenate(([0.0], np.cumsum(self.chunk_bytes)))
        low, high = 1, max(len(self.chunk_bytes), 1)
        while low < high:
            middle = (low + high + 1) // 2
            fits = float((ends[middle:] - ends[:-middle]).max()) <= room
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


def smallest_budget(is_enough: Callable[[int], bool]) -> str:
    """Return the smallest number of bytes for which ``is_enough`` holds, within a percent, as text.

    Examples
    --------
    >>> smallest_budget(lambda n_bytes: n_bytes >= 3_000_000)
    '2.88 MiB'
    """
    low, high = 0, 1 << 20
    while not is_enough(high):
        low, high = high, 2 * high
    while high - low > high // 100:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    while not is_enough(parse_bytes(format_bytes(high))):  # the text is rounded
        high = math.ceil(high * 1.005)
    return format_bytes(high)


def decode_amplification(joinids: JoinIds, fetches: list[IntArray], geometry: ArrayGeometry) -> float:
    """Return the number of values decoded per value used, estimated from the geometry of the tiles.

    A data tile holds ``capacity`` values in the order of row-block, gene band, row. A read of a row-block therefore
    decodes tiles of every band. With ``T`` data tiles and ``C`` bands per row-block, about ``min(T, 1.5 C)`` tiles hold
    values of any given row. The other tiles are decoded in proportion to the distance between the first and the last
    wanted row. Measured on tiles of Census-like stores, the amplification is 19 for a single chunk of 64 rows and 1.0
    for a whole row-block.

    Parameters
    ----------
    fetches
        Ascending positions per fetch. A fetch decodes a row-block once.
    """
    n_tiles = geometry.nnz_per_row * geometry.row_extent / geometry.capacity  # T
    n_bands = -(-geometry.n_columns // max(geometry.column_extent, 1))  # C
    spanning = min(n_tiles, 1.5 * n_bands)
    decoded = wanted = 0.0  # in rows
    for positions in fetches:
        ids = joinids[positions]
        if len(ids) == 0:
            continue
        edges = np.flatnonzero(np.diff(ids // geometry.row_extent)) + 1
        first, last = np.concatenate(([0], edges)), np.concatenate((edges, [len(ids)])) - 1  # (n_row_blocks,) each
        span = np.minimum((ids[last] - ids[first] + 1) / geometry.row_extent, 1.0)
        n_decoded = np.maximum(1.0, spanning + (n_tiles - spanning) * span)
        # Neighbouring row-blocks can share a tile, and the last row-block of an array has fewer rows.
        decoded += min(float(n_decoded.sum()) / max(n_tiles, 1e-12) * geometry.row_extent, geometry.n_rows)
        wanted += len(ids)
    return max(1.0, decoded / wanted) if wanted else 1.0
