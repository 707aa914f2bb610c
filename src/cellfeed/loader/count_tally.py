"""Sums of counts and their largest values, per batch and gene, collected while cells are read."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from cellfeed._joinids import IntArray

FloatArray = npt.NDArray[np.float64]

MAX_HELD = 1 << 24
"""Counts that are held in memory before smaller ones are dropped: 16 bytes each."""


class CountTally:
    """Gives the mean, the variance, and the sums of clipped counts, of each gene in each batch, after one reading.

    Clipping at ``c`` changes only the counts above ``c``, so that sums of all counts and a list of the largest ones
    suffice. In the method of Seurat v3, ``c`` lies ``sqrt(n)`` standard deviations above the mean, where ``n`` is the
    number of cells and the deviation is that of a typical gene of this mean. By Chebyshev's inequality at most ``k``
    counts of a gene lie above ``c`` if its variance is ``k`` times that of a typical gene.

    All counts are held until they are :data:`MAX_HELD`, or four per batch and gene. Then those at or below
    ``mean + sqrt(n / k) * deviation`` are dropped, a gene keeping at most ``k`` of its counts; ``k`` begins at 256
    and is halved until half of the memory is free. :meth:`covers` says whether the counts above ``c`` were all kept.

    Parameters
    ----------
    n_batches, n_vars
        Numbers of batches and of genes.
    floor
        float64, shape (n_batches, n_vars): counts at or below are not held, and all others are.

    Examples
    --------
    >>> tally = CountTally(1, 2)
    >>> X = torch.tensor([[1.0, 0], [9, 2]]).to_sparse_csr()
    >>> tally.add(np.array([0, 0]), X)
    >>> tally.mean.tolist(), tally.variance.tolist()
    ([[5.0, 1.0]], [[32.0, 2.0]])
    >>> tally.clipped(np.array([[6.0, 6.0]]))[0].tolist()  # sums of min(x, 6)
    [[7.0, 2.0]]
    """

    def __init__(self, n_batches: int, n_vars: int, floor: FloatArray | None = None) -> None:
        self._shape = n_batches, n_vars
        n_slots = n_batches * n_vars  # slot = batch * n_vars + gene
        self.n_cells = np.zeros((n_batches, 1))
        self._sums = np.zeros((2, n_slots))  # of counts and of their squares
        self._floor = np.zeros(n_slots)
        self._held: list[tuple[IntArray, FloatArray]] = []  # slots and counts
        self._n_held, self._max_held = 0, float(max(MAX_HELD, 4 * n_slots))
        if floor is not None:
            self._floor, self._max_held = floor.ravel(), math.inf
        self._share = 256.0

    def add(self, batches: IntArray, X: torch.Tensor) -> None:
        """Add cells: the codes of their batches, int64 of shape (B,), and X in CSR."""
        from cellfeed.rows import tally_kernels  # imports numba

        n_batches, n_vars = self._shape
        self.n_cells[:, 0] += np.bincount(batches, minlength=n_batches)
        csr = X.crow_indices().numpy(), X.col_indices().numpy(), X.values().numpy()
        slots, large = np.empty(len(csr[1]), np.int64), np.empty(len(csr[1]))
        n_large = tally_kernels.add_counts(batches, *csr, n_vars, *self._sums, self._floor, slots, large)
        self._held.append((slots[:n_large].copy(), large[:n_large].copy()))
        self._n_held += n_large
        if self._n_held > self._max_held:
            self._drop()
            while self._n_held > self._max_held / 2:
                self._share /= 2
                self._drop()

    def _drop(self) -> None:
        """Raise the floors, and drop the counts at or below."""
        deviation = np.sqrt(np.maximum(self._moment(1) - self.mean**2, 0))
        floor = self.mean + np.sqrt(self.n_cells / self._share) * deviation
        self._floor = np.maximum(self._floor, floor.ravel())
        for k, (slots, values) in enumerate(self._held):
            large = values > self._floor[slots]
            self._held[k] = slots[large], values[large]
        self._n_held = sum(len(values) for _, values in self._held)

    def _moment(self, k: int) -> FloatArray:
        moment: FloatArray = self._sums[k].reshape(self._shape) / np.maximum(self.n_cells, 1)
        return moment

    @property
    def mean(self) -> FloatArray:
        """Means, shape (n_batches, n_vars)."""
        return self._moment(0)

    @property
    def variance(self) -> FloatArray:
        """Unbiased variances, shape (n_batches, n_vars)."""
        return np.asarray((self._moment(1) - self.mean**2) * (self.n_cells / (self.n_cells - 1)))

    def whole(self) -> CountTally:
        """Return the sums over all batches, without the largest counts."""
        whole = CountTally(1, self._shape[1])
        whole.n_cells = self.n_cells.sum(axis=0, keepdims=True)
        whole._sums = self._sums.reshape(2, *self._shape).sum(axis=1)
        return whole

    def covers(self, clip: FloatArray) -> bool:
        """Whether all counts above ``clip``, shape (n_batches, n_vars), were held."""
        return bool((self._floor.reshape(self._shape) <= clip).all())

    def clipped(self, clip: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the sums of ``min(x, clip)`` and of its squares, each of shape (n_batches, n_vars)."""
        slots = np.concatenate([np.empty(0, np.int64), *(slots for slots, _ in self._held)])
        values = np.concatenate([np.empty(0), *(values for _, values in self._held)])
        above = values > clip.ravel()[slots]
        slots, values = slots[above], values[above]
        n_above = np.bincount(slots, minlength=clip.size).reshape(self._shape)
        sums = []
        for k in (0, 1):
            lost = np.bincount(slots, values ** (k + 1), minlength=clip.size)
            sums.append((self._sums[k] - lost).reshape(self._shape) + n_above * clip ** (k + 1))
        return sums[0], sums[1]
