"""Inference: every cell once, in ascending order of the joinids, and the results of all ranks in that order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.distributed

from cellfeed._joinids import IntArray, in_order
from cellfeed.errors import PlanError
from cellfeed.loader.dataloader import ExperimentDataLoader, make_dataloader
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.loader.world import find_ranks
from cellfeed.plan.settings import IN_ORDER
from cellfeed.rows.minibatch import ExtendedMinibatch, OrderedMinibatch, array_of


class InferenceDataLoader(ExperimentDataLoader):
    """The class of the loaders that :func:`inference_dataloader` makes."""

    made_by = "inference_dataloader"
    takes = ExperimentDataset

    def __iter__(self) -> Iterator[OrderedMinibatch | ExtendedMinibatch]:  # type: ignore[override]
        return super().__iter__()  # type: ignore[return-value] # the engine of the dataset adds joinids


def inference_dataloader(
    dataset: ExperimentDataset, batch_size: int | None = None, **kwargs: Any
) -> InferenceDataLoader:
    """Make a loader of all cells of a dataset, or of a split, in ascending order of their joinids.

    Every cell is yielded, regardless of ``drop_last`` and ``rank_remainder`` of the dataset, together with its
    joinid: row ``i`` of the concatenated results of a model belongs to row ``i`` of ``dataset.obs_joinids``.

    Under several ranks each rank gets a contiguous shard of the cells, and all ranks yield equally many minibatches;
    :func:`gather_ordered` combines their results.

    Parameters
    ----------
    dataset
        The dataset whose cells, genes, columns of obs and type of X are used. Its own epochs are not affected.
    batch_size
        Cells per minibatch, by default the ``batch_size`` of the dataset. Under several ranks it may be reduced, so
        that all ranks yield equally many minibatches.
    kwargs
        Further arguments of :func:`experiment_dataloader`, such as ``device``, except ``num_workers``: minibatches of
        several processes alternate and would be out of order. The dataset reads in threads.

    Returns
    -------
    A loader of ``(X, obs, joinids)``, :class:`OrderedMinibatch`; of a dataset with further content, of
    :class:`ExtendedMinibatch`.

    Raises
    ------
    PlanError
        If an argument is invalid.

    Examples
    --------
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), batch_size=64, seed=0)
    >>> train, test = dataset.random_split([0.8, 0.2], seed=1)
    >>> rows = [X.sum(dim=1) for X, obs, joinids in cellfeed.inference_dataloader(test)]
    >>> sum(map(len, rows)) == len(test.obs_joinids)
    True
    """
    if kwargs.get("num_workers", 0) != 0:
        raise PlanError(
            f"num_workers={kwargs['num_workers']!r} would bring cells out of order; inference_dataloader takes 0: the "
            f"dataset reads in threads of this process"
        )
    kwargs.pop("num_workers", None)
    return make_dataloader(InferenceDataLoader, dataset, 0, kwargs, prepare=lambda it: _in_order(it, batch_size))


def _in_order(dataset: ExperimentDataset, batch_size: int | None) -> ExperimentDataset:
    """Make a dataset of the same cells in ascending order of their joinids, which minibatches include."""
    ordered = dataset._engine.derive(
        with_joinids=True,
        **IN_ORDER,
        rank_remainder="uneven",
        batch_size=dataset._engine.settings.batch_size if batch_size is None else batch_size,
    )
    settings = ordered.settings
    _, world_size = find_ranks(settings.rank, settings.world_size)
    even = even_batch_size(ordered.selection.n_obs, world_size, settings.batch_size)
    return ExperimentDataset._of(ordered.derive(batch_size=even))


def with_joinids(dataset: ExperimentDataset) -> ExperimentDataset:
    """Make a dataset of the same cells that yields :class:`OrderedMinibatch`."""
    return ExperimentDataset._of(dataset._engine.derive(with_joinids=True))


def even_batch_size(n_obs: int, world_size: int, batch_size: int) -> int:
    """Return the largest batch size up to ``batch_size`` with which all ranks yield equally many minibatches.

    Ranks differ by one cell. A model that synchronises its buffers hangs if one rank makes one step more.

    Examples
    --------
    >>> even_batch_size(101, 2, 10)  # 50 and 51 cells
    9
    """
    n_cells, n_larger = divmod(n_obs, world_size)  # n_larger ranks have n_cells + 1 cells
    while n_larger and n_cells and batch_size > 1 and n_cells % batch_size == 0:
        batch_size -= 1
    return batch_size


def gather_ordered(joinids: Any, values: Any) -> tuple[IntArray, npt.NDArray[Any]]:
    """Gather the results of all ranks, in ascending order of the joinids.

    Every rank must call this function, and every rank gets all results. If ``torch.distributed`` is not initialised,
    the arguments are all results.

    Parameters
    ----------
    joinids
        Integers, shape (n,): the cells of this rank; a tensor, an array, or a list of these, one per minibatch.
    values
        Shape (n, ...): the result for each cell, in the same form.

    Returns
    -------
    The joinids of all ranks, int64, ascending; and the values in that order, as a NumPy array.

    Raises
    ------
    PlanError
        If the numbers of rows and joinids differ, or a cell occurs twice.

    Examples
    --------
    >>> cellfeed.gather_ordered([3, 1], [[0.3], [0.1]])[1].tolist()
    [[0.1], [0.3]]
    """
    own = _whole(joinids).astype(np.int64, copy=False), _whole(values)
    if own[0].ndim != 1 or len(own[0]) != len(own[1]):
        raise PlanError(
            f"joinids of shape {own[0].shape} and values of shape {own[1].shape} must have equally many rows"
        )
    parts: list[Any] = [own]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, own)
    parts = [part for part in parts if len(part[0])] or parts[:1]  # without cells, the shape of values is unknown
    ids, rows = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order, repeated = in_order(ids)
    if len(repeated):
        raise PlanError(
            f"soma_joinid {repeated[0]} occurs more than once ({len(repeated)} repeated joinids); pass the cells of "
            f"one iteration over inference_dataloader per rank"
        )
    return ids[order], rows[order]


def _whole(rows: Any) -> npt.NDArray[Any]:
    """Return rows as one array; a list of tensors or arrays is concatenated."""
    if isinstance(rows, (list, tuple)) and len(rows) and hasattr(rows[0], "shape") and rows[0].ndim:
        return np.concatenate([_whole(part) for part in rows])
    return array_of(rows)
