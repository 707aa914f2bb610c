"""How well minibatches are mixed: the effective batch size, measured by counting labels. Pure.

:mod:`cellfeed.plan.effective_batch_size` has the definition.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CELLS_COUNTED = 1 << 16
"""Cells whose labels are counted at once: enough to make the overhead of NumPy calls negligible."""


def batch_size_in_order(codes: npt.NDArray[np.integer], start: int, stop: int, batch_size: int) -> float:
    """Return the effective batch size of minibatches of consecutive cells.

    Parameters
    ----------
    codes
        shape (n_cells,): the label of each cell, from 0.
    start, stop
        Half-open range of the cells.
    batch_size
        Cells per minibatch.
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


class Tally:
    """Counts the labels of full minibatches.

    Parameters
    ----------
    codes
        shape (n_cells,): the label of each cell, integers.
    batch_size
        Cells per minibatch.
    expected
        float64, shape (n_cells,): expected copies of each cell; ``None`` if each comes once.
    """

    def __init__(
        self, codes: npt.NDArray[np.integer], batch_size: int, expected: npt.NDArray[np.float64] | None = None
    ) -> None:
        self._codes = codes
        self._expected = expected
        self._batch_size = batch_size
        self._low = int(codes.min())
        self.n_labels = int(codes.max()) - self._low + 1
        self._counts = np.zeros(0, np.int64)  # (n_labels,), over all minibatches; allocated by the first add
        self._squares = 0.0  # sum over minibatches and labels of count**2
        self.n_minibatches = 0

    def add(self, codes: npt.NDArray[np.integer]) -> None:
        """Count the labels of some minibatches: shape (n_minibatches, batch_size)."""
        if self.n_minibatches == 0:
            self._counts = np.zeros(self.n_labels, np.int64)
        offsets = np.arange(len(codes))[:, np.newaxis] * self.n_labels
        labels = np.sort(offsets + codes - self._low, axis=1).ravel()  # sorting: its time is independent of n_labels
        starts = np.flatnonzero(np.diff(labels, prepend=-1))
        counts = np.diff(starts, append=len(labels))
        np.add.at(self._counts, labels[starts] % self.n_labels, counts)
        self._squares += float((counts.astype(np.float64) ** 2).sum())
        self.n_minibatches += len(codes)

    def effective_batch_size(self) -> float:
        """Return the effective batch size of the minibatches so far, of which there must be at least one."""
        labels = self._codes.astype(np.int64) - self._low
        p = np.bincount(labels, self._expected, minlength=self.n_labels)
        p = p / p.sum()
        squares = float((p**2).sum())
        distance = self._squares / self._batch_size**2 + self.n_minibatches * squares  # sum over minibatches
        distance -= 2 * float((self._counts * p).sum()) / self._batch_size
        return measured_batch_size(distance, self.n_minibatches, squares, self._batch_size)


def measured_batch_size(distance: float, n_minibatches: int, squares: float, batch_size: int) -> float:
    """Return the effective batch size of some minibatches, at most ``batch_size``.

    Parameters
    ----------
    distance
        Sum of the squared distances of the minibatches.
    n_minibatches
        Number of minibatches, all of them full.
    squares
        Sum of the squared proportions of the labels in all cells.
    batch_size
        Cells per minibatch.

    Examples
    --------
    >>> measured_batch_size(0.5, 10, squares=0.5, batch_size=64)  # two equally frequent labels
    10.0
    """
    if n_minibatches == 0:
        return float("nan")
    if distance <= 0 or squares >= 1:
        return float(batch_size)
    return min(float(batch_size), (1 - squares) * n_minibatches / distance)
