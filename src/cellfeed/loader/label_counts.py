"""How well the minibatches that the training loop has received mix the labels in obs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from cellfeed.plan.label_tally import CELLS_COUNTED, Tally

MAX_LABELS = 1 << 16
"""Columns with more labels are not counted: counting them would take longer than making the minibatch."""

# One lock for all counters, as a lock cannot be pickled. Reentrant, as a signal handler may call Stats.
_counting = threading.RLock()


def _renew_lock() -> None:
    """Replace the lock in a forked child: a thread of the parent may have held it."""
    global _counting
    _counting = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class HasObs(Protocol):
    """A minibatch of any class."""

    @property
    def obs(self) -> Any:
        """int64 codes, shape (B, n_columns)."""


M = TypeVar("M", bound=HasObs)


class LabelCounter:
    """Counts the labels of minibatches as they are received.

    Parameters
    ----------
    codes
        The columns of obs by name, in order: the codes of all cells, shape (n_obs,), or ``None`` for a column that
        does not hold labels.
    batch_size
        Cells of a full minibatch; other minibatches are not counted. With 1, nothing is counted.
    expected
        float64, shape (n_obs,): expected copies of each cell; ``None`` if each comes once.
    """

    def __init__(
        self,
        codes: Mapping[str, npt.NDArray[Any] | None],
        batch_size: int,
        expected: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self._batch_size = batch_size
        self._waiting: list[bytes] = []  # int64, shape (batch_size, n_columns) each
        self._tallies: dict[str, tuple[int, Tally]] = {}  # by name: the index of the column in obs, its counts
        for k, (name, column) in enumerate(codes.items()):
            if column is None or len(column) == 0 or batch_size == 1:
                continue
            tally = Tally(column, batch_size, expected)
            if tally.n_labels <= MAX_LABELS:
                self._tallies[name] = k, tally

    def counted(self, minibatches: Iterator[M]) -> Iterator[M]:
        """Yield minibatches, and count their labels."""
        for minibatch in minibatches:
            if self._tallies and minibatch.obs.shape[0] == self._batch_size:
                self._add(np.asarray(minibatch.obs))
            yield minibatch
            del minibatch  # a reference here would prevent the reuse of its memory

    def _add(self, obs: npt.NDArray[Any]) -> None:
        # This runs in the thread of the training loop. A NumPy operation would release the interpreter lock, and each
        # thread that makes minibatches would hold it for a while; copying bytes does not release it.
        with _counting:
            self._waiting.append(obs.tobytes())
            if len(self._waiting) * self._batch_size >= CELLS_COUNTED:
                self._count()

    def _count(self) -> None:
        waiting, self._waiting = self._waiting, []
        obs = np.frombuffer(b"".join(waiting), np.int64).reshape(len(waiting), self._batch_size, -1)
        for k, tally in self._tallies.values():
            tally.add(obs[:, :, k])

    def effective_batch_sizes(self) -> dict[str, float]:
        """Return the effective batch size of the minibatches received so far, by column of labels."""
        with _counting:
            if self._waiting:
                self._count()
            return {
                name: tally.effective_batch_size() for name, (_, tally) in self._tallies.items() if tally.n_minibatches
            }
