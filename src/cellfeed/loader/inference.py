"""Every cell once, in the order of the joinids, and what a model makes of them put together again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed

from cellfeed._joinids import IntArray, in_order
from cellfeed.errors import PlanError
from cellfeed.loader.dataloader import ExperimentDataLoader, make_dataloader
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.loader.world import find_ranks
from cellfeed.plan.settings import IN_ORDER, Settings
from cellfeed.rows.minibatch import Minibatch, PaddedMinibatch, array_of, moved


class OrderedMinibatch(NamedTuple):
    """What an :func:`inference_dataloader` yields.

    Attributes
    ----------
    X
        As in :class:`~cellfeed.Minibatch`, always with two dimensions.
    obs
        int64, shape (B, n_columns): the columns of the dataset.
    joinids
        int64, shape (B,): the ``soma_joinid`` of each row.

    Examples
    --------
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), batch_size=4, seed=0)
    >>> next(iter(cellfeed.inference_dataloader(dataset))).joinids
    tensor([0, 1, 2, 3])
    """

    X: torch.Tensor
    obs: torch.Tensor
    joinids: torch.Tensor

    def to(self, device: Any, *, non_blocking: bool | None = None) -> OrderedMinibatch:
        """Return the minibatch on a device; see :meth:`cellfeed.Minibatch.to`."""
        return OrderedMinibatch(*moved(self, device, non_blocking))


class InferenceDataLoader(ExperimentDataLoader):
    """What :func:`inference_dataloader` returns."""

    made_by = "inference_dataloader"

    def __iter__(self) -> Iterator[OrderedMinibatch]:  # type: ignore[override]
        for minibatch in super().__iter__():
            yield _with_joinids(minibatch)
            del minibatch  # held here, its memory could not be used again


def _with_joinids(minibatch: Minibatch | PaddedMinibatch) -> OrderedMinibatch:
    """Take the last column of obs, the joinids, apart from the others."""
    X, obs = minibatch[0], minibatch[1]
    if obs.ndim == 1:  # batch_size=1
        X, obs = X if X.layout == torch.sparse_csr else X[None], obs[None]
    return OrderedMinibatch(X, obs[:, :-1], obs[:, -1])


def inference_dataloader(
    dataset: ExperimentDataset, batch_size: int | None = None, **kwargs: Any
) -> InferenceDataLoader:
    """Make a loader of all cells of a dataset, or of a split, in ascending order of their joinids.

    None is left out, whatever ``drop_last`` and ``rank_remainder`` of the dataset say, and the joinids come along: row
    ``i`` of what a model makes of them belongs to row ``i`` of ``dataset.obs_joinids``.

    Under several ranks each gets a stretch of the joinids, and all the same number of minibatches;
    :func:`gather_ordered` puts the results together.

    Parameters
    ----------
    dataset
        Whose cells, genes, columns of obs and type of X are served. Its own epochs are not touched.
    batch_size
        Cells in a minibatch, that of the dataset by default. Under several ranks it may be one less, so that all make
        as many steps.
    kwargs
        Further arguments of :class:`torch.utils.data.DataLoader`. ``num_workers`` is not among them: minibatches of
        several processes take turns and would be out of order; the dataset reads in threads.

    Returns
    -------
    A loader of ``(X, obs, joinids)``, :class:`OrderedMinibatch`.

    Raises
    ------
    PlanError
        If an argument is not possible.

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
    """Make a dataset of the same cells in their order, with their joinids as a last column of obs."""
    settings, selection = dataset._settings, dataset._selection
    size = settings.batch_size if batch_size is None else batch_size
    ordered = settings.replace(**IN_ORDER, rank_remainder="uneven", batch_size=size)
    _, world_size = find_ranks(settings.rank, settings.world_size)
    ordered = ordered.replace(batch_size=even_batch_size(selection.n_obs, world_size, size))
    return with_joinids(dataset, ordered)


def with_joinids(dataset: ExperimentDataset, settings: Settings | None = None) -> ExperimentDataset:
    """Make a dataset of the same cells that has their joinids as a last column of obs, and may have other settings."""
    selection = replace(dataset._selection, codes=(*dataset._selection.codes, None))
    return ExperimentDataset._from_parts(selection, settings or dataset._settings)


def even_batch_size(n_obs: int, world_size: int, batch_size: int) -> int:
    """Return a batch size, at most that given, with which all ranks make as many minibatches.

    Ranks have a cell more or less than others; a model that synchronises its buffers hangs if one makes a step more.

    Examples
    --------
    >>> even_batch_size(101, 2, 10)  # 50 and 51 cells
    9
    """
    share, over = divmod(n_obs, world_size)
    while over and share and batch_size > 1 and share % batch_size == 0:
        batch_size -= 1
    return batch_size


def gather_ordered(joinids: Any, values: Any) -> tuple[IntArray, npt.NDArray[Any]]:
    """Put together what ranks have made of their cells, in ascending order of the joinids.

    Where ``torch.distributed`` is not initialised, the rows given are all there are. Every rank must call it, and
    every rank gets the whole.

    Parameters
    ----------
    joinids
        Integers, shape (n,): this rank's cells; a tensor, an array, or a list of them in pieces.
    values
        Shape (n, ...): a row for each, likewise.

    Returns
    -------
    The joinids of all ranks, int64, ascending; and the values in that order, as a NumPy array.

    Raises
    ------
    PlanError
        If there are not as many rows as joinids, or a cell came twice.

    Examples
    --------
    >>> cellfeed.gather_ordered([3, 1], [[0.3], [0.1]])[1].tolist()
    [[0.1], [0.3]]
    """
    own = _whole(joinids).astype(np.int64, copy=False), _whole(values)
    if own[0].ndim != 1 or len(own[0]) != len(own[1]):
        raise PlanError(f"joinids of shape {own[0].shape} and values of shape {own[1].shape} are not row for row")
    parts: list[Any] = [own]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, own)
    parts = [part for part in parts if len(part[0])] or parts[:1]  # a rank without cells does not know their width
    ids, rows = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
    order, twice = in_order(ids)
    if len(twice):
        raise PlanError(
            f"soma_joinid {twice[0]} came more than once ({len(twice)} such); take the cells of each rank from "
            f"inference_dataloader, once"
        )
    return ids[order], rows[order]


def _whole(rows: Any) -> npt.NDArray[Any]:
    """Return rows as one array, out of pieces if they are in a list of tensors or arrays."""
    if isinstance(rows, (list, tuple)) and len(rows) and hasattr(rows[0], "shape") and rows[0].ndim:
        return np.concatenate([_whole(piece) for piece in rows])
    return array_of(rows)
