"""How well the minibatches that were received mixed the labels of obs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from cellfeed.plan.label_tally import CELLS_COUNTED, Tally

MAX_LABELS = 1 << 16
"""Columns with more labels are passed over: counting them would cost more than the minibatch."""


_counting = threading.RLock()  # of all objects together, for none would survive a pickle; a signal may ask meanwhile


def _renew_lock() -> None:
    """Give a forked child a lock of its own: a thread of the parent may have held it."""
    global _counting
    _counting = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class HasObs(Protocol):
    """A minibatch: what matters here is its obs."""

    @property
    def obs(self) -> Any:
        """int64 codes, shape (B, n_columns)."""


M = TypeVar("M", bound=HasObs)


class LabelCounter:
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
        self._waiting: list[bytes] = []  # int64, shape (batch_size, n_columns) each
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
            if self._columns and minibatch.obs.shape[0] == self._batch_size:
                self._note(np.asarray(minibatch.obs))
            yield minibatch
            del minibatch  # held here, its memory could not be used again

    def _note(self, obs: npt.NDArray[Any]) -> None:
        # This is time of the training loop. NumPy's operations would hand the interpreter to the threads that make the
        # next minibatches, and each takes it for a while: bytes are copied without.
        with _counting:
            self._waiting.append(obs.tobytes())
            if len(self._waiting) * self._batch_size >= CELLS_COUNTED:
                self._count()

    def _count(self) -> None:
        waiting, self._waiting = self._waiting, []
        obs = np.frombuffer(b"".join(waiting), np.int64).reshape(len(waiting), self._batch_size, -1)
        for _, place, tally in self._columns:
            tally.add(obs[:, :, place])

    def effective_batch_sizes(self) -> dict[str, float]:
        """Return, for each column of labels, the effective batch size of the minibatches received so far."""
        with _counting:
            if self._waiting:
                self._count()
            return {name: tally.effective_batch_size() for name, _, tally in self._columns if tally.n_minibatches}
