"""From a selection and settings to plans: how many chunks fit, how many threads read, what it will cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed import budget
from cellfeed.errors import PlanError
from cellfeed.joinids import IntArray
from cellfeed.memory import format_bytes
from cellfeed.plan import RAMP, EpochPlan, World, chunk_bounds
from cellfeed.reader import available_threads
from cellfeed.report import Plan, worst_effective_batch_size
from cellfeed.selection import Selection
from cellfeed.settings import Settings

WINDOWS_SAMPLED = 4
"""Windows by which decode amplification is judged; chunks are drawn alike in all of them."""


@dataclass(frozen=True)
class Resources:
    """What one process may use.

    Attributes
    ----------
    n_threads
        Threads that make a minibatch together.
    n_file_reads, n_queries
        Reads under way at once: of files, or by TileDB.
    buffer_bytes
        Bytes of each buffer that TileDB fills, three to a query.
    rows_per_read
        Wanted rows of one query at most.
    pool_dtype
        Type of values that no small integer holds.
    """

    n_threads: int
    n_file_reads: int
    n_queries: int
    buffer_bytes: int
    rows_per_read: int
    pool_dtype: np.dtype[Any]


class Planner:
    """Plans epochs over a selection; orders do not depend on the machine."""

    def __init__(self, selection: Selection, settings: Settings) -> None:
        self._selection = selection
        self._settings = settings

    @cached_property
    def bounds(self) -> IntArray:
        """int64, shape (n_chunks + 1,): positions that cut the selection into chunks."""
        if self._settings.soma_chunk_size is not None:
            return chunk_bounds(self._selection.n_obs, self._settings.soma_chunk_size)
        return self._selection.joinids.row_block_bounds(self._selection.geometry.row_extent)

    @property
    def pool_dtype(self) -> np.dtype[Any]:
        """Type of values in the pool that no small integer holds."""
        store = np.dtype(self._selection.geometry.dtype)
        if self._settings.X_dtype == "store" or store.itemsize < 4:
            return store
        return np.dtype(np.float32)

    @property
    def _x_bytes(self) -> int:
        """Bytes of a value of X in a minibatch."""
        halves = self._settings.X_dtype in ("float16", "bfloat16")
        return 2 if halves else self.pool_dtype.itemsize if self._settings.X_dtype == "store" else 4

    def resources(self, num_workers: int = 1) -> Resources:
        """Divide cores and budget among the processes of a loader."""
        share = self._settings.memory_budget // num_workers
        cores, per_query = max(1, available_threads() // num_workers), self._bytes_per_query(share)
        per_file_read = budget.bytes_per_file_read(self._values_per_read(share))
        room = budget.reads_bytes(share, per_query)
        return Resources(
            n_threads=cores,
            n_file_reads=max(1, min(cores, room // per_file_read)),
            n_queries=max(1, min(cores, room // per_query)),
            buffer_bytes=budget.buffer_bytes(share),
            rows_per_read=self._rows_per_read(share),
            pool_dtype=self.pool_dtype,
        )

    def _rows_per_read(self, memory_budget: int) -> int:
        geometry = self._selection.geometry
        row_blocks = budget.row_blocks_per_read(geometry, kept_bytes=self._kept_bytes, memory_budget=memory_budget)
        return max(row_blocks * geometry.row_extent, budget.MIN_ROWS_PER_READ)

    def _values_per_read(self, memory_budget: int) -> float:
        """Values of a read at most: the deepest chunk tells how deep its rows can be."""
        values, sizes = self._chunk_values, np.diff(self.bounds)
        deepest = float((values / np.maximum(sizes, 1)).max(initial=0.0))
        return min(deepest * self._rows_per_read(memory_budget), float(values.sum()))

    def _bytes_per_query(self, memory_budget: int) -> int:
        return budget.bytes_per_query(
            self._values_per_read(memory_budget),
            kept_bytes=self._kept_bytes,
            buffer_bytes=budget.buffer_bytes(memory_budget),
        )

    @cached_property
    def _chunk_values(self) -> npt.NDArray[np.float64]:
        """Stored values of each chunk: as obs tells them, else by the mean of the array; of selected genes at most."""
        sizes = np.diff(self.bounds)
        selection = self._selection
        if selection.nnz is None:
            values = sizes * selection.geometry.values_per_row
        elif len(sizes):
            values = np.add.reduceat(selection.nnz, self.bounds[:-1], dtype=np.float64)
        else:
            values = np.zeros(0)
        return np.minimum(values, sizes * float(selection.n_vars))

    @property
    def _kept_bytes(self) -> int:
        """Bytes of a value in the pool at most: its gene and itself."""
        return (2 if self._selection.n_vars <= 1 << 16 else 4) + self.pool_dtype.itemsize

    def _memory(self, memory_budget: int) -> budget.MemoryModel:
        """Say what is held; the number of cores is no part of it, or orders would differ between machines."""
        settings, selection, values = self._settings, self._selection, self._chunk_values
        n_cells = max(selection.n_obs, 1)
        values_per_cell = float(values.sum()) / n_cells
        per_cell = (
            values_per_cell * (4 + self._x_bytes) if settings.return_sparse_X else selection.n_vars * self._x_bytes
        )
        held = budget.MINIBATCHES_HELD if settings.use_eager_fetch else budget.MINIBATCHES_HELD - 1
        return budget.MemoryModel(
            chunks=values * self._kept_bytes + np.diff(self.bounds) * float(budget.BYTES_PER_CELL),
            in_flight=budget.reads_bytes(memory_budget, self._bytes_per_query(memory_budget)),
            minibatches=int(min(settings.batch_size, n_cells) * per_cell * held),
            windows_held=2 if settings.use_eager_fetch else 1,
        )

    def chunks_per_window(self, num_workers: int) -> int:
        """Chunks to hold and shuffle together: as given, else as many as the budget permits."""
        if self._settings.shuffle_chunk_count is not None:
            return self._settings.shuffle_chunk_count
        share = self._settings.memory_budget // num_workers
        n_chunks = self._memory(share).chunks_that_fit(share, shuffle=self._settings.shuffle)
        if n_chunks < 1:
            self._refuse_budget(share, num_workers)
        cells_per_chunk = self._selection.n_obs / max(len(self.bounds) - 1, 1)
        return max(1, min(n_chunks, int(budget.MAX_CELLS_PER_WINDOW / max(cells_per_chunk, 1))))

    def _refuse_budget(self, share: int, num_workers: int) -> None:
        memory = self._memory(share)
        least = memory.peak(memory.largest_chunk)
        for _ in range(50):  # a larger budget has larger buffers, so what would do is found step by step
            larger = self._memory(least)
            enough = int(larger.peak(larger.largest_chunk) * 1.02)
            if enough <= least:
                break
            least = enough
        workers = f" for each of {num_workers} workers" if num_workers > 1 else ""
        raise PlanError(
            f"memory_budget of {format_bytes(share)}{workers} holds not one chunk of "
            f"{np.diff(self.bounds).max():,} cells: reading takes {format_bytes(memory.in_flight)}, minibatches "
            f"{format_bytes(memory.minibatches)}, {memory.windows_held} of the largest chunk "
            f"{format_bytes(memory.windows_held * memory.largest_chunk)}; give at least "
            f"{format_bytes(least * num_workers * 1.02)}, or take a smaller batch_size, soma_chunk_size or var_query"
        )

    def epoch_plan(self, epoch: int, num_workers: int = 1) -> EpochPlan:
        """Plan one epoch for a loader of so many processes."""
        settings, chunks_per_window = self._settings, self.chunks_per_window(num_workers)
        return EpochPlan(
            bounds=self.bounds,
            seed=settings.seed,
            epoch=epoch,
            shuffle=settings.shuffle,
            batch_size=settings.batch_size,
            chunks_per_window=chunks_per_window,
            drop_last=settings.drop_last,
            remainder=settings.remainder,
            ramp=settings.shuffle_chunk_count is None,  # given a count, windows are the published blocks
            values=None if self._selection.nnz is None else self._chunk_values,
        )

    def report(self, epoch: int, world: World) -> Plan:
        """Say what a pass will do and cost."""
        plan = self.epoch_plan(epoch)
        windows = plan.windows(world)
        sizes = np.diff(self.bounds)
        first = len(RAMP) if plan.ramps else 0  # windows of a ramp are smaller than those that follow
        sample = [windows[k].arrivals for k in range(first, min(len(windows), first + WINDOWS_SAMPLED))]
        sample = sample or [windows[k].arrivals for k in range(len(windows))]
        memory = self._memory(self._settings.memory_budget)
        per_cell = memory.chunks / np.maximum(sizes, 1)
        held = [float(per_cell[self._chunk_of(arrivals)].sum()) for arrivals in sample]
        return Plan(
            n_obs=self._selection.n_obs,
            n_vars=self._selection.n_vars,
            chunk_rows=float(sizes.mean()) if len(sizes) else 0.0,
            n_chunks=len(sizes),
            chunks_per_block=min(plan.chunks_per_window, max(len(sizes), 1)),
            n_minibatches=plan.n_minibatches(world),
            batch_size=self._settings.batch_size,
            peak_memory_bytes=memory.peak(max(held, default=0.0)),
            decode_amplification=budget.decode_amplification(self._selection.joinids, sample, self._selection.geometry),
            effective_batch_size=worst_effective_batch_size(
                batch_size=self._settings.batch_size,
                chunks_per_block=plan.chunks_per_window,
                n_chunks=len(sizes),
                shuffle=self._settings.shuffle,
            ),
        )

    def _chunk_of(self, positions: IntArray) -> IntArray:
        return np.searchsorted(self.bounds, positions, side="right") - 1
