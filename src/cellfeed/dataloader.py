"""A DataLoader set up for datasets that make their own minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from cellfeed.datapipe import plain
from cellfeed.dataset import ExperimentDataset
from cellfeed.errors import PlanError
from cellfeed.minibatch import Minibatch, PaddedMinibatch

_REFUSED = {
    "shuffle": "the dataset's shuffle=",
    "batch_size": "the dataset's batch_size=",
    "sampler": "the dataset's obs_query= or random_split()",
    "batch_sampler": "the dataset's batch_size= and shuffle=",
    "collate_fn": "the loop: minibatches arrive collated, as (X, obs)",
    "drop_last": "the dataset's drop_last=",
}


class ExperimentDataLoader(DataLoader[Minibatch | PaddedMinibatch]):
    """What :func:`experiment_dataloader` returns."""

    def __iter__(self) -> Iterator[Minibatch | PaddedMinibatch]:  # type: ignore[override]
        if self.num_workers > 0:  # each worker has a copy of the dataset, and none can turn to the next epoch
            self.dataset.begin_pass()  # type: ignore[attr-defined]
        return super().__iter__()


def experiment_dataloader(dataset: ExperimentDataset, num_workers: int = 0, **kwargs: Any) -> ExperimentDataLoader:
    """Make a :class:`torch.utils.data.DataLoader` for a dataset.

    With ``num_workers=0`` the dataset reads in threads of this process, which is the fast way: they
    share one open array and need no copies between processes.

    Parameters
    ----------
    dataset
        An :class:`ExperimentDataset` or :class:`ExperimentDataPipe`.
    num_workers
        Worker processes; each reads an equal part of the cells. They are spawned, never forked, unless you
        give another ``multiprocessing_context``.
    kwargs
        Further arguments of :class:`torch.utils.data.DataLoader`, but for those that the dataset decides.

    Returns
    -------
    A loader of ``(X, obs)``; ``len`` of it is the number of minibatches of this rank.

    Raises
    ------
    PlanError
        A ``ValueError``, for what the dataset decides: ``shuffle``, ``batch_size``, ``sampler``, ``batch_sampler``,
        ``collate_fn``, ``drop_last``.

    Examples
    --------
    >>> import cellfeed.demo
    >>> uri = cellfeed.demo.example_experiment()
    >>> dataset = cellfeed.ExperimentDataset(uri, batch_size=100)
    >>> sum(len(X) for X, obs in cellfeed.experiment_dataloader(dataset))
    700
    """
    if not isinstance(dataset, ExperimentDataset):
        raise PlanError(
            f"dataset is a {type(dataset).__name__}; experiment_dataloader takes an ExperimentDataset or an "
            f"ExperimentDataPipe"
        )
    for name, instead in _REFUSED.items():
        if name in kwargs:
            raise PlanError(f"experiment_dataloader does not take {name}={kwargs[name]!r}; use {instead}")
    if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0:
        raise PlanError(f"num_workers={num_workers!r} must be an integer of at least 0")
    if num_workers > 0:
        kwargs.setdefault("multiprocessing_context", "spawn")
    return ExperimentDataLoader(
        plain(dataset), batch_size=None, num_workers=num_workers, collate_fn=_as_it_is, **kwargs
    )


def _as_it_is(minibatch: Any) -> Any:
    return minibatch
