"""From a mixing that is asked for to the largest chunks that give it: larger chunks are decoded less often. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cellfeed._checks import format_bytes, parse_bytes
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError
from cellfeed.plan.budget import MemoryModel
from cellfeed.plan.effective_batch_size import expected_batch_size, steady_batch_size, worst
from cellfeed.plan.epoch import EpochOrder
from cellfeed.plan.schedule import ShufflePlan, best_shuffle_plan
from cellfeed.plan.windows import ShardWindows

LEAST_ROWS = 16
"""Chunks of fewer rows are not tried: each would be decoded with a whole row-block all the same."""

MAX_WALKED = 20_000
"""With more chunks than this a walk is so long that its ends matter little, and it is judged by its middle."""

ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Candidate:
    """Chunks of one size.

    Attributes
    ----------
    chunk_rows
        Rows of the array from which a chunk is what was selected.
    bounds
        int64, shape (n_chunks + 1,): positions that cut the cells into chunks.
    memory_within
        What is held with them within a budget of so many bytes.
    amplification
        Values decoded for each one wanted.
    """

    chunk_rows: int
    bounds: IntArray
    memory_within: Callable[[int], MemoryModel]
    amplification: float

    def ratio(self, memory_budget: int, batch_size: int) -> float:
        """Effective over nominal batch size, for the worst labels, with what fits in a budget."""
        memory = self.memory_within(memory_budget)
        if memory.room(memory_budget) < memory.least_pool:
            return 0.0
        found = best_shuffle_plan(memory.chunks_that_fit(memory_budget), ahead=memory.ahead)
        return worst_ratio(found, self.bounds, batch_size)


def fractions(row_extent: int) -> Iterator[int]:
    """Yield a row-block and its halves, quarters and so on, in rows."""
    rows = row_extent
    while True:
        yield rows
        if rows % 2 or rows // 2 < LEAST_ROWS:
            return
        rows //= 2


def worst_ratio(mixing: ShufflePlan, bounds: IntArray, batch_size: int, n_shares: int = 1) -> float:
    """Effective over nominal batch size where each chunk has a label of its own.

    Parameters
    ----------
    mixing
        Of the walk.
    bounds
        int64, shape (n_chunks + 1,): positions that cut the cells into chunks.
    batch_size
        Cells in a minibatch.
    n_shares
        The walk is over one of so many equal shares of the cells.

    Examples
    --------
    >>> round(worst_ratio(ShufflePlan(2000), np.arange(10**6 + 1) * 64, 128), 2)
    0.94
    """
    n_cells = int(bounds[-1])
    if n_cells == 0:
        return 1.0
    if len(bounds) <= MAX_WALKED:
        plan = EpochOrder(bounds, seed=0, epoch=0, shuffle=True, batch_size=batch_size, mixing=mixing)
        return (
            expected_batch_size(ShardWindows(plan, 0, max(1, n_cells // n_shares)), batch_size, worst(bounds))
            / batch_size
        )
    return steady_batch_size(mixing, np.diff(bounds), batch_size, len(bounds) / n_shares) / batch_size


def choose(ratio: float, *, batch_size: int, memory_budget: int, candidates: Sequence[Candidate]) -> int:
    """Return the rows of the largest chunks that mix as well as is asked for within a budget.

    Parameters
    ----------
    ratio
        Effective over nominal batch size at least, for the worst labels.
    candidates
        Chunks of several sizes, from the largest to the smallest.

    Raises
    ------
    PlanError
        If none does; it says what is possible, and what each way out would cost.
    """
    for candidate in candidates:
        if candidate.ratio(memory_budget, batch_size) >= ratio - ROUNDING:
            return candidate.chunk_rows
    raise PlanError(_ways_out(ratio, batch_size, memory_budget, candidates))


def _ways_out(ratio: float, batch_size: int, memory_budget: int, candidates: Sequence[Candidate]) -> str:
    reached = [candidate.ratio(memory_budget, batch_size) for candidate in candidates]
    best = candidates[int(np.argmax(reached))]
    possible = f"{np.floor(max(reached) * 100) / 100:g}, decoding {best.amplification:.3g} times what is wanted"
    ways = [
        f"memory_budget={_budget_for(ratio, c, batch_size)!r} (decoding {c.amplification:.3g} times)"
        for c in dict.fromkeys((candidates[0], candidates[-1]))
    ]
    smaller = batch_size // 2
    while smaller > 1 and best.ratio(memory_budget, smaller) < ratio - ROUNDING:
        smaller //= 2
    if smaller > 1:
        ways.append(f"batch_size={smaller} (decoding {best.amplification:.3g} times)")
    return (
        f"mixing={ratio:g} of batch_size={batch_size:,} is not possible within "
        f"memory_budget={format_bytes(memory_budget)}; possible is {possible if max(reached) > 0 else 'nothing'}. "
        f"Ways out: {'; '.join(ways)}; or a smaller mixing"
    )


def _budget_for(ratio: float, candidate: Candidate, batch_size: int) -> str:
    """Return the memory that would do, to a hundredth, as one would write it."""
    low, high = 0, 1 << 20
    while candidate.ratio(high, batch_size) < ratio - ROUNDING:
        low, high = high, 2 * high
    while high - low > high // 100:
        middle = (low + high) // 2
        enough = candidate.ratio(middle, batch_size) >= ratio - ROUNDING
        low, high = (low, middle) if enough else (middle, high)
    while candidate.ratio(parse_bytes(format_bytes(high)), batch_size) < ratio - ROUNDING:  # written, it is rounded
        high = math.ceil(high * 1.005)
    return format_bytes(high)


def check(ratio: float, mixing: ShufflePlan, bounds: IntArray, batch_size: int, num_workers: int) -> None:
    """Refuse workers among which budget and chunks are divided too far: each makes minibatches of its own."""
    reached = worst_ratio(mixing, bounds, batch_size, num_workers)
    if reached < ratio - ROUNDING:
        raise PlanError(
            f"mixing={ratio:g} is not reached by num_workers={num_workers}: they divide memory_budget and cells, and "
            f"each mixes to {reached:.2f}; take num_workers=0, where threads do the work, or a larger memory_budget"
        )
