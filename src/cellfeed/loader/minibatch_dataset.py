"""What datasets and joins share: their shape, epochs, state, and iteration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

from torch.utils.data import IterableDataset

from cellfeed._tabular import Tabular
from cellfeed.loader.epoch_engine import EpochEngine
from cellfeed.loader.workers import Sendable
from cellfeed.rows.minibatch import AnyMinibatch
from cellfeed.select.encoders import Encoder
from cellfeed.stats import Stats


class MinibatchDataset(Tabular, Sendable, IterableDataset[AnyMinibatch]):
    """Base class of datasets, whose items are minibatches of cells."""

    _engine: EpochEngine

    @classmethod
    def _of(cls, engine: EpochEngine) -> Self:
        """Make a dataset of an engine."""
        self = cls.__new__(cls)
        self._engine = engine
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells, and number of columns of ``X``: of the selected genes, or ``n_vars`` of a transform."""
        return self._engine.shape

    @property
    def obs_encoders(self) -> Mapping[str, Encoder]:
        """The fitted encoders by name, in the order of the columns of ``obs``; ``"soma_joinid"`` has no encoder."""
        return MappingProxyType(dict(self._engine.selection.encoders))

    @property
    def epoch(self) -> int:
        """The epoch that the next iterator yields."""
        return self._engine.epochs.next

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iterator yields; later iterators yield the epochs after it.

        An epoch has the same order whenever it is read. Without this call the first iterator yields epoch 0, and each
        further one the next epoch.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=0)
        >>> first = next(iter(dataset)).X
        >>> dataset.set_epoch(0)
        >>> bool((next(iter(dataset)).X == first).all())
        True
        """
        self._engine.epochs.set(epoch)

    def __len__(self) -> int:
        """Return the number of minibatches of this rank in the next epoch, over all its workers.

        After a state was loaded, minibatches received before it was saved are included.
        """
        return self._engine.epochs.n_minibatches()

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the training loop, as a small dict of plain values.

        It counts the minibatches that iterators of this dataset, or of a :func:`cellfeed.experiment_dataloader` of
        it, have yielded in this process.

        Returns
        -------
        A dict for :meth:`load_state_dict`; ``json.dumps`` and ``torch.save`` accept it.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), batch_size=100, seed=0)
        >>> iterator = iter(dataset)
        >>> _ = next(iterator), next(iterator)
        >>> dataset.load_state_dict(dataset.state_dict())
        >>> sum(len(X) for X, obs in dataset)  # of 700
        500
        """
        return self._engine.epochs.save()

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Make the next iterator continue after the last minibatch that the training loop received.

        Cells that had been read ahead when the state was saved are read again. With the same ranks and workers the
        order continues unchanged. The number of workers or ranks and ``memory_budget`` may differ: each remaining
        cell is yielded once.

        Parameters
        ----------
        state
            A result of :meth:`state_dict`. If ranks had received different numbers of minibatches and the number of
            ranks changes: a list of the states of all ranks. All ranks must be given the same state, or, if the number
            of ranks is unchanged, each its own.

        Raises
        ------
        StateError
            If the state belongs to other cells, genes or parameters; the message names the field.
        """
        self._engine.epochs.restore(state)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._engine.describe()})"

    def _table(self) -> dict[str, str]:
        return self._engine.table()

    def stats(self) -> Stats:
        """Return counters of what iterators of this dataset have done in this process.

        Only ``effective_batch_sizes`` includes the minibatches of worker processes.
        """
        return self._engine.stats()

    def __iter__(self) -> Iterator[AnyMinibatch]:
        return self._engine.minibatches(self._workers, device=self._device)  # type: ignore[return-value] # no OrderedMinibatch for users
