"""From a selection and settings to plans: what a chunk is, how many fit, how many threads read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._checks import format_bytes
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError
from cellfeed.plan import budget, mixing_target
from cellfeed.plan.cells import Cells
from cellfeed.plan.epoch import EpochOrder, World, chunk_bounds
from cellfeed.plan.forecast import evenly, forecast
from cellfeed.plan.schedule import ShufflePlan, best_shuffle_plan
from cellfeed.plan.settings import Settings
from cellfeed.plan.summary import Plan

CHUNKS_SAMPLED = 64
"""Chunks by which the decoding of chunks of some size is judged."""


@dataclass(frozen=True)
class Resources:
    """What one process may use.

    Attributes
    ----------
    n_threads
        Threads that make a minibatch together.
    n_file_reads, n_queries
        Reads under way at once: of files, or by TileDB.
    n_requests
        Requests under way at once, on an object store.
    rows_per_file_read
        Wanted rows of one read of files at most.
    buffer_bytes
        Bytes of each buffer that TileDB fills, three to a query.
    rows_per_read
        Wanted rows of one query at most.
    windows_ahead
        Windows that are read ahead.
    pool_bytes
        Bytes of the pool, on average.
    n_windows
        Windows of which the pool holds cells.
    pool_dtype
        Type of values that no small integer holds.
    """

    n_threads: int
    n_file_reads: int
    n_queries: int
    n_requests: int
    rows_per_file_read: int
    buffer_bytes: int
    rows_per_read: int
    windows_ahead: int
    pool_bytes: float
    n_windows: int
    pool_dtype: np.dtype[Any]


class Planner:
    """Plans epochs over a selection; orders do not depend on the machine."""

    def __init__(self, cells: Cells, settings: Settings) -> None:
        self._cells = cells
        self._settings = settings
        self._mixings: dict[int, ShufflePlan] = {}

    # ------------------------------------------------------------------ chunks

    @cached_property
    def chunk_rows(self) -> int:
        """Rows of the array from which a chunk is what was selected: a row-block, or less where a mixing is asked for.

        0 where chunks are of so many selected cells.
        """
        extent, settings = self._cells.geometry.row_extent, self._settings
        if settings.soma_chunk_size is not None:
            return 0
        if settings.mixing is None or self._cells.n_obs == 0:
            return extent
        return mixing_target.choose(
            settings.mixing,
            batch_size=settings.batch_size,
            memory_budget=settings.memory_budget,
            candidates=[self._candidate(rows) for rows in mixing_target.fractions(extent)],
        )

    @cached_property
    def bounds(self) -> IntArray:
        """int64, shape (n_chunks + 1,): positions that cut the selection into chunks."""
        return self._bounds(self.chunk_rows)

    def _bounds(self, chunk_rows: int) -> IntArray:
        if chunk_rows == 0 and self._settings.soma_chunk_size is not None:
            return chunk_bounds(self._cells.n_obs, self._settings.soma_chunk_size)
        return self._cells.joinids.row_block_bounds(chunk_rows)

    def _candidate(self, chunk_rows: int) -> mixing_target.Candidate:
        bounds = self._bounds(chunk_rows)
        lone = [np.arange(bounds[k], bounds[k + 1]) for k in evenly(len(bounds) - 1, CHUNKS_SAMPLED)]
        amplification = budget.decode_amplification(self._cells.joinids, lone, self._cells.geometry)
        held = self._bytes_held(bounds, self._values(bounds))
        return mixing_target.Candidate(chunk_rows, bounds, partial(self._memory_of, held), amplification)

    @cached_property
    def _chunk_values(self) -> npt.NDArray[np.float64]:
        return self._values(self.bounds)

    @cached_property
    def _row_block_bounds(self) -> IntArray:
        return self._bounds(self._cells.geometry.row_extent)

    @cached_property
    def _row_block_values(self) -> npt.NDArray[np.float64]:
        return self._values(self._row_block_bounds)

    def _values(self, bounds: IntArray) -> npt.NDArray[np.float64]:
        """Count stored values of each chunk: as obs tells them, else by the mean of the array; of selected genes."""
        sizes, cells = np.diff(bounds), self._cells
        if cells.nnz is None:
            values = sizes * cells.geometry.values_per_row
        elif len(sizes):
            values = np.add.reduceat(cells.nnz, bounds[:-1], dtype=np.float64)
        else:
            values = np.zeros(0)
        return np.minimum(values, sizes * float(cells.n_vars))

    # ------------------------------------------------------------------ memory

    @property
    def pool_dtype(self) -> np.dtype[Any]:
        """Type of values in the pool that no small integer holds."""
        store = np.dtype(self._cells.geometry.dtype)
        if self._settings.X_dtype == "stored" or store.itemsize < 4:
            return store
        return np.dtype(np.float32)

    @property
    def _x_bytes(self) -> int:
        """Bytes of a value of X in a minibatch."""
        halves = self._settings.X_dtype in ("float16", "bfloat16")
        return 2 if halves else self.pool_dtype.itemsize if self._settings.X_dtype == "stored" else 4

    @property
    def _kept_bytes(self) -> int:
        """Bytes of a value in the pool at most: its gene and itself."""
        return (2 if self._cells.n_vars <= 1 << 16 else 4) + self.pool_dtype.itemsize

    def resources(self, num_workers: int, n_cores: int) -> Resources:
        """Divide the cores of this machine and the budget among the processes of a loader."""
        share = self._settings.memory_budget // num_workers
        cores, per_query = max(1, n_cores // num_workers), self._bytes_per_query(share)
        room = budget.reads_bytes(share, per_query)
        rows_per_file_read = self._rows_per_file_read(room)
        per_file_read = budget.bytes_per_file_read(self._values_of(max(rows_per_file_read, self._rows_per_read(share))))
        n_reads = budget.REMOTE_READS if self._cells.is_remote else cores
        mixing = self.mixing(num_workers)
        pool = mixing.held * float(self._chunk_bytes.mean()) if len(self._chunk_bytes) else 0.0
        return Resources(
            n_threads=cores,
            n_file_reads=max(1, min(n_reads, room // per_file_read)),
            n_queries=max(1, min(n_reads, room // per_query)),
            n_requests=max(budget.MIN_REQUESTS, min(budget.MAX_REQUESTS, budget.REQUESTS_PER_CORE * cores)),
            rows_per_file_read=rows_per_file_read,
            buffer_bytes=budget.buffer_bytes(share),
            rows_per_read=self._rows_per_read(share),
            windows_ahead=mixing.ahead if self._settings.use_eager_fetch else 0,
            pool_bytes=pool,
            n_windows=mixing.slices + mixing.ahead,
            pool_dtype=self.pool_dtype,
        )

    def _rows_per_read(self, memory_budget: int) -> int:
        geometry = self._cells.geometry
        row_blocks = budget.row_blocks_per_read(geometry, kept_bytes=self._kept_bytes, memory_budget=memory_budget)
        return max(row_blocks * geometry.row_extent, budget.MIN_ROWS_PER_READ)

    def _rows_per_file_read(self, room: int) -> int:
        """Rows of a read of files: a row-block; on an object store as many as are worth its latency, if they fit."""
        least = max(self._cells.geometry.row_extent, budget.MIN_ROWS_PER_READ)
        if not self._cells.is_remote:
            return least
        affordable = room / budget.REMOTE_READS / budget.PACKED_BYTES_PER_VALUE
        return max(least, int(min(budget.REMOTE_READ_VALUES, affordable) / max(self._deepest, 1.0)))

    @cached_property
    def _deepest(self) -> float:
        """Values of a row at most: those of the deepest row-block, on average."""
        return float((self._row_block_values / np.maximum(np.diff(self._row_block_bounds), 1)).max(initial=0.0))

    @cached_property
    def _n_values(self) -> float:
        return float(self._row_block_values.sum())

    def _values_per_read(self, memory_budget: int) -> float:
        return self._values_of(self._rows_per_read(memory_budget))

    def _values_of(self, n_rows: int) -> float:
        """Values of so many rows at most: the deepest row-block tells how deep they can be."""
        return min(self._deepest * n_rows, self._n_values)

    def _bytes_per_query(self, memory_budget: int) -> int:
        return budget.bytes_per_query(
            self._values_per_read(memory_budget),
            kept_bytes=self._kept_bytes,
            buffer_bytes=budget.buffer_bytes(memory_budget),
        )

    @cached_property
    def _chunk_bytes(self) -> npt.NDArray[np.float64]:
        return self._bytes_held(self.bounds, self._chunk_values)

    def _bytes_held(self, bounds: IntArray, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Bytes of each chunk in the pool."""
        held: npt.NDArray[np.float64] = values * self._kept_bytes + np.diff(bounds) * float(budget.BYTES_PER_CELL)
        return held

    def _memory(self, memory_budget: int) -> budget.MemoryModel:
        return self._memory_of(self._chunk_bytes, memory_budget)

    def _memory_of(self, chunks: npt.NDArray[np.float64], memory_budget: int) -> budget.MemoryModel:
        """Say what is held; the number of cores is no part of it, or orders would differ between machines."""
        settings, cells = self._settings, self._cells
        n_cells = max(cells.n_obs, 1)
        per_cell = cells.n_vars * self._x_bytes
        if settings.return_sparse_X:
            per_cell = int(self._n_values / n_cells * (4 + self._x_bytes))
        held = budget.MINIBATCHES_HELD if settings.use_eager_fetch else budget.MINIBATCHES_HELD - 1
        return budget.MemoryModel(
            chunks=chunks,
            in_flight=budget.reads_bytes(memory_budget, self._bytes_per_query(memory_budget)),
            minibatches=min(settings.batch_size, n_cells) * per_cell * held,
            ahead=settings.use_eager_fetch,
        )

    # ------------------------------------------------------------------ mixing

    def mixing(self, num_workers: int = 1) -> ShufflePlan:
        """Say how chunks are mixed: as given, else as well as the budget permits; worked out once."""
        if num_workers not in self._mixings:
            self._mixings[num_workers] = self._choose_mixing(num_workers)
        return self._mixings[num_workers]

    def _choose_mixing(self, num_workers: int) -> ShufflePlan:
        settings, n_chunks = self._settings, max(len(self.bounds) - 1, 1)
        share = settings.memory_budget // num_workers
        memory = self._memory(share)
        room = min(memory.chunks_that_fit(share), budget.MAX_CELLS_HELD * n_chunks / max(self._cells.n_obs, 1))
        if settings.shuffle_chunk_count is not None:
            return self._published(settings.shuffle_chunk_count, room / (2 if memory.ahead else 1))
        if memory.room(share) < memory.least_pool:
            self._refuse_budget(share, num_workers)
        if not settings.shuffle:
            return ShufflePlan(max(1, min(memory.neighbours_that_fit(share), self._chunks_of(budget.ORDERED_VALUES))))
        at_first = budget.FIRST_REMOTE_VALUES if self._cells.is_remote else budget.FIRST_VALUES
        first = 0 if settings.mixing is not None else self._chunks_of(at_first)
        found = best_shuffle_plan(room, ahead=memory.ahead, first=first)
        if settings.mixing is not None:
            mixing_target.check(settings.mixing, found, self.bounds, settings.batch_size, num_workers)
        return found

    def _published(self, count: int, room: float) -> ShufflePlan:
        """Blocks of so many chunks; several are read together where chunks are parts of row-blocks and fit."""
        together = int(min(room, len(self.bounds) - 1) / count)
        return ShufflePlan(count, together=max(1, together) if self.chunk_rows == 0 else 1)

    def _chunks_of(self, n_values: float) -> int:
        """Chunks that have so many values, about."""
        mean = float(self._chunk_values.mean()) if len(self._chunk_values) else 0.0
        return max(1, int(n_values / max(mean, 1.0)))

    def _refuse_budget(self, share: int, num_workers: int) -> None:
        memory = self._memory(share)
        least = memory.peak(memory.least_pool)
        for _ in range(50):  # a larger budget has larger buffers, so what would do is found step by step
            larger = self._memory(least)
            enough = int(larger.peak(larger.least_pool) * 1.02)
            if enough <= least:
                break
            least = enough
        workers = f" for each of {num_workers} workers" if num_workers > 1 else ""
        raise PlanError(
            f"memory_budget of {format_bytes(share)}{workers} holds not one chunk of "
            f"{np.diff(self.bounds).max():,} cells: reading takes {format_bytes(memory.in_flight)}, minibatches "
            f"{format_bytes(memory.minibatches)}, {'two' if memory.ahead else 'one'} of the largest chunk "
            f"{format_bytes(memory.least_pool)}; give at least "
            f"{format_bytes(least * num_workers * 1.02)}, or take a smaller batch_size, soma_chunk_size or var_query"
        )

    # ------------------------------------------------------------------ plans

    def epoch_order(self, epoch: int, mixing: ShufflePlan | None = None) -> EpochOrder:
        """Plan one epoch, mixed as is told or else as one process mixes."""
        settings = self._settings
        return EpochOrder(
            bounds=self.bounds,
            seed=settings.seed,
            epoch=epoch,
            shuffle=settings.shuffle,
            batch_size=settings.batch_size,
            mixing=mixing or self.mixing(),
            drop_last=settings.drop_last,
            rank_remainder=settings.rank_remainder,
            values=None if self._cells.nnz is None else self._chunk_values,
        )

    def report(self, epoch: int, world: World, label: str | None, codes: npt.NDArray[np.integer] | None) -> Plan:
        """Say what a pass will do and cost, and how well it mixes the cells of some label; of the worst if ``None``."""
        plan, memory = self.epoch_order(epoch), self._memory(self._settings.memory_budget)
        return forecast(plan, world, self._cells, memory, label, codes)
