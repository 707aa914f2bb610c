"""Plans epochs from a selection and settings: the size of chunks, the number that fits in memory, the threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._checks import format_bytes
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError
from cellfeed.plan import budget, mixing_target
from cellfeed.plan.budget import ProcessBudget, ReadBudget
from cellfeed.plan.cells import Cells, Chunks
from cellfeed.plan.copies import chunks_of_copies
from cellfeed.plan.epoch import EpochOrder, World, chunk_bounds
from cellfeed.plan.layout import ResumeSegment, WorldLayout
from cellfeed.plan.matrices import Matrix
from cellfeed.plan.resampling import Resampling
from cellfeed.plan.resume import ShardAssignment, assign_shards
from cellfeed.plan.schedule import ShufflePlan, best_shuffle_plan
from cellfeed.plan.settings import Settings
from cellfeed.plan.summary import Plan, evenly, summarize

CHUNKS_SAMPLED = 64
"""Chunks for which the decode amplification of a size of chunks is computed."""


@dataclass(frozen=True)
class Resources:
    """The resources of one process.

    Attributes
    ----------
    n_threads
        Threads that assemble a minibatch.
    n_file_reads, n_queries
        Concurrent reads: of files, or by TileDB.
    n_requests
        Concurrent requests to an object store.
    rows_per_file_read
        Most wanted rows per read of files.
    buffer_bytes
        Bytes of each of the three buffers of a TileDB query.
    rows_per_read
        Most wanted rows per query.
    windows_ahead
        Windows that are prefetched.
    pool_bytes
        Mean bytes of the pool.
    n_windows
        Windows that have cells in the pool.
    pool_dtype
        Type of values in the pool that do not fit in a small integer type.
    further
        The resources for each matrix that is read beside X.
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
    further: tuple[Resources, ...] = ()


