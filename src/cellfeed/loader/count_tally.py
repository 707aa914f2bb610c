"""Sums of counts and their largest values, per batch and gene, collected while cells are read."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

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
    >>> tally.add(torch.tensor([0, 0]), X)
    >>> tally.mean.tolist(), tally.variance.tolist()
    ([[5.0, 1.0]], [[32.0, 2.0]])
    >>> tally.clipped(np.array([[6.0, 6.0]]))[0].tolist()  # sums of min(x, 6)
    [[7.0, 2.0]]
    """

    def __init__(self, n_batches: int, n_vars: int, floor: FloatArray | None = None, max_held: int = MAX_HELD) -> None:
        self._shape = n_batches, n_vars
        n_slots = n_batches * n_vars  # slot = batch * n_vars + gene
        self.n_cells = np.zeros((n_batches, 1))
        self._sums = torch.zeros(2, n_slots, dtype=torch.float64)  # of counts and of their squares
        self._floor = torch.zeros(n_slots, dtype=torch.float64)
        self._held: list[tuple[torch.Tensor, torch.Tensor]] = []  # slots and counts
        self._n_held, self._max_held = 0, float(max(MAX_HELD, 4 * n_slots))
        if floor is not None:
            self._floor, self._max_held = torch.from_numpy(floor.ravel()), math.inf
        self._share = 256.0

    def add(self, batches: torch.Tensor, X: torch.Tensor) -> None:
        """Add cells: the codes of their batches, int64 of shape (B,), and X in CSR."""
        n_batches, n_vars = self._shape
        self.n_cells[:, 0] += np.bincount(batches.numpy(), minlength=n_batches)
        slots = torch.repeat_interleave(batches * n_vars, X.crow_indices().diff()) + X.col_indices()
        values = X.values().double()
        self._sums[0].index_add_(0, slots, values)
        self._sums[1].index_add_(0, slots, values * values)
        self._hold(slots, values)
        if self._n_held > self._max_held:
            self._drop()
            while self._n_held > self._max_held / 2:
                self._share /= 2
                self._drop()

    def _hold(self, slots: torch.Tensor, values: torch.Tensor) -> None:
        large = values > self._floor[slots]
        self._held.append((slots[large], values[large]))
        self._n_held += len(self._held[-1][0])

    def _drop(self) -> None:
        """Raise the floors, and drop the counts at or below."""
        deviation = np.sqrt(np.maximum(self._moment(1) - self.mean**2, 0))
        floor = self.mean + np.sqrt(self.n_cells / self._share) * deviation
        self._floor = torch.maximum(self._floor, torch.from_numpy(floor.ravel()))
        held, self._held, self._n_held = self._held, [], 0
        for slots, values in held:
            self._hold(slots, values)

    def _moment(self, k: int) -> FloatArray:
        moment: FloatArray = self._sums[k].numpy().reshape(self._shape) / np.maximum(self.n_cells, 1)
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
        whole._sums = self._sums.reshape(2, *self._shape).sum(dim=1)
        return whole

    def covers(self, clip: FloatArray) -> bool:
        """Whether all counts above ``clip``, shape (n_batches, n_vars), were held."""
        return bool((self._floor.numpy().reshape(self._shape) <= clip).all())

    def clipped(self, clip: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the sums of ``min(x, clip)`` and of its squares, each of shape (n_batches, n_vars)."""
        slots = torch.cat([slots for slots, _ in self._held] or [torch.zeros(0, dtype=torch.int64)])
        values = torch.cat([values for _, values in self._held] or [torch.zeros(0, dtype=torch.float64)])
        above = values > torch.from_numpy(clip.ravel())[slots]
        slots, values = slots[above], values[above]
        sums = []
        for k, power in enumerate((values, values * values)):
            lost = torch.zeros_like(self._sums[0]).index_add_(0, slots, power)
            n_above = torch.zeros_like(lost).index_add_(0, slots, torch.ones_like(values))
            sums.append(
                (self._sums[k] - lost).numpy().reshape(self._shape)
                + n_above.numpy().reshape(self._shape) * clip ** (k + 1)
            )
        return sums[0], sums[1]
