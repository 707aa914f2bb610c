"""When the chunks of a shard are fetched, and in which windows they are yielded: a function of a few numbers.

A shard is a sequence of *windows*. A chunk is *fetched* before its first window and yielded in *slices*, one per
window. If ``W`` chunks are fetched per window and each has ``S`` slices, a window mixes ``W * S`` chunks, the pool
holds ``W * (S + 1) / 2`` chunks, and each window reads and yields the same number of cells. ``S = 1`` is the block of
the published loader: chunks that are read, shuffled and yielded together.

Both ends of a shard are mixed well, too. The first chunks have 1, 2, ... ``S`` slices, so that the pool holds
``W * (S + 1) / 2`` chunks from the first window on; and the last window yields everything that the pool still holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cellfeed._joinids import IntArray

GROWTH = 1.6
"""During warm-up, chunks are fetched at 1.6 times the rate at which they are yielded. A training loop that consumes
cells at half the rate at which they can be read does not wait for that."""

CHUNKS_AHEAD = 8
"""Chunks to prefetch once the pool holds three times that number; they keep cores busy. At least two windows are
prefetched: with one, cores idle while its last chunk is read."""

MAX_SLICES = 32
"""More slices hardly mix better: 32 slices already mix 1.8 times the number of chunks in the pool."""


@dataclass(frozen=True)
class ShufflePlan:
    """How the chunks of a shard are mixed.

    Attributes
    ----------
    chunks_per_window
        Chunks fetched per window, ``W``.
    n_slices
        Windows over which a chunk is yielded, ``S``.
    warmup_chunks
        Most chunks fetched before the first window; the pool then grows. It makes the first minibatch come sooner.
        0 means no limit.
    windows_per_read
        Windows whose chunks are fetched together, if ``n_slices`` is 1: neighbouring chunks are then read once.
    """

    chunks_per_window: int
    n_slices: int = 1
    warmup_chunks: int = 0
    windows_per_read: int = 1

    @property
    def chunks_mixed(self) -> int:
        """Chunks with cells in one window."""
        return self.chunks_per_window * self.n_slices

    @property
    def chunks_held(self) -> float:
        """Chunks in the pool when a window begins; a chunk that is partly yielded counts in part."""
        if self.n_slices == 1:
            return float(self.chunks_per_window * self.windows_per_read)
        return self.chunks_per_window * (self.n_slices + 1) / 2

    @property
    def windows_ahead(self) -> int:
        """Windows whose chunks are prefetched."""
        if self.n_slices == 1:
            return self.windows_per_read
        return max(2, math.ceil(min(CHUNKS_AHEAD, self.chunks_held / 3) / self.chunks_per_window))

    @property
    def chunks_ahead(self) -> int:
        """Chunks that are prefetched."""
        return self.chunks_per_window * self.windows_ahead


def best_shuffle_plan(max_chunks: float, *, prefetch: bool, warmup_chunks: int = 0) -> ShufflePlan:
    """Return the plan that mixes the most chunks while memory holds at most ``max_chunks``.

    The smallest plan holds one chunk, and prefetches one.

    Parameters
    ----------
    max_chunks
        Chunks that fit in memory, in the pool and prefetched.
    prefetch
        Whether chunks are read before their window begins.
    warmup_chunks
        See :class:`ShufflePlan`.

    Examples
    --------
    >>> best_shuffle_plan(256, prefetch=True)
    ShufflePlan(chunks_per_window=15, n_slices=29, warmup_chunks=0, windows_per_read=1)
    """
    plans = [ShufflePlan(max(1, int(max_chunks / 2) if prefetch else int(max_chunks)))]
    for n_slices in range(2, MAX_SLICES + 1):
        largest = int(2 * max_chunks / (n_slices + 1 + 4 * prefetch))  # at least two windows are prefetched
        sliced = (ShufflePlan(chunks, n_slices, warmup_chunks) for chunks in range(largest, 0, -1))
        plans += next(([p] for p in sliced if p.chunks_held + p.chunks_ahead * prefetch <= max_chunks), [])
    return max(plans, key=lambda plan: (plan.chunks_mixed, plan.chunks_per_window))


class Group(NamedTuple):
    """Consecutive chunks of a shard with the same windows: ``size`` chunks; see :class:`Schedule` for the rest."""

    size: int
    fetch_window: int
    first_window: int
    n_slices: int


@dataclass(frozen=True, eq=False)
class Schedule:
    """The windows of each chunk of a shard, in the order of the shard.

    Attributes
    ----------
    fetch_window
        int64, shape (n_chunks,), ascending: the window before which a chunk is fetched.
    first_window
        int64, shape (n_chunks,), ascending: the window that yields the first slice of a chunk.
    n_slices
        int64, shape (n_chunks,): slices of a chunk, one per window. The last window yields all remaining slices.
    n_windows
        Windows of the shard.
    """

    fetch_window: IntArray
    first_window: IntArray
    n_slices: IntArray
    n_windows: int


def schedule(n_chunks: int, plan: ShufflePlan) -> Schedule:
    """Return the windows of ``n_chunks`` chunks.

    Examples
    --------
    With ``W = 2`` and ``S = 2``, the pool holds 3 chunks when a window begins. Chunk 0 has a single slice, and the
    last window yields both slices of chunks 5 and 6::

        chunk     0 1 2 3 4 5 6
        window 0  0 0 0
        window 1    1 1 0 0
        window 2        1 1 * *

    >>> made = schedule(7, ShufflePlan(chunks_per_window=2, n_slices=2))
    >>> made.fetch_window.tolist(), made.first_window.tolist()
    ([0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2, 2])
    >>> made.n_slices.tolist(), made.n_windows
    ([1, 2, 2, 2, 2, 2, 2], 3)
    """
    if n_chunks == 0:
        empty = np.empty(0, np.int64)
        return Schedule(empty, empty, empty, 0)
    groups = np.array(list(_truncate(_warmup_groups(plan), n_chunks)), np.int64)  # (n_groups, 4)
    n_left = n_chunks - int(groups[:, 0].sum())
    if n_left > 0:
        groups = np.concatenate((groups, _steady_groups(n_left, int(groups[-1, 2]) + 1, plan)))
    fetch_window, first_window, n_slices = np.repeat(groups[:, 1:], groups[:, 0], axis=0).T.copy()  # (n_chunks,) each
    return Schedule(fetch_window, first_window, n_slices, int(first_window[-1]) + 1)


def _truncate(groups: Iterator[Group], n_chunks: int) -> Iterator[Group]:
    for group in groups:
        if n_chunks <= 0:
            return
        yield group._replace(size=min(group.size, n_chunks))
        n_chunks -= group.size


def _fetch_windows(windows: IntArray, windows_per_read: int) -> IntArray:
    """Return when the chunks of some windows are fetched: window 0 alone, then several windows per read."""
    return np.where(windows == 0, 0, 1 + (windows - 1) // windows_per_read * windows_per_read)


def _steady_groups(n_chunks: int, first_window: int, plan: ShufflePlan) -> IntArray:
    """Return the groups after warm-up, ``chunks_per_window`` chunks each: int64, shape (n_groups, 4)."""
    groups = np.empty((-(-n_chunks // plan.chunks_per_window), 4), np.int64)
    groups[:, 0], groups[:, 3] = plan.chunks_per_window, plan.n_slices
    groups[-1, 0] -= len(groups) * plan.chunks_per_window - n_chunks
    groups[:, 2] = first_window + np.arange(len(groups))
    groups[:, 1] = _fetch_windows(groups[:, 2], plan.windows_per_read)
    return groups


def _warmup_groups(plan: ShufflePlan) -> Iterator[Group]:
    """Yield the groups of the first windows, until each following window is like the one before."""
    return _growing_blocks(plan) if plan.n_slices == 1 else _growing_slices(plan)


def _growing_blocks(plan: ShufflePlan) -> Iterator[Group]:
    """Yield one group per window, each ``GROWTH`` times as large as the one before, up to ``chunks_per_window``."""
    full = plan.chunks_per_window
    size, window = min(full, plan.warmup_chunks or full), 0
    while window == 0 or size < full:
        yield Group(size, int(_fetch_windows(np.array([window]), plan.windows_per_read)[0]), window, 1)
        size, window = min(full, math.ceil(GROWTH * size)), window + 1


def _growing_slices(plan: ShufflePlan) -> Iterator[Group]:
    """Yield the groups fetched before window 0, then one group per window.

    Window ``k`` yields ``sum(size / n_slices)`` chunks over the groups that have a slice in it. ``GROWTH`` times that
    number is fetched next, rounded to whole chunks; the rounding error is carried to the next window.
    """
    full, n_slices = plan.chunks_per_window, plan.n_slices
    is_small = plan.warmup_chunks and plan.warmup_chunks < plan.chunks_held
    per_window = 2 * plan.warmup_chunks / (n_slices + 1) if is_small else float(full)
    active: list[tuple[float, int]] = []  # per group: chunks yielded per window, slices left
    for size, n_left in _first_groups(per_window, n_slices):
        yield Group(size, 0, 0, n_left)
        active.append((size / n_left, n_left))
    window, n_full, target = 0, 0, 0.0
    while n_full < n_slices:  # after S full windows, all chunks of the pool are from full windows
        target += GROWTH * math.fsum(rate for rate, _ in active)  # fsum: equal in all versions of Python
        size = min(full, max(1, round(target)))
        target -= size
        n_full = n_full + 1 if size == full else 0
        active = [(rate, n_left - 1) for rate, n_left in active if n_left > 1] + [(size / n_slices, n_slices)]
        window += 1
        yield Group(size, window, window, n_slices)


def _first_groups(per_window: float, n_slices: int) -> Iterator[tuple[int, int]]:
    """Yield the chunks that the pool holds at first, as pairs ``(size, slices left)``.

    The pool is that of a shard that has fetched ``per_window`` chunks, ``W``, per window for long: of the chunks
    fetched ``S - k`` windows ago, ``k`` of ``S`` slices are left. They are replaced by ``W * k / S`` whole chunks in
    ``k`` slices. Groups 1 to ``k`` together have ``W * k * (k + 1) / (2 * S)`` chunks, rounded down, and all groups at
    least one.

    Examples
    --------
    >>> list(_first_groups(4, 4))
    [(1, 1), (2, 2), (3, 3), (4, 4)]
    >>> list(_first_groups(1, 4))
    [(1, 3), (2, 4)]
    """
    n_before = 0
    for k in range(1, n_slices + 1):
        is_last = k == n_slices
        n_chunks = math.floor(per_window * k * (k + 1) / (2 * n_slices) + (0.5 if is_last else 0))
        if is_last:
            n_chunks = max(n_chunks, 1)
        if n_chunks > n_before:
            yield n_chunks - n_before, k
            n_before = n_chunks
