"""When chunks arrive and when they leave: the rhythm of a walk, as a pure function of a few numbers.

A walk goes from window to window. Chunks *arrive* before the window from which their first cells leave, and leave in
*slices*, one a window. If ``W`` chunks arrive a window and each leaves in ``S`` slices, a window mixes ``W * S``
chunks while ``W * (S + 1) / 2`` are held, and reading is as steady as leaving. The published block is the plainest
case: one slice.

At both ends a walk mixes well, too. It begins with chunks that leave in 1, 2, ... ``S`` slices, so that it holds from
the first window what it holds later; and whatever is held when the last chunks have arrived leaves together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cellfeed._joinids import IntArray

GROWTH = 1.6
"""While a walk that began small grows, so many times as much arrives as leaves: a training loop that takes half of
what can be read need not wait for the growth."""


AHEAD = 8
"""Chunks that are read ahead, where as many windows are held thrice over: so many cores, or requests, can be at work.
At least those of two windows are: with one, cores would idle while the last chunk of each is read."""

MAX_SLICES = 32
"""More slices hardly mix better: of what is held, 32 already mix 1.8 times as much."""


@dataclass(frozen=True)
class ShufflePlan:
    """How chunks are mixed.

    Attributes
    ----------
    chunks
        Chunks that arrive a window, ``W``.
    slices
        Windows over which each of them leaves, ``S``.
    first
        Chunks with which a walk begins at most: it then grows, and its first minibatch is there sooner. 0 sets no
        limit.
    together
        Windows whose chunks arrive together, where each leaves in one slice: neighbours among them are read once.
    """

    chunks: int
    slices: int = 1
    first: int = 0
    together: int = 1

    @property
    def mixed(self) -> int:
        """Chunks of which a window is made."""
        return self.chunks * self.slices

    @property
    def held(self) -> float:
        """Chunks that are held when a window begins."""
        return self.chunks * (self.slices + 1) / 2 if self.slices > 1 else float(self.chunks * self.together)

    @property
    def ahead(self) -> int:
        """Windows whose chunks are read ahead."""
        if self.slices == 1:
            return self.together
        return max(2, math.ceil(min(AHEAD, self.held / 3) / self.chunks))

    @property
    def arriving(self) -> int:
        """Chunks that are read ahead."""
        return self.chunks * self.ahead


def best_shuffle_plan(room: float, *, ahead: bool, first: int = 0) -> ShufflePlan:
    """Choose what mixes most while at most ``room`` chunks are held: one, and one ahead, at least.

    Parameters
    ----------
    ahead
        Whether chunks are read ahead; otherwise they are read when they are wanted.
    first
        As for :class:`ShufflePlan`.

    Examples
    --------
    >>> best_shuffle_plan(256, ahead=True)
    ShufflePlan(chunks=15, slices=29, first=0, together=1)
    """
    choices = [ShufflePlan(max(1, int(room / 2) if ahead else int(room)))]
    for slices in range(2, MAX_SLICES + 1):
        largest = int(2 * room / (slices + 1 + 4 * ahead))  # at least two windows are read ahead
        fitting = (ShufflePlan(chunks, slices, first) for chunks in range(largest, 0, -1))
        choices += next(([m] for m in fitting if m.held + m.arriving * ahead <= room), [])
    return max(choices, key=lambda mixing: (mixing.mixed, mixing.chunks))


@dataclass(frozen=True, eq=False)
class Schedule:
    """When each chunk of a walk arrives and leaves.

    Attributes
    ----------
    arrive
        int64, shape (n_chunks,), ascending: the window before which a chunk is there.
    leave
        int64, shape (n_chunks,): the window of its first slice.
    slices
        int64, shape (n_chunks,): its slices, one a window; those behind the last window leave in that one.
    n_windows
        Windows of the walk.
    """

    arrive: IntArray
    leave: IntArray
    slices: IntArray
    n_windows: int


def schedule(n_chunks: int, mixing: ShufflePlan) -> Schedule:
    """Plan the fetches and departures of the chunks of a walk, in their order.

    Examples
    --------
    >>> made = schedule(7, ShufflePlan(chunks=2, slices=2))
    >>> made.arrive.tolist(), made.slices.tolist(), made.n_windows
    ([0, 0, 0, 1, 1, 2, 2], [1, 2, 2, 2, 2, 2, 2], 3)
    """
    if n_chunks == 0:
        nothing = np.empty(0, np.int64)
        return Schedule(nothing, nothing, nothing, 0)
    groups = np.array(list(_limited(_begin(mixing), n_chunks)), np.int64)
    rest = n_chunks - int(groups[:, 0].sum())
    if rest > 0:  # what has become steady goes on
        more = np.empty((-(-rest // mixing.chunks), 4), np.int64)
        more[:, 0], more[:, 3] = mixing.chunks, mixing.slices
        more[-1, 0] -= len(more) * mixing.chunks - rest
        more[:, 2] = groups[-1, 2] + 1 + np.arange(len(more))
        more[:, 1] = _arrivals(more[:, 2], mixing)
        groups = np.concatenate((groups, more))
    arrive, leave, slices = (np.repeat(groups[:, k], groups[:, 0]) for k in (1, 2, 3))
    return Schedule(arrive, leave, slices, int(leave[-1]) + 1)


def _arrivals(windows: IntArray, mixing: ShufflePlan) -> IntArray:
    """When the chunks of windows arrive: those of the first alone, then so many windows' together."""
    return np.where(windows == 0, 0, 1 + (windows - 1) // mixing.together * mixing.together)


Group = tuple[int, int, int, int]
"""How many chunks; when they arrive; when they begin to leave; in how many slices."""


def _limited(groups: Iterator[Group], n_chunks: int) -> Iterator[Group]:
    for size, arrive, leave, slices in groups:
        if n_chunks <= 0:
            return
        yield min(size, n_chunks), arrive, leave, slices
        n_chunks -= size


def _begin(mixing: ShufflePlan) -> Iterator[Group]:
    """Yield groups of chunks up to where every further window is like the one before."""
    if mixing.slices == 1:
        size, window = min(mixing.chunks, mixing.first or mixing.chunks), 0
        while window == 0 or size < mixing.chunks:
            yield size, int(_arrivals(np.array([window]), mixing)[0]), window, 1
            size, window = min(mixing.chunks, math.ceil(GROWTH * size)), window + 1
        return
    small = mixing.first and mixing.first < mixing.held
    rate = 2 * mixing.first / (mixing.slices + 1) if small else float(mixing.chunks)
    alive = []  # of each group: chunks a slice, and slices left
    for n, n_slices in _first_groups(rate, mixing.slices):
        yield n, 0, 0, n_slices
        alive.append((n / n_slices, n_slices))
    window, full, due = 0, 0, 0.0
    while full < mixing.slices:
        due += GROWTH * math.fsum(part for part, _ in alive)  # alike in all versions of Python
        arriving = min(mixing.chunks, max(1, round(due)))
        due -= arriving
        full = full + 1 if arriving == mixing.chunks else 0
        alive = [(part, left - 1) for part, left in alive if left > 1] + [(arriving / mixing.slices, mixing.slices)]
        window += 1
        yield arriving, window, window, mixing.slices


def _first_groups(size: float, n_slices: int) -> Iterator[tuple[int, int]]:
    """Chunks that are there first, as if ``size`` of them had been arriving a window: how many, and slices."""
    began = 0
    for k in range(1, n_slices + 1):
        until = math.floor(size * k * (k + 1) / (2 * n_slices) + (0.5 if k == n_slices else 0))
        if k == n_slices:
            until = max(until, 1)
        if until > began:
            yield until - began, k
            began = until