class Planner:
    """Plans epochs over a selection; orders do not depend on the machine.

    Parameters
    ----------
    cells, settings
        The selection, and how it is ordered, batched and read.
    exact
        Whether integers in the pool have the type of the layer: a copy is written of them.
    resampling
        How often each cell comes; ``None`` if each comes once.
    """

    def __init__(
        self, cells: Cells, settings: Settings, *, exact: bool = False, resampling: Resampling | None = None
    ) -> None:
        self._cells = cells
        self._settings = settings
        self._X = Matrix(cells, settings, exact=exact)
        self._matrices = [self._X, *(Matrix.further(matrix, cells, settings) for matrix in cells.further)]
        self.resampling = resampling
        self._divided: dict[int, tuple[Chunks, npt.NDArray[np.float64]]] = {}  # chunks and their nnz, by epoch
        self._shuffle_plans: dict[int, ShufflePlan] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_divided": {}}

    # ------------------------------------------------------------------ chunks

    @cached_property
    def chunk_rows(self) -> int:
        """Array rows per chunk: the tile extent, or a fraction of it if ``mixing`` is given.

        0 if ``soma_chunk_size`` is given, because chunks then count selected cells.
        """
        extent, settings = self._cells.geometry.row_extent, self._settings
        if settings.soma_chunk_size is not None:
            return 0
        if settings.mixing is None or self._cells.n_obs == 0:
            return extent
        candidates = [self._candidate(rows) for rows in mixing_target.fractions(extent)]
        return mixing_target.choose(settings.mixing, batch_size=settings.batch_size, candidates=candidates)

    @cached_property
    def _cell_bounds(self) -> IntArray:
        """int64, shape (n_chunks + 1,): positions that divide the selection into chunks."""
        if self.chunk_rows == 0 and self._settings.soma_chunk_size is not None:
            return chunk_bounds(self._cells.n_obs, self._settings.soma_chunk_size)
        return self._cells.joinids.row_block_bounds(self.chunk_rows)

    @property
    def _typical(self) -> Chunks:
        """The chunks of epoch 0; other epochs have similar ones."""
        return self._chunks(0)[0]

    def _chunks(self, epoch: int) -> tuple[Chunks, npt.NDArray[np.float64]]:
        """Return the chunks of an epoch, and the nnz of each; those of epoch 0 and of the latest other are kept."""
        if self.resampling is None:
            epoch = 0  # all epochs have the same
        if epoch not in self._divided:
            chunks = self._divide(self._cell_bounds, epoch)
            kept = {number: found for number, found in self._divided.items() if number == 0}
            self._divided = {**kept, epoch: (chunks, self._X.chunk_nnz(chunks))}
        return self._divided[epoch]

    def _divide(self, bounds: IntArray, epoch: int) -> Chunks:
        """Return the chunks of an epoch, from the bounds of the cells that are read together."""
        if self.resampling is None:
            return Chunks(bounds)
        return chunks_of_copies(self.resampling.copies(self._settings.seed, epoch), bounds)

    def _candidate(self, chunk_rows: int) -> mixing_target.Candidate:
        chunks = self._divide(self._cells.joinids.row_block_bounds(chunk_rows), epoch=0)
        sampled = [chunks.positions(k) for k in evenly(len(chunks), CHUNKS_SAMPLED)]
        amplification = budget.decode_amplification(self._cells.joinids, sampled, self._cells.geometry)
        return mixing_target.Candidate(chunk_rows, chunks.bounds, self._process_budget(chunks), amplification)

    @property
    def mixing_of_row_blocks(self) -> float:
        """The highest mixing of whole row-blocks, each of which is decoded once; 0 if none fits in the budget."""
        return self._candidate(self._cells.geometry.row_extent).mixing(self._settings.batch_size)

    # ------------------------------------------------------------------ memory

    def budget(self, num_workers: int = 1) -> ProcessBudget:
        """Return the budget of each of ``num_workers`` processes."""
        return self._process_budget(self._typical, num_workers)

    def _process_budget(self, chunks: Chunks, num_workers: int = 1) -> ProcessBudget:
        settings, cells = self._settings, self._cells
        bytes_per_cell = sum(matrix.bytes_per_cell(chunks) for matrix in self._matrices)
        bytes_per_cell += cells.held_bytes // max(cells.n_obs, 1) + cells.mask_bytes
        n_minibatches = budget.MINIBATCHES_HELD - (not settings.use_eager_fetch)
        X, *further = (matrix.reads() for matrix in self._matrices)
        return ProcessBudget(
            **{**vars(X), "n_bytes": settings.memory_budget // num_workers},
            chunk_bytes=np.sum([matrix.chunk_bytes(chunks) for matrix in self._matrices], axis=0),
            minibatch_bytes=min(settings.batch_size, max(chunks.n_cells, 1)) * bytes_per_cell * n_minibatches,
            prefetch=settings.use_eager_fetch,
            further=tuple(further),
            held_bytes=cells.held_bytes // num_workers,  # workers share them
        )

    @property
    def copy_bytes(self) -> int:
        """Bytes of a copy of all cells on disk."""
        nnz = sum(matrix.row_block_nnz[0] for matrix in self._matrices)
        return int(nnz * budget.COPY_BYTES_PER_VALUE) + self._cells.held_bytes

    def resources(self, num_workers: int, n_cores: int) -> Resources:
        """Return the resources of each of ``num_workers`` processes on a machine with ``n_cores``."""
        process = self.budget(num_workers)
        cores = max(1, n_cores // num_workers)
        X, *further = (
            self._resources(matrix, reads, self.shuffle_plan(num_workers), cores)
            for matrix, reads in zip(self._matrices, process.matrices, strict=True)
        )
        return replace(X, further=tuple(further))

    def _resources(self, matrix: Matrix, reads: ReadBudget, plan: ShufflePlan, cores: int) -> Resources:
        n_reads = budget.REMOTE_READS if reads.is_remote else cores
        chunk_bytes = matrix.chunk_bytes(self._typical)
        return Resources(
            n_threads=cores,
            n_file_reads=max(1, min(n_reads, reads.reads_bytes // reads.file_read_bytes)),
            n_queries=max(1, min(n_reads, reads.reads_bytes // reads.query_bytes)),
            n_requests=max(budget.MIN_REQUESTS, min(budget.MAX_REQUESTS, budget.REQUESTS_PER_CORE * cores)),
            rows_per_file_read=reads.rows_per_file_read,
            buffer_bytes=reads.buffer_bytes,
            rows_per_read=reads.rows_per_query,
            windows_ahead=plan.windows_ahead if self._settings.use_eager_fetch else 0,
            pool_bytes=plan.chunks_held * float(chunk_bytes.mean()) if len(chunk_bytes) else 0.0,
            n_windows=plan.n_slices + plan.windows_ahead,
            pool_dtype=matrix.pool_dtype,
        )

    # ------------------------------------------------------------------ mixing

    def shuffle_plan(self, num_workers: int = 1) -> ShufflePlan:
        """Return how each of ``num_workers`` processes mixes chunks: by the settings, or the best within its budget."""
        if num_workers not in self._shuffle_plans:
            self._shuffle_plans[num_workers] = self._choose_shuffle_plan(num_workers)
        return self._shuffle_plans[num_workers]

    def _choose_shuffle_plan(self, num_workers: int) -> ShufflePlan:
        settings, process, n_chunks = self._settings, self.budget(num_workers), max(len(self._typical), 1)
        max_chunks = min(process.chunks_that_fit, budget.MAX_CELLS_HELD * n_chunks / max(self._typical.n_cells, 1))
        if settings.shuffle_chunk_count is not None:
            return self._published(settings.shuffle_chunk_count, max_chunks / (2 if process.prefetch else 1))
        if not process.is_enough:
            raise PlanError(self._too_small(process, num_workers))
        if not settings.shuffle:
            return ShufflePlan(max(1, min(process.neighbours_that_fit, self._chunks_with(budget.ORDERED_NNZ))))
        if settings.mixing is None and self.resampling is None:  # copies of a cell need the whole pool
            first_nnz = budget.FIRST_REMOTE_NNZ if self._cells.is_remote else budget.FIRST_NNZ
            warmup_chunks = self._chunks_with(first_nnz)
            return best_shuffle_plan(max_chunks, prefetch=process.prefetch, warmup_chunks=warmup_chunks)
        plan = best_shuffle_plan(max_chunks, prefetch=process.prefetch)
        if settings.mixing is not None:
            mixing_target.check_workers(settings.mixing, plan, self._typical.bounds, settings.batch_size, num_workers)
        return plan

    @property
    def max_copies(self) -> int:
        """Most copies of a cell that can leave in different minibatches.

        If memory holds all chunks, it is the number of minibatches of an epoch. Otherwise it is half of the number of
        minibatches of the chunks that are shuffled together, as windows do not begin where minibatches begin. Users
        who choose these chunks choose how far apart copies are, too.
        """
        chunks, plan, settings = self._typical, self.shuffle_plan(), self._settings
        if plan.chunks_held >= len(chunks) or settings.shuffle_chunk_count is not None:
            return max(1, chunks.n_cells // settings.batch_size)
        n_mixed = chunks.n_cells * min(1.0, plan.chunks_mixed / len(chunks))
        return max(1, int(n_mixed / 2) // settings.batch_size)

    def _published(self, n_chunks: int, max_chunks: float) -> ShufflePlan:
        """Return blocks of ``n_chunks``; several are read together if they fit and chunks are parts of row-blocks."""
        windows_per_read = int(min(max_chunks, len(self._typical)) / n_chunks) if self.chunk_rows == 0 else 1
        return ShufflePlan(n_chunks, windows_per_read=max(1, windows_per_read))

    def _chunks_with(self, nnz: float) -> int:
        """Return the mean number of chunks that have ``nnz`` together; at least 1."""
        chunk_nnz = self._chunks(0)[1]
        mean = float(chunk_nnz.mean()) if len(chunk_nnz) else 0.0
        return max(1, int(nnz / max(mean, 1.0)))

    def _too_small(self, process: ProcessBudget, num_workers: int) -> str:
        workers = f" for each of {num_workers} workers" if num_workers > 1 else ""
        held = f", embeddings {format_bytes(process.held_bytes)}" if process.held_bytes else ""
        enough = budget.smallest_budget(lambda n_bytes: replace(process, n_bytes=n_bytes // num_workers).is_enough)
        return (
            f"memory_budget of {format_bytes(process.n_bytes)}{workers} is too small for a chunk of "
            f"{np.diff(self._typical.bounds).max():,} cells: reads take {format_bytes(process.all_reads_bytes)}, "
            f"minibatches {format_bytes(process.minibatch_bytes)}{held}, and {'two' if process.prefetch else 'one'} of "
            f"the largest chunk {format_bytes(process.min_pool_bytes)}; give at least {enough}, or a smaller "
            f"batch_size, soma_chunk_size or var_query"
        )

    # ------------------------------------------------------------------ plans

    def epoch_order(self, epoch: int, shuffle_plan: ShufflePlan | None = None) -> EpochOrder:
        """Return the order of an epoch, mixed by ``shuffle_plan`` or else as by a single process."""
        chunks, chunk_nnz = self._chunks(epoch)
        return self._settings.epoch_order(
            epoch,
            chunks.bounds,
            shuffle_plan or self.shuffle_plan(),
            chunk_nnz=None if self._cells.nnz is None else chunk_nnz,
            cells=chunks.cells,
        )

    def assign(self, epoch: int, segments: Sequence[ResumeSegment], world_layout: WorldLayout) -> ShardAssignment:
        """Assign the rest of an epoch, of which segments were received, to ranks and workers."""
        return assign_shards(self.epoch_order(epoch, world_layout.mixing), segments, world_layout)

    def report(self, epoch: int, world: World, label: str | None, codes: npt.NDArray[np.integer] | None) -> Plan:
        """Return the figures of an epoch, and how well it mixes the label of each cell: the worst case if ``None``."""
        plan = summarize(self.epoch_order(epoch), world, self._cells, self.budget(), label, codes)
        return plan if self.resampling is None else replace(plan, effective_n_obs=self.resampling.effective_n_obs)
