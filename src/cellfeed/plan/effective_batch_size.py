"""How well minibatches will be mixed: the effective batch size, predicted from a plan. Pure.

Let ``p[l]`` be the proportion of label ``l`` in all cells, and ``p[b, l]`` that in minibatch ``b``. The *effective
batch size* is the size of the simple random sample whose proportions have the same variance::

    B_eff = sum over l of p[l] * (1 - p[l])  /  mean over b of D[b],      D[b] = sum over l of (p[b, l] - p[l])**2

It is Kish's effective sample size (Survey Sampling, 1965) of a minibatch as a cluster sample, in which the chunks are
the clusters. ``D[b]`` is the *squared distance* of a minibatch.

A plan determines how many cells of each chunk are in each window. Which cells, and their order within the window, is
random. So the expected number of pairs of cells with the same label is known per minibatch, and with it ``E[D[b]]``.
In the worst case each chunk has a label of its own. For ``K`` chunks in equal parts and minibatches of ``B`` cells,
``B_eff`` is then about ``1 / (1/B + 1/K)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellfeed._joinids import IntArray, expand
from cellfeed.plan.label_tally import measured_batch_size
from cellfeed.plan.schedule import ShufflePlan
from cellfeed.plan.windows import ShardWindows

FloatArray = npt.NDArray[np.float64]

MINIBATCHES_SAMPLED = 256
"""Minibatches of a shard for which the squared distance is computed."""


@dataclass(frozen=True, eq=False)
class Composition:
    """The labels of each chunk: chunk ``c`` has ``counts[k]`` cells of ``labels[k]``, for ``k`` from ``starts[c]``.

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

    @classmethod
    def of_cells(cls, codes: npt.NDArray[np.integer], bounds: IntArray) -> Composition:
        """Count the labels of chunks.

        Parameters
        ----------
        codes
            shape (n_cells,): the label of each cell, from 0.
        bounds
            int64, shape (n_chunks + 1,): positions that divide the cells into chunks.
        """
        shape = len(bounds) - 1, int(codes.max(initial=0)) + 1
        counts = sp.csr_matrix((np.ones(len(codes), np.int64), codes.astype(np.int64), bounds), shape=shape, copy=True)
        counts.sum_duplicates()
        return cls(*(part.astype(np.int64) for part in (counts.indptr, counts.indices, counts.data)))

    @classmethod
    def worst_case(cls, bounds: IntArray) -> Composition:
        """Return the labels that are mixed worst: each chunk has a label of its own."""
        n_chunks = len(bounds) - 1
        return cls(np.arange(n_chunks + 1), np.arange(n_chunks), np.diff(bounds))

    @cached_property
    def proportions(self) -> FloatArray:
        """float64, shape (n_labels,): ``p``, the proportion of each label in all cells."""
        counts = np.bincount(self.labels, self.counts)
        return counts / max(float(counts.sum()), 1.0)

    @cached_property
    def squares(self) -> float:
        """``sum(p**2)``, the probability that two random cells have the same label."""
        return float((self.proportions**2).sum())

    @cached_property
    def sizes(self) -> IntArray:
        """int64, shape (n_chunks,): cells of each chunk."""
        return np.add.reduceat(self.counts, self.starts[:-1])

    @cached_property
    def same_label_probability(self) -> tuple[FloatArray, FloatArray]:
        """``a`` and ``r``: the probabilities that two cells of a chunk have the same label; (n_chunks,) each.

        ``a`` is for two cells drawn without replacement, ``r`` for two cells drawn with replacement.
        """
        n = self.sizes.astype(np.float64)
        squares = np.add.reduceat(self.counts.astype(np.float64) ** 2, self.starts[:-1])
        return (squares - n) / np.maximum(n * (n - 1), 1), squares / n**2

    def labels_of(self, chunks: IntArray, n_cells: FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
        """Return the expected labels of ``n_cells[i]`` random cells of ``chunks[i]``.

        Returns
        -------
        Index ``i``, label, and expected number of cells: shape (n,) each.
        """
        k, i = expand(self.starts[chunks], self.starts[chunks + 1])
        return i, self.labels[k], self.counts[k] * (n_cells / self.sizes[chunks])[i]


def expected_batch_size(shard: ShardWindows, batch_size: int, composition: Composition) -> float:
    """Return the expected effective batch size of a shuffled shard: at most ``batch_size``, as for a full shuffle.

    Parameters
    ----------
    shard
        Any shard of an epoch.
    batch_size
        Cells per minibatch.
    composition
        Labels of the selection's chunks.
    """
    n_minibatches = shard.first_cell(len(shard)) // batch_size  # without a short last minibatch
    if n_minibatches == 0:
        return float(batch_size)
    # Evenly spaced, so that the ends of the shard have their proportional weight: they are mixed least after a warm-up.
    n_sampled = min(MINIBATCHES_SAMPLED, n_minibatches)
    sampled = (2 * np.arange(n_sampled) + 1) * n_minibatches // (2 * n_sampled)
    distance = sum(_expected_distance(_draw(shard, int(b), batch_size), batch_size, composition) for b in sampled)
    return measured_batch_size(distance, n_sampled, composition.squares, batch_size)


@dataclass(frozen=True, eq=False)
class _Draw:
    """The random sample that one minibatch is: a number of cells from each of some windows.

    Attributes
    ----------
    share
        float64, shape (n_windows,): the fraction of the cells of window ``w`` that the minibatch takes.
    both
        float64, shape (n_windows,): the probability that it takes two given cells of window ``w``.
    window, chunk
        int64, shape (n_parts,): indices of windows, and the selection's chunks. A part is a chunk in a window.
    n
        float64, shape (n_parts,): cells of the part.
    """

    share: FloatArray
    both: FloatArray
    window: IntArray
    chunk: IntArray
    n: FloatArray


def _draw(shard: ShardWindows, b: int, batch_size: int) -> _Draw:
    low, high = b * batch_size, (b + 1) * batch_size
    share, both, window, chunk, n = [], [], [], [], []
    for w, k in enumerate(range(shard.find(low), shard.find(high - 1) + 1)):
        chunks, n_cells = shard.chunks_leaving(k)
        start, size = shard.first_cell(k), int(n_cells.sum())
        n_taken = min(start + size, high) - max(start, low)
        share.append(n_taken / max(size, 1))
        both.append(n_taken * (n_taken - 1) / max(size * (size - 1), 1))
        window.append(np.full(len(chunks), w))
        chunk.append(shard.chunks[chunks])
        n.append(n_cells.astype(np.float64))
    return _Draw(np.array(share), np.array(both), *map(np.concatenate, (window, chunk, n)))


def _expected_distance(draw: _Draw, batch_size: int, composition: Composition) -> float:
    """Return the expected squared distance of a minibatch of ``B`` cells.

    With ``P`` the expected number of ordered pairs of its cells that have the same label::

        E[D] = (B + P) / B**2  -  2 * sum over l of p[l] * E[p[b, l]]  +  sum over l of p[l]**2

    Examples
    --------
    A window has 2 cells of each of two chunks, and each chunk a label of its own. A minibatch takes 2 of the 4 cells.
    They have the same label with probability 1/3, so ``P = 2/3`` and ``E[D] = (2 + 2/3) / 4 - 2 * 1/2 + 1/2 = 1/6``:

    >>> taken = {"share": np.array([1 / 2]), "both": np.array([1 / 6])}
    >>> draw = _Draw(**taken, window=np.array([0, 0]), chunk=np.array([0, 1]), n=np.array([2.0, 2.0]))
    >>> round(6 * _expected_distance(draw, 2, Composition.worst_case(np.array([0, 2, 4]))), 9)
    1.0
    """
    part, label, n = composition.labels_of(draw.chunk, draw.n)
    window, n_labels = draw.window[part], len(composition.proportions)
    keys, key = np.unique(window * n_labels + label, return_inverse=True)
    window, label = keys // n_labels, keys % n_labels  # (n_entries,) each
    n = np.bincount(key, n).astype(np.float64)  # (n_entries,): N[w, l], cells of label l in window w
    n_pairs = _pairs_between(draw, window, label, n, composition) + _pairs_within(draw, window, n, composition)
    mean = float(composition.proportions[label] @ (draw.share[window] * n)) / batch_size
    return (batch_size + n_pairs) / batch_size**2 - 2 * mean + composition.squares


def _pairs_between(draw: _Draw, window: IntArray, label: IntArray, n: FloatArray, composition: Composition) -> float:
    """Return the expected pairs with equal labels, of cells from two different windows.

    Two windows are sampled independently. With ``m[w, l] = share[w] * N[w, l]`` expected cells of label ``l`` and
    ``e[w, c] = share[w] * n[w, c]`` expected cells of chunk ``c`` from window ``w``::

        sum over w != v of ( sum over l of m[w, l] * m[v, l]  +  sum over c of e[w, c] * e[v, c] * (a[c] - r[c]) )

    The first sum draws the two cells of a chunk with replacement. The second one corrects that: two windows share no
    cell. See :attr:`Composition.same_label_probability` for ``a`` and ``r``.
    """
    a, r = composition.same_label_probability
    chunks, chunk = np.unique(draw.chunk, return_inverse=True)
    by_label = _sum_of_products(draw.share[window] * n, np.unique(label, return_inverse=True)[1])
    by_chunk = _sum_of_products(draw.share[draw.window] * draw.n, chunk)
    return float(by_label.sum() + by_chunk @ (a - r)[chunks])


def _sum_of_products(x: FloatArray, column: IntArray) -> FloatArray:
    """Return, per column, the sum of ``x[i] * x[j]`` over all ``i != j`` of that column: shape (n_columns,)."""
    total: FloatArray = np.bincount(column, x).astype(np.float64) ** 2 - np.bincount(column, x**2)
    return total


def _pairs_within(draw: _Draw, window: IntArray, n: FloatArray, composition: Composition) -> float:
    """Return the expected pairs with equal labels, of cells from the same window.

    The minibatch takes two given cells of window ``w`` with probability ``both[w]``. The window has ``n[w, c]`` cells
    of chunk ``c`` and ``N[w, l]`` of label ``l``. With ``a`` and ``r`` as in :func:`_pairs_between`::

        sum over w of both[w] * ( sum over l of N[w, l]**2
                                  + sum over c of n[w, c] * (n[w, c] - 1) * a[c] - n[w, c]**2 * r[c] )
    """
    a, r = (probability[draw.chunk] for probability in composition.same_label_probability)
    by_chunk = draw.n * (draw.n - 1) * a - draw.n**2 * r
    return float(draw.both[window] @ n**2 + draw.both[draw.window] @ by_chunk)


def steady_batch_size(plan: ShufflePlan, sizes: npt.NDArray[np.integer], batch_size: int, n_chunks: float) -> float:
    """Return the effective batch size in the middle of a long shard, in the worst case, by a closed formula.

    Only two cells of one chunk have the same label. Two cells of a window are of one chunk with probability
    ``same_window``; two cells of different windows that share chunks, with probability ``other_window``, which is
    ``1 / chunks_mixed`` for chunks of equal size.

    Parameters
    ----------
    plan
        How chunks are mixed.
    sizes
        shape (n_all_chunks,): cells of each chunk of the selection.
    batch_size
        Cells per minibatch.
    n_chunks
        Chunks of the shard; a window mixes no more than these.
    """
    n_mixed = min(float(plan.chunks_mixed), n_chunks)
    slice_size = sizes / plan.n_slices  # mean; a slice has floor(slice_size) cells or one more
    whole = np.floor(slice_size)
    n_pairs = (whole + 1 - slice_size) * whole * (whole - 1) + (slice_size - whole) * (whole + 1) * whole
    window_size = n_mixed * float(slice_size.mean())
    same_window = n_mixed * float(n_pairs.mean()) / (window_size * max(window_size - 1, 1))
    other_window = (1 + float(sizes.var()) / float(sizes.mean()) ** 2) / n_mixed
    in_window = _mean_overlap(batch_size, window_size)  # fraction of a minibatch's pairs that are of one window
    in_reach = _mean_overlap(batch_size, window_size * plan.n_slices)  # ... or of two windows that share chunks
    same_chunk = in_window * same_window + (in_reach - in_window) * other_window
    squares = float((sizes.astype(np.float64) ** 2).sum()) / float(sizes.sum()) ** 2
    distance = 1 / batch_size + (1 - 1 / batch_size) * same_chunk - squares
    return measured_batch_size(distance, 1, squares, batch_size)


def _mean_overlap(batch_size: int, reach: float) -> float:
    """Return the mean of ``max(0, 1 - d / reach)`` over the distances ``d`` of two cells of a minibatch."""
    if batch_size < reach:
        return 1 - (batch_size + 1) / (3 * reach)
    return reach / batch_size * (1 - reach / (3 * batch_size))
