"""How well minibatches are mixed: the effective batch size, in theory and as delivered. Pure.

Let a label have proportions ``p`` over all cells and ``p_b`` in minibatch ``b``. The *effective batch size* is the size
of the simple random sample whose proportions would vary as much:
``sum(p * (1 - p)) / mean over b of sum((p_b - p)**2)``. It is Kish's effective sample size (Survey Sampling, 1965) of a
minibatch as a cluster sample, the chunks being the clusters.

A plan says how many cells of which chunk leave in which window. Within a window their order is random, and so is the
choice of a chunk's cells: from these follows, minibatch by minibatch, how many pairs of cells are expected to have one
label. At worst each chunk is a label of its own; for ``K`` chunks in equal parts the effective batch size is then about
``1 / (1/B + 1/K)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellfeed._joinids import IntArray, expand
from cellfeed.plan.schedule import ShufflePlan
from cellfeed.plan.windows import ShardWindows

MINIBATCHES_SAMPLED = 256
"""Minibatches of a walk by which it is judged."""


@dataclass(frozen=True, eq=False)
class Composition:
    """The labels of each chunk: chunk ``c`` has ``counts[k]`` cells of ``labels[k]``, ``k`` from ``starts[c]`` on.

    Attributes
    ----------
    starts
        int64, shape (n_chunks + 1,).
    labels, counts
        int64, shape (starts[-1],).
    """

    starts: IntArray
    labels: IntArray
    counts: IntArray

    @cached_property
    def proportions(self) -> npt.NDArray[np.float64]:
        """float64, shape (n_labels,): the share of each label in all cells."""
        of_all = np.bincount(self.labels, self.counts)
        return of_all / max(float(of_all.sum()), 1.0)

    @cached_property
    def squares(self) -> float:
        """Sum of the squares of the proportions: the probability that two cells have the same label."""
        return float((self.proportions**2).sum())

    @cached_property
    def sizes(self) -> IntArray:
        """int64, shape (n_chunks,): cells of each chunk."""
        return np.add.reduceat(self.counts, self.starts[:-1])

    @cached_property
    def alike(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The same probability for two cells of one chunk, and for two chunks like it: float64, shape (n_chunks,)."""
        counts = self.counts.astype(np.float64)
        n, squares = self.sizes.astype(np.float64), np.add.reduceat(counts**2, self.starts[:-1])
        return (squares - n) / np.maximum(n * (n - 1), 1), squares / n**2

    def of(self, chunks: IntArray, n: npt.NDArray[np.float64]) -> tuple[IntArray, npt.NDArray[np.float64]]:
        """Labels of so many cells of some chunks, on average: shape (m,) each; a label may come more than once."""
        begin, end = self.starts[chunks], self.starts[chunks + 1]
        at, which = expand(begin, end)
        return self.labels[at], self.counts[at] * (n / self.sizes[chunks])[which]


def composition(codes: npt.NDArray[np.integer], bounds: IntArray) -> Composition:
    """Count the labels of chunks.

    Parameters
    ----------
    codes
        shape (n_cells,): the label of each cell, from 0.
    bounds
        int64, shape (n_chunks + 1,): positions that cut the cells into chunks.
    """
    shape = len(bounds) - 1, int(codes.max(initial=0)) + 1
    counted = sp.csr_matrix((np.ones(len(codes), np.int64), codes.astype(np.int64), bounds), shape=shape, copy=True)
    counted.sum_duplicates()
    return Composition(*(part.astype(np.int64) for part in (counted.indptr, counted.indices, counted.data)))


def worst(bounds: IntArray) -> Composition:
    """Return the worst labels that there can be: each chunk has one of its own."""
    n_chunks = len(bounds) - 1
    return Composition(np.arange(n_chunks + 1), np.arange(n_chunks), np.diff(bounds))


