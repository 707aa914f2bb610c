"""The largest chunks that reach a given mixing; smaller chunks are decoded more often. Pure.

*Mixing* is the effective batch size over ``batch_size``, in the worst case that each chunk has a label of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cellfeed._checks import format_bytes
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError
from cellfeed.plan.budget import ProcessBudget, smallest_budget
from cellfeed.plan.effective_batch_size import Composition, expected_batch_size, steady_batch_size
from cellfeed.plan.epoch import EpochOrder
from cellfeed.plan.schedule import ShufflePlan, best_shuffle_plan
from cellfeed.plan.windows import ShardWindows

MIN_CHUNK_ROWS = 16
"""Smaller chunks are not tried: the row-block of each is decoded as a whole."""

MAX_EXACT_CHUNKS = 20_000
"""With more chunks, the ends of a shard hardly matter, and the closed formula for its middle is used."""

ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Candidate:
    """A size of chunks.

    Attributes
    ----------
    chunk_rows
        Rows of the array per chunk; a chunk has the selected cells among them.
    bounds
        int64, shape (n_chunks + 1,): positions that divide the cells into chunks.
    budget
        Memory of the process, with these chunks.
    amplification
        Values decoded per value used.
    """

    chunk_rows: int
    bounds: IntArray
    budget: ProcessBudget
    amplification: float

    def mixing(self, batch_size: int, n_bytes: int | None = None) -> float:
        """Return the mixing within the budget, or within a budget of ``n_bytes``; 0 if no chunk fits."""
        budget = self.budget if n_bytes is None else replace(self.budget, n_bytes=n_bytes)
        if not budget.is_enough:
            return 0.0
        plan = best_shuffle_plan(budget.chunks_that_fit, prefetch=budget.prefetch)
        return worst_mixing(plan, self.bounds, batch_size)


def fractions(row_extent: int) -> Iterator[int]:
    """Yield the rows of a row-block, a half, a quarter and so on.

    Examples
    --------
    >>> list(fractions(100))
    [100, 50, 25]
    """
    rows = row_extent
    while True:
        yield rows
        if rows % 2 or rows // 2 < MIN_CHUNK_ROWS:
            return
        rows //= 2


def worst_mixing(plan: ShufflePlan, bounds: IntArray, batch_size: int, n_shards: int = 1) -> float:
    """Return the mixing of the first of ``n_shards`` equal shards.

    Parameters
    ----------
    plan
        How chunks are mixed.
    bounds
        int64, shape (n_chunks + 1,): positions that divide the cells into chunks.
    batch_size
        Cells per minibatch.
    n_shards
        Number of shards.

    Examples
    --------
    >>> round(worst_mixing(ShufflePlan(2000), np.arange(10**6 + 1) * 64, 128), 2)
    0.94
    """
    n_cells = int(bounds[-1])
    if n_cells == 0:
        return 1.0
    if len(bounds) > MAX_EXACT_CHUNKS:
        return steady_batch_size(plan, np.diff(bounds), batch_size, len(bounds) / n_shards) / batch_size
    order = EpochOrder(bounds, seed=0, epoch=0, shuffle=True, batch_size=batch_size, shuffle_plan=plan)
    shard = ShardWindows(order, 0, max(1, n_cells // n_shards))
    return expected_batch_size(shard, batch_size, Composition.worst_case(bounds)) / batch_size


def choose(mixing: float, *, batch_size: int, candidates: Sequence[Candidate]) -> int:
    """Return the rows of the largest chunks that reach a mixing within the budget.

    Parameters
    ----------
    mixing
        Least effective batch size over ``batch_size``, in the worst case.
    batch_size
        Cells per minibatch.
    candidates
        Sizes of chunks, descending.

    Raises
    ------
    PlanError
        If no candidate reaches it. The message has the best possible mixing, and the ways to reach the given one.
    """
    for candidate in candidates:
        if candidate.mixing(batch_size) >= mixing - ROUNDING:
            return candidate.chunk_rows
    raise PlanError(_ways_out(mixing, batch_size, candidates))


def _ways_out(mixing: float, batch_size: int, candidates: Sequence[Candidate]) -> str:
    reached = [candidate.mixing(batch_size) for candidate in candidates]
    best = candidates[int(np.argmax(reached))]
    possible = "nothing"
    if max(reached) > 0:
        possible = f"{np.floor(max(reached) * 100) / 100:g}, decoding {best.amplification:.3g} values per value used"
    ways = []
    for c in dict.fromkeys((candidates[0], candidates[-1])):
        enough = smallest_budget(lambda n_bytes, c=c: c.mixing(batch_size, n_bytes) >= mixing - ROUNDING)  # type: ignore[misc]
        ways.append(f"memory_budget={enough!r} (decoding {c.amplification:.3g})")
    smaller = batch_size // 2
    while smaller > 1 and best.mixing(smaller) < mixing - ROUNDING:
        smaller //= 2
    if smaller > 1:
        ways.append(f"batch_size={smaller} (decoding {best.amplification:.3g})")
    return (
        f"mixing={mixing:g} of batch_size={batch_size:,} is not possible within "
        f"memory_budget={format_bytes(best.budget.n_bytes)}; possible is {possible}. "
        f"Ways out: {'; '.join(ways)}; or a smaller mixing"
    )


def check_workers(mixing: float, plan: ShufflePlan, bounds: IntArray, batch_size: int, num_workers: int) -> None:
    """Raise :class:`PlanError` if workers, which divide the budget and the cells, do not reach a mixing."""
    reached = worst_mixing(plan, bounds, batch_size, num_workers)
    if reached < mixing - ROUNDING:
        raise PlanError(
            f"mixing={mixing:g} is not reached by num_workers={num_workers}: workers divide memory_budget and cells, "
            f"and the mixing of each is {reached:.2f}; give num_workers=0, which reads with threads, or a larger "
            f"memory_budget"
        )
