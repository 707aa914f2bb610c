"""The figures of an epoch before X is read: minibatches, memory, decoding and mixing. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._checks import format_bytes
from cellfeed._tabular import Tabular
from cellfeed.plan import budget
from cellfeed.plan.budget import ProcessBudget
from cellfeed.plan.cells import Cells
from cellfeed.plan.copy_windows import windows_of_shard
from cellfeed.plan.effective_batch_size import Composition, expected_batch_size
from cellfeed.plan.epoch import EpochOrder, World
from cellfeed.plan.label_tally import batch_size_in_order
from cellfeed.plan.windows import ShardWindows

WINDOWS_SAMPLED = 128
"""Windows of a shard for which the size of the pool is computed."""

FETCHES_SAMPLED = 16
"""Fetches for which decode amplification is computed. Few are enough: all fetches have similar chunks."""


@dataclass(frozen=True)
class Plan(Tabular):
    """The result of :meth:`cellfeed.ExperimentDataset.plan`; printed, and shown in a notebook, as a table.

    Attributes
    ----------
    n_obs, n_vars
        Selected cells and genes.
    chunk_rows
        Mean number of cells in a chunk: consecutive cells that are read together.
    n_chunks
        Chunks per epoch.
    chunks_per_block
        Chunks that are shuffled together; a minibatch has cells of these.
    chunks_held
        Chunks in memory meanwhile: fewer, because a chunk is yielded in slices.
    n_minibatches
        Minibatches per epoch of this rank.
    batch_size
        Cells per minibatch.
    pool_bytes
        Most bytes of the chunks in memory, including prefetched chunks.
    peak_memory_bytes
        Most bytes in memory for the pool, reads and minibatches, in addition to those of the idle process (an estimate
        from metadata).
    decode_amplification
        Values decoded per value used (an estimate from the array's tiles).
    effective_batch_size
        The size of the simple random sample whose label proportions have the same variance as those of minibatches. It
        is at most ``batch_size``, the value for a full shuffle.
    label
        The column of obs with the labels. ``None`` stands for the worst case: each chunk has a label of its own. For K
        chunks and a batch size of B, the effective batch size is then about 1 / (1/B + 1/K).
    shuffle
        Whether cells are shuffled.
    n_obs_copied
        Cells that are in the local copy; ``None`` without a local copy. The figures are those of the medium that the
        next epoch reads: the copy if it has all cells.
    copy_bytes
        Bytes of the local copy when it has all cells (an estimate).
    n_drawn
        Cells that the epoch yields to all ranks; each copy of a cell counts. It is ``n_obs`` unless the dataset is
        resampled.
    n_distinct
        Different cells among them.
    effective_n_obs
        Kish's effective sample size: the number of cells that would have the same variance if all came equally often.
    label_shares
        The expected share of each label of ``label`` in the epoch, the most frequent first; ``None`` without ``label``.
    pinned_bytes, device_bytes
        With ``device=``, most bytes for minibatches: page-locked memory of the machine, from which a CUDA device
        copies, and memory of the device (estimates from metadata). ``peak_memory_bytes`` does not depend on it.

    Examples
    --------
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), batch_size=64, seed=0)
    >>> plan = dataset.plan()
    >>> plan.n_obs, plan.n_minibatches, plan.effective_batch_size
    (700, 11, 64.0)
    """

    n_obs: int
    n_vars: int
    chunk_rows: float
    n_chunks: int
    chunks_per_block: int
    chunks_held: float
    n_minibatches: int
    batch_size: int
    pool_bytes: int
    peak_memory_bytes: int
    decode_amplification: float
    effective_batch_size: float
    label: str | None = None
    shuffle: bool = True
    n_obs_copied: int | None = None
    copy_bytes: int | None = None
    n_drawn: int = 0
    n_distinct: int = 0
    effective_n_obs: float = 0.0
    label_shares: Mapping[Any, float] | None = None
    pinned_bytes: int = 0
    device_bytes: int = 0

    @property
    def mixing(self) -> float:
        """Effective batch size over ``batch_size``."""
        return self.effective_batch_size / self.batch_size

    def _table(self) -> dict[str, str]:
        size = f"{self.effective_batch_size:,.4g} of {self.batch_size:,} cells"
        labels = "worst case: each chunk has a label of its own" if self.label is None else f"labels in {self.label}"
        shown = {
            "cells x genes": f"{self.n_obs:,} x {self.n_vars:,}",
            "minibatches": f"{self.n_minibatches:,} per epoch, of {self.batch_size:,} cells",
            "chunks": f"{self.n_chunks:,} per epoch, of {self.chunk_rows:,.4g} neighbouring cells on average",
            "shuffled together": self._shuffled_together(),
            "effective batch size": f"{size} ({labels})",
            "peak memory": f"{format_bytes(self.peak_memory_bytes)} at most, for reading and shuffling",
            "decode amplification": f"{self.decode_amplification:.3g} (values decoded per value used)",
        }
        if self.device_bytes:
            pinned = f", copied from {format_bytes(self.pinned_bytes)} of pinned memory" if self.pinned_bytes else ""
            shown["device memory"] = f"{format_bytes(self.device_bytes)} at most, for minibatches{pinned}"
        if self.n_drawn != self.n_obs or self.n_distinct != self.n_obs:
            shown["resampled"] = (
                f"{self.n_drawn:,} copies of {self.n_distinct:,} cells per epoch, worth "
                f"{self.effective_n_obs:,.4g} cells that all come equally often"
            )
        if self.n_obs_copied is not None and self.copy_bytes is not None:
            state = "complete" if self.n_obs_copied == self.n_obs else f"{self.n_obs_copied:,} of {self.n_obs:,} cells"
            shown["local copy"] = f"{state}; about {format_bytes(self.copy_bytes)} on disk when complete"
        return shown

    def _shuffled_together(self) -> str:
        if not self.shuffle:
            return "nothing: cells are in the order of their joinids"
        if self.chunks_per_block >= self.n_chunks:
            return "all cells"
        held = f"{self.chunks_held:,.4g} chunk{'' if self.chunks_held == 1 else 's'}"
        return f"cells of {self.chunks_per_block:,} chunks at a time, while memory holds {held}"

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name, for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def summarize(
    order: EpochOrder,
    world: World,
    cells: Cells,
    process: ProcessBudget,
    label: str | None,
    codes: npt.NDArray[np.integer] | None,
) -> Plan:
    """Return the figures of one worker's shard.

    Parameters
    ----------
    world, process
        The worker, and its memory budget.
    label, codes
        A column of obs, and the label of each cell, from 0; ``None`` for the worst case.
    """
    shard = windows_of_shard(order, *order.shard(world))
    sizes, pool_bytes = np.diff(order.bounds), largest_pool(shard, process)
    return Plan(
        n_obs=cells.n_obs,
        n_vars=cells.n_vars,
        chunk_rows=float(sizes.mean()) if len(sizes) else 0.0,
        n_chunks=len(sizes),
        chunks_per_block=min(order.shuffle_plan.chunks_mixed, max(len(sizes), 1)),
        chunks_held=min(order.shuffle_plan.chunks_held, float(max(len(sizes), 1))),
        n_minibatches=order.n_minibatches(world),
        batch_size=order.batch_size,
        pool_bytes=int(pool_bytes),
        peak_memory_bytes=process.peak_bytes(pool_bytes),
        decode_amplification=decode_amplification(shard, cells),
        effective_batch_size=effective_batch_size(shard, codes),
        label=label,
        shuffle=order.shuffle,
        n_drawn=order.n_cells,
        n_distinct=cells.n_obs if order.cells is None else len(np.unique(order.cells)),
        effective_n_obs=float(cells.n_obs),
    )


def effective_batch_size(shard: ShardWindows, codes: npt.NDArray[np.integer] | None) -> float:
    """Return the effective batch size of a shard for the label of each cell, or in the worst case if ``None``."""
    order = shard.epoch_order
    if order.n_cells == 0:
        return float(order.batch_size)
    if order.shuffle:
        worst_case = Composition.worst_case(order.bounds)
        labels = codes if codes is None or order.cells is None else codes[order.cells]
        composition = worst_case if labels is None else Composition.of_cells(labels, order.bounds)
        return expected_batch_size(shard, order.batch_size, composition)
    if codes is None:
        codes = np.repeat(np.arange(len(order.bounds) - 1), np.diff(order.bounds))
    return batch_size_in_order(codes, shard.start, min(shard.stop, order.n_cells), order.batch_size)


def largest_pool(shard: ShardWindows, process: ProcessBudget) -> float:
    """Return the most bytes of the pool: chunks in the pool when a window begins, and those that are prefetched."""
    return max((_pool_bytes(shard, k, process) for k in evenly(len(shard), WINDOWS_SAMPLED)), default=0.0)


def _pool_bytes(shard: ShardWindows, k: int, process: ProcessBudget) -> float:
    chunks, part = shard.held_parts(k)
    n_ahead = shard.epoch_order.shuffle_plan.windows_ahead if process.prefetch else 0
    prefetched = [process.chunk_bytes[shard.chunks_fetched(k + 1 + n)].sum() for n in range(n_ahead)]
    return float((process.chunk_bytes[chunks] * part).sum()) + float(sum(prefetched))


def decode_amplification(shard: ShardWindows, cells: Cells) -> float:
    """Return the number of values decoded per value used, estimated from some fetches of a shard."""
    windows = np.unique(shard.schedule.fetch_window)
    sampled = [int(windows[i]) for i in evenly(len(windows), FETCHES_SAMPLED)]
    positions = [fetch.positions for k in sampled for fetch in shard.fetches(k, since=k)]
    return budget.decode_amplification(cells.joinids, positions, cells.geometry)


def evenly(n: int, at_most: int) -> list[int]:
    """Return at most ``at_most`` evenly spaced indices below ``n``, including the first and the last one.

    Examples
    --------
    >>> evenly(10, 4), evenly(2, 4), evenly(0, 4)
    ([0, 3, 6, 9], [0, 1], [])
    """
    sampled: list[int] = np.unique(np.linspace(0, max(n - 1, 0), min(n, at_most)).astype(np.int64)).tolist()
    return sampled