def expected_batch_size(walk: ShardWindows, batch_size: int, made_of: Composition) -> float:
    """Return the effective batch size to expect of a shuffled walk: at most ``batch_size``, which a full shuffle has.

    Parameters
    ----------
    walk
        Of some stretch of an epoch.
    batch_size
        Cells in a minibatch.
    made_of
        The labels of the plan's chunks.
    """
    n_cells = walk.first_cell(len(walk))
    n_minibatches = n_cells // batch_size  # a short last one is not judged
    if n_minibatches == 0:
        return float(batch_size)
    # Evenly, and no more of the ends than is their share: walks that begin small mix least there.
    n_sampled = min(MINIBATCHES_SAMPLED, n_minibatches)
    chosen = (2 * np.arange(n_sampled) + 1) * n_minibatches // (2 * n_sampled)
    distance = sum(_distance(walk, k * batch_size, batch_size, made_of) for k in chosen.tolist())
    return measured_batch_size(distance, n_sampled, made_of.squares, batch_size)


def _distance(walk: ShardWindows, low: int, batch_size: int, made_of: Composition) -> float:
    """Return the expected squared distance of a minibatch's proportions from those of all cells."""
    parts = [_taken(walk, k, low, low + batch_size) for k in range(walk.find(low), walk.find(low + batch_size - 1) + 1)]
    chunks, place = np.unique(np.concatenate([part.chunks for part in parts]), return_inverse=True)
    labels = [made_of.of(part.chunks, part.expected) for part in parts]
    names, column = np.unique(np.concatenate([label for label, _ in labels]), return_inverse=True)
    columns = np.split(column, np.cumsum([len(label) for label, _ in labels])[:-1])
    of_window = [np.bincount(at, n, minlength=len(names)) for at, (_, n) in zip(columns, labels, strict=True)]
    of_all = np.sum(of_window, axis=0)
    same, like = made_of.alike
    excess = same - like
    # Pairs of cells with one label: first as if every cell were drawn apart from all others ...
    alike = float((of_all**2).sum())
    from_chunk = np.bincount(place, np.concatenate([part.expected for part in parts]))
    alike += float((from_chunk**2 * excess[chunks]).sum())
    for part, n in zip(parts, of_window, strict=True):  # ... then as windows draw them: no cell twice
        alike += (part.both / max(part.share, 1e-300) ** 2 - 1) * float((n**2).sum())
        alike -= float((part.expected**2 * excess[part.chunks]).sum())
        alike += part.both * float((part.n * (part.n - 1) * same[part.chunks] - part.n**2 * like[part.chunks]).sum())
    nearness = float((made_of.proportions[names] * of_all).sum()) / batch_size
    return 1 / batch_size + alike / batch_size**2 - 2 * nearness + made_of.squares


@dataclass(frozen=True, eq=False)
class _Taken:
    """What a minibatch takes of a window: a random sample of its ``n`` cells of each chunk."""

    chunks: IntArray
    n: npt.NDArray[np.float64]
    share: float
    both: float

    @property
    def expected(self) -> npt.NDArray[np.float64]:
        """Cells that are taken of each chunk, on average."""
        return self.n * self.share


def _taken(walk: ShardWindows, k: int, low: int, high: int) -> _Taken:
    chunks, n = walk.chunks_leaving(k)
    begin, size = walk.first_cell(k), int(n.sum())
    taken = min(begin + size, high) - max(begin, low)
    both = taken * (taken - 1) / max(size * (size - 1), 1)  # the probability that two cells of the window are taken
    return _Taken(walk.chunks[chunks], n.astype(np.float64), taken / max(size, 1), both)


