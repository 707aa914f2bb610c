"""Tensors for models of scvi-tools: the check that X holds counts, and the loader for inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from cellfeed.errors import SelectionError
from cellfeed.loader.inference import InferenceDataLoader
from cellfeed.rows.minibatch import densified

Tensors = dict[str, torch.Tensor]
"""Tensors of a minibatch by the names of scvi-tools."""


def check_counts(X: torch.Tensor, X_name: str) -> None:
    """Raise a SelectionError if X holds values that are not counts."""
    values = X.values() if X.layout == torch.sparse_csr else X
    odd = values[(values < 0) | (values != values.round())]
    if len(odd):
        raise SelectionError(
            f"X_name={X_name!r} holds values that are not counts, such as {odd[0]:.4g}; the models of scvi-tools "
            f"expect counts: give another layer, and no transform; or give counts=False if the likelihood of the model "
            f"fits such values"
        )


class InferenceTensors:
    """Dicts of tensors in the order of the joinids, from :meth:`SCVIDataModule.inference_dataloader`.

    Attributes
    ----------
    joinids
        One tensor per minibatch yielded so far, on the CPU: the ``soma_joinid`` of its rows. Under several ranks, pass
        it to :func:`cellfeed.gather_ordered` together with the results of the model.

    Examples
    --------
    >>> from cellfeed.scvi import SCVIDataModule
    >>> datamodule = SCVIDataModule(cellfeed.datasets.pbmc700(), batch_key=None, batch_size=4, seed=0)
    >>> loader = datamodule.inference_dataloader()
    >>> sorted(next(iter(loader)))
    ['X', 'batch', 'labels']
    >>> loader.joinids
    [tensor([0, 1, 2, 3])]
    """

    def __init__(self, loader: InferenceDataLoader, make_tensors: Callable[[Any], Tensors]) -> None:
        self._loader = loader
        self._make_tensors = make_tensors
        self.joinids: list[torch.Tensor] = []

    def __iter__(self) -> Iterator[Tensors]:
        self.joinids = []
        minibatches: Iterator[Any] = iter(self._loader)
        for minibatch in minibatches:
            self.joinids.append(minibatch.joinids.cpu())
            yield self._make_tensors(minibatch._replace(X=densified(minibatch.X)))
            del minibatch  # a reference would keep its memory from reuse

    def __len__(self) -> int:
        """Return the number of minibatches."""
        return len(self._loader)
