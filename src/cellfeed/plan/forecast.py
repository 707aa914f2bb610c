"""What a pass will do and cost, from its plan and the geometry of the array. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cellfeed.plan import budget
from cellfeed.plan.cells import Cells
from cellfeed.plan.effective_batch_size import batch_size_in_order, composition, expected_batch_size, worst
from cellfeed.plan.epoch import EpochOrder, World
from cellfeed.plan.summary import Plan
from cellfeed.plan.windows import ShardWindows

WINDOWS_SAMPLED = 128
"""Windows of a walk by which its memory is judged."""

ARRIVALS_SAMPLED = 16
"""Arrivals by which decode amplification is judged; chunks are drawn alike in all of them."""


def forecast(
    plan: EpochOrder,
    world: World,
    cells: Cells,
    memory: budget.MemoryModel,
    label: str | None,
    codes: npt.NDArray[np.integer] | None,
) -> Plan:
    """Say what a pass of one worker will do and cost.

    Parameters
    ----------
    plan, world
        Of the epoch; who walks.
    cells
        The selected cells.
    memory
        What is held at once.
    label, codes
        A column of obs, and the label of each cell, from 0; ``None`` for the worst labels that there can be.
    """
    walk = ShardWindows(plan, *plan.stretch(world))
    sizes, pool = np.diff(plan.bounds), largest_pool(walk, memory)
    return Plan(
        n_obs=cells.n_obs,
        n_vars=cells.n_vars,
        chunk_rows=float(sizes.mean()) if len(sizes) else 0.0,
        n_chunks=len(sizes),
        chunks_per_block=min(plan.mixing.mixed, max(len(sizes), 1)),
        chunks_held=min(plan.mixing.held, float(max(len(sizes), 1))),
        n_minibatches=plan.n_minibatches(world),
        batch_size=plan.batch_size,
        pool_bytes=int(pool),
        peak_memory_bytes=memory.peak(pool),
        decode_amplification=decode_amplification(walk, cells),
        effective_batch_size=effective_batch_size(plan, walk, codes),
        label=label,
        shuffle=plan.shuffle,
    )


def effective_batch_size(plan: EpochOrder, walk: ShardWindows, codes: npt.NDArray[np.integer] | None) -> float:
    """Return the effective batch size of a walk for the labels of cells; for the worst ones if ``None``."""
    if plan.n_cells == 0:
        return float(plan.batch_size)
    if plan.shuffle:
        made_of = worst(plan.bounds) if codes is None else composition(codes, plan.bounds)
        return expected_batch_size(walk, plan.batch_size, made_of)
    if codes is None:
        codes = np.repeat(np.arange(len(plan.bounds) - 1), np.diff(plan.bounds))
    return batch_size_in_order(codes, walk.start, min(walk.stop, plan.n_cells), plan.batch_size)


def largest_pool(walk: ShardWindows, memory: budget.MemoryModel) -> float:
    """Bytes of the pool at most: what is there when a window begins, and what arrives while it leaves."""
    return max((_pool(walk, k, memory) for k in evenly(len(walk), WINDOWS_SAMPLED)), default=0.0)


def _pool(walk: ShardWindows, k: int, memory: budget.MemoryModel) -> float:
    chunks, part = walk.held_parts(k)
    coming = [walk.arriving(k + 1 + n) for n in range(walk.plan.mixing.ahead if memory.ahead else 0)]
    return float((memory.chunks[chunks] * part).sum()) + float(sum(memory.chunks[more].sum() for more in coming))


def decode_amplification(walk: ShardWindows, cells: Cells) -> float:
    """Values decoded for each one wanted, judged by some fetches."""
    when = np.unique(walk.schedule.arrive)
    chosen = [int(when[k]) for k in evenly(len(when), ARRIVALS_SAMPLED)]
    positions = [fetch.positions for k in chosen for fetch in walk.fetches(k, since=k)]
    return budget.decode_amplification(cells.joinids, positions, cells.geometry)


def evenly(n: int, at_most: int) -> list[int]:
    """Return so many indices of ``n`` things at most, the first and the last among them.

    Examples
    --------
    >>> evenly(10, 4), evenly(2, 4), evenly(0, 4)
    ([0, 3, 6, 9], [0, 1], [])
    """
    chosen: list[int] = np.unique(np.linspace(0, max(n - 1, 0), min(n, at_most)).astype(np.int64)).tolist()
    return chosen