def batch_size_in_order(codes: npt.NDArray[np.integer], start: int, stop: int, batch_size: int) -> float:
    """Return the effective batch size of minibatches that are consecutive cells.

    Parameters
    ----------
    codes
        shape (n_cells,): the label of each cell, from 0.
    start, stop
        The cells that are walked.
    batch_size
        Cells in a minibatch.
    """
    n_minibatches = (stop - start) // batch_size
    if n_minibatches == 0:
        return float(batch_size)
    tally = Tally(codes, batch_size)
    minibatches = codes[start : start + n_minibatches * batch_size].reshape(n_minibatches, batch_size)
    step = max(1, CELLS_COUNTED // batch_size)
    for k in range(0, n_minibatches, step):
        tally.add(minibatches[k : k + step])
    return tally.effective_batch_size()


CELLS_COUNTED = 1 << 16
"""Cells whose labels are counted at once: beside what that takes, calling NumPy counts for nothing."""


class Tally:
    """The labels of full minibatches, counted as they come.

    Parameters
    ----------
    codes
        shape (n_cells,): the label of each cell, integers.
    batch_size
        Cells in a minibatch.
    """

    def __init__(self, codes: npt.NDArray[np.integer], batch_size: int) -> None:
        self._codes = codes
        self._batch_size = batch_size
        self._low = int(codes.min())
        self.n_labels = int(codes.max()) - self._low + 1
        self._counts = np.zeros(0, np.int64)  # of each label in all of them
        self._squares = 0.0  # sum over them of the squares of its counts
        self.n_minibatches = 0

    def add(self, codes: npt.NDArray[np.integer]) -> None:
        """Count the labels of some minibatches: shape (n_minibatches, batch_size)."""
        if self.n_minibatches == 0:
            self._counts = np.zeros(self.n_labels, np.int64)
        places = np.arange(len(codes))[:, np.newaxis] * self.n_labels
        labels = np.sort(places + codes - self._low, axis=1).ravel()  # takes no longer for more of them
        starts = np.flatnonzero(np.diff(labels, prepend=-1))
        counts = np.diff(starts, append=len(labels))
        np.add.at(self._counts, labels[starts] % self.n_labels, counts)
        self._squares += float((counts.astype(np.float64) ** 2).sum())
        self.n_minibatches += len(codes)

    def effective_batch_size(self) -> float:
        """Return that of the minibatches so far; there must be one."""
        of_all = np.bincount(self._codes.astype(np.int64) - self._low, minlength=self.n_labels) / len(self._codes)
        squares = float((of_all**2).sum())
        # Sum over minibatches of the squared distance of their proportions from those of all cells.
        distance = self._squares / self._batch_size**2 + self.n_minibatches * squares
        distance -= 2 * float((self._counts * of_all).sum()) / self._batch_size
        return measured_batch_size(distance, self.n_minibatches, squares, self._batch_size)


def steady_batch_size(mixing: ShufflePlan, sizes: npt.NDArray[np.integer], batch_size: int, n_chunks: float) -> float:
    """Tell what to expect of a long walk at worst, without one.

    Parameters
    ----------
    mixing
        Of the walk.
    sizes
        shape (n,): cells of all chunks.
    batch_size
        Cells in a minibatch.
    n_chunks
        Chunks of the walk: no more are mixed.
    """
    mixed = min(float(mixing.mixed), n_chunks)
    part = sizes / mixing.slices  # cells of a chunk in a window: a few, and sometimes one more
    whole = np.floor(part)
    pairs = float(((whole + 1 - part) * whole * (whole - 1) + (part - whole) * (whole + 1) * whole).mean())
    window = mixed * float(part.mean())
    in_window = mixed * pairs / (window * max(window - 1, 1))
    apart = (1 + float(sizes.var()) / float(sizes.mean()) ** 2) / mixed
    together, both = _near(batch_size, window), _near(batch_size, window * mixing.slices)
    repeats = together * in_window + (both - together) * apart
    squares = float((sizes.astype(np.float64) ** 2).sum()) / float(sizes.sum()) ** 2
    distance = 1 / batch_size + (1 - 1 / batch_size) * repeats - squares
    return measured_batch_size(distance, 1, squares, batch_size)


def _near(batch_size: int, reach: float) -> float:
    """Mean over the pairs of a minibatch of the part of a reach that is left beyond their distance."""
    if batch_size < reach:
        return 1 - (batch_size + 1) / (3 * reach)
    return reach / batch_size * (1 - reach / (3 * batch_size))


def measured_batch_size(distance: float, n_minibatches: int, squares: float, batch_size: int) -> float:
    """Return the effective batch size of some minibatches, at most their size.

    Parameters
    ----------
    distance
        Sum over minibatches and labels of the squared distance of their proportions from those of all cells.
    n_minibatches
        How many there are; full ones only.
    squares
        Sum of the squares of the proportions of all cells.
    batch_size
        Cells in a minibatch.

    Examples
    --------
    >>> measured_batch_size(0.5, 10, squares=0.5, batch_size=64)  # two labels in equal shares
    10.0
    """
    if n_minibatches == 0:
        return float("nan")
    if distance <= 0 or squares >= 1:
        return float(batch_size)
    return min(float(batch_size), (1 - squares) * n_minibatches / distance)
