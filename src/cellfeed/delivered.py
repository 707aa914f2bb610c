"""How well the minibatches that were received mixed the labels of obs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from cellfeed.effective import delivered_batch_size

MAX_LABELS = 1 << 16
"""Columns with more labels are passed over: counting them would cost more than the minibatch."""


class HasObs(Protocol):
    """A minibatch: what matters here is its obs."""

    @property
    def obs(self) -> Any:
        """Integer codes, shape (B, n_columns)."""


M = TypeVar("M", bound=HasObs)


@dataclass(eq=False)
class _Column:
    name: str
    place: int
    codes: npt.NDArray[Any]
    low: int
    n_labels: int
    n_minibatches: int = 0
    squares: float = 0.0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.n_labels, np.int64)


class Delivered:
    """Counts the labels of minibatches as they are received.

    Parameters
    ----------
    names
        Of the columns of obs; ``None`` where a column has no labels.
    codes
        The codes of all cells, column by column; ``None`` where there are none.
    batch_size
        Cells of a full minibatch; others are not counted.
    """

    def __init__(self, names: Sequence[str | None], codes: Sequence[npt.NDArray[Any] | None], batch_size: int) -> None:
        self._batch_size = batch_size
        self._columns = []
        for place, (name, column) in enumerate(zip(names, codes, strict=True)):
            if name is None or column is None or len(column) == 0 or batch_size == 1:
                continue
            low, high = int(column.min()), int(column.max())
            if high - low < MAX_LABELS:
                self._columns.append(_Column(name, place, column, low, high - low + 1))

    def counted(self, minibatches: Iterator[M]) -> Iterator[M]:
        """Yield minibatches, and count their labels."""
        for minibatch in minibatches:
            if self._columns and len(minibatch.obs) == self._batch_size:
                self._count(np.asarray(minibatch.obs))
            yield minibatch
            del minibatch  # held here, its memory could not be used again

    def _count(self, obs: npt.NDArray[np.int64]) -> None:
        for column in self._columns:
            counts = np.bincount(obs[:, column.place] - column.low, minlength=column.n_labels)
            column.counts += counts
            column.squares += float((counts.astype(np.float64) ** 2).sum())
            column.n_minibatches += 1

    def effective_batch_sizes(self) -> dict[str, float]:
        """Return, for each column of labels, the effective batch size of the minibatches received so far."""
        return {column.name: self._effective(column) for column in self._columns if column.n_minibatches}

    def _effective(self, column: _Column) -> float:
        of_all = np.bincount(column.codes.astype(np.int64) - column.low, minlength=column.n_labels) / len(column.codes)
        squares = float((of_all**2).sum())
        # Sum over minibatches of the squared distance of their proportions from those of all cells.
        distance = column.squares / self._batch_size**2 + column.n_minibatches * squares
        distance -= 2 * float((column.counts * of_all).sum()) / self._batch_size
        return delivered_batch_size(distance, column.n_minibatches, squares, self._batch_size)
