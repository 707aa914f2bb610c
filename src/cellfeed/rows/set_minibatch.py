"""Minibatches of sets of cells and their controls."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from cellfeed.rows.minibatch import moved


class SetMinibatch(NamedTuple):
    """A minibatch of :meth:`ExperimentDataset.group_batches`: sets of cells, and a control beside each cell.

    Attributes
    ----------
    X
        Shape (n_sets, set_size, n_vars), dense: cells of one group per set.
    control_X
        The same shape: the control of each cell, which has its labels in the columns ``match``.
    groups
        int64, shape (n_sets, n_columns): the codes of each set in the columns ``by``, in their order.
    mask
        bool, shape (n_sets, set_size): False where a cell and its control are repeated to fill a set.
    joinids, control_joinids
        int64, shape (n_sets, set_size): the ``soma_joinid`` of the cells and controls, of a dataset with
        ``joinids=True``; otherwise ``None``.

    Examples
    --------
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=0)
    >>> sets = dataset.group_batches(by=["phase"], set_size=16, control="G1")
    >>> minibatch = next(iter(sets))
    >>> minibatch.X.shape, minibatch.groups.shape, list(minibatch.as_dict())
    (torch.Size([8, 16, 765]), torch.Size([8, 1]), ['X', 'control_X', 'groups', 'mask'])
    """

    X: torch.Tensor
    control_X: torch.Tensor
    groups: torch.Tensor
    mask: torch.Tensor
    joinids: torch.Tensor | None = None
    control_joinids: torch.Tensor | None = None

    def to(self, device: Any, *, non_blocking: bool | None = None) -> SetMinibatch:
        """Return the minibatch on a device; see :meth:`Minibatch.to`."""
        return SetMinibatch(*moved(self, device, non_blocking))

    def as_dict(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name, without joinids if the dataset has none."""
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}
