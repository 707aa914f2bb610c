"""How well the minibatches that were received mixed the labels of obs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from cellfeed.effective import Tally

MAX_LABELS = 1 << 16
"""Columns with more labels are passed over: counting them would cost more than the minibatch."""


class HasObs(Protocol):
    """A minibatch: what matters here is its obs."""

    @property
    def obs(self) -> Any:
        """Integer codes, shape (B, n_columns)."""


M = TypeVar("M", bound=HasObs)


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
        self._columns: list[tuple[str, int, Tally]] = []
        for place, (name, column) in enumerate(zip(names, codes, strict=True)):
            if name is None or column is None or len(column) == 0 or batch_size == 1:
                continue
            tally = Tally(column, batch_size)
            if tally.n_labels <= MAX_LABELS:
                self._columns.append((name, place, tally))

    def counted(self, minibatches: Iterator[M]) -> Iterator[M]:
        """Yield minibatches, and count their labels."""
        for minibatch in minibatches:
            if self._columns and len(minibatch.obs) == self._batch_size:
                obs = np.asarray(minibatch.obs)
                for _, place, tally in self._columns:
                    tally.add(obs[:, place])
            yield minibatch
            del minibatch  # held here, its memory could not be used again

    def effective_batch_sizes(self) -> dict[str, float]:
        """Return, for each column of labels, the effective batch size of the minibatches received so far."""
        return {name: tally.effective_batch_size() for name, _, tally in self._columns if tally.n_minibatches}
