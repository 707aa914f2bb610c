"""Minibatches, as a dataset yields them, and operations on their tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch


class Minibatch(NamedTuple):
    """A minibatch of an :class:`~cellfeed.ExperimentDataset`.

    Attributes
    ----------
    X
        float32, shape (B, n_vars): dense, or ``torch.sparse_csr`` with int32 indices, canonical (each row's
        columns ascend, none twice).
    obs
        int64, shape (B, n_columns): one column per encoder, in order.

    Examples
    --------
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), obs_column_names=["phase"])
    >>> minibatch = next(iter(dataset))
    >>> X, obs = minibatch
    >>> minibatch.X is X, minibatch.obs.shape
    (True, torch.Size([128, 1]))
    """

    X: torch.Tensor
    obs: torch.Tensor

    def to(self, device: Any, *, non_blocking: bool | None = None) -> Minibatch:
        """Return the minibatch on a device.

        Parameters
        ----------
        device
            As for :meth:`torch.Tensor.to`.
        non_blocking
            As for :meth:`torch.Tensor.to`. ``None`` is ``True`` for a CUDA device, where it is safe and overlaps copies
            of pinned memory with computation, and ``False`` for others.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700())
        >>> next(iter(dataset)).to("cpu").X.device
        device(type='cpu')
        """
        return Minibatch(*moved(self, device, non_blocking))

    def as_dict(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name, for training loops that pass them as arguments: ``model(**minibatch)``."""
        return self._asdict()


class PaddedMinibatch(NamedTuple):
    """A minibatch under ``rank_remainder="pad"``: ``mask`` (bool, shape (B,)) is False for repeated cells.

    Examples
    --------
    >>> dataset = cellfeed.ExperimentDataset(
    ...     cellfeed.datasets.pbmc700(), rank_remainder="pad", rank=2, world_size=3, seed=0
    ... )
    >>> [(len(mask), int(mask.sum())) for X, obs, mask in dataset]  # ranks get 234 of 700 cells; 2 are repeated
    [(128, 128), (106, 104)]
    """

    X: torch.Tensor
    obs: torch.Tensor
    mask: torch.Tensor

    def to(self, device: Any, *, non_blocking: bool | None = None) -> PaddedMinibatch:
        """Return the minibatch on a device; see :meth:`Minibatch.to`."""
        return PaddedMinibatch(*moved(self, device, non_blocking))

    def as_dict(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name."""
        return self._asdict()


class OrderedMinibatch(NamedTuple):
    """The class of the minibatches of an :func:`~cellfeed.inference_dataloader`.

    Attributes
    ----------
    X
        As in :class:`Minibatch`.
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
        """Return the minibatch on a device; see :meth:`Minibatch.to`."""
        return OrderedMinibatch(*moved(self, device, non_blocking))

    def as_dict(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name."""
        return self._asdict()


class ExtendedMinibatch(NamedTuple):
    """A minibatch of a dataset with ``layers``, ``measurements``, ``obs_values``, ``measured`` or other content.

    Row ``i`` of each tensor belongs to the same cell. Take the content by its name: further fields may be added.

    Attributes
    ----------
    X, obs
        As in :class:`Minibatch`.
    layers
        Further layers by name: as X, but without ``transform``.
    obsm
        Embeddings by name: float32, shape (B, n_dims), dense. A cell that has no embedding has NaN.
    obs_values
        Numeric columns of obs: float32, shape (B, n_columns). A missing value is NaN.
    measurements
        X of further measurements by name, each with the genes of its measurement; without ``transform``.
    joinids
        int64, shape (B,): the ``soma_joinid`` of each row, with ``joinids=True`` and from an
        :func:`~cellfeed.inference_dataloader`.
    mask
        bool, shape (B,), under ``rank_remainder="pad"``: False for repeated cells.
    measured
        bool, shape (B, n_vars), with ``measured=``: whether the gene of a column of X was measured in the cell.

    Examples
    --------
    >>> uri = cellfeed.datasets.pbmc700()
    >>> dataset = cellfeed.ExperimentDataset(uri, obs_values=["n_genes", "percent_mito"], joinids=True, seed=0)
    >>> minibatch = next(iter(dataset))
    >>> minibatch.obs_values.shape, minibatch.joinids.shape
    (torch.Size([128, 2]), torch.Size([128]))
    >>> list(minibatch.as_dict())
    ['X', 'obs', 'obs_values', 'joinids']
    """

    X: torch.Tensor
    obs: torch.Tensor
    layers: dict[str, torch.Tensor]
    obsm: dict[str, torch.Tensor]
    obs_values: torch.Tensor | None
    measurements: dict[str, torch.Tensor]
    joinids: torch.Tensor | None
    mask: torch.Tensor | None
    measured: torch.Tensor | None = None

    def to(self, device: Any, *, non_blocking: bool | None = None) -> ExtendedMinibatch:
        """Return the minibatch on a device; see :meth:`Minibatch.to`."""
        return ExtendedMinibatch(*moved(self, device, non_blocking))

    def as_dict(self) -> dict[str, Any]:
        """Return the content by name, without what was not asked for; layers and so on are dicts in the dict."""
        return {name: part for name, part in self._asdict().items() if part is not None and not _is_empty(part)}


AnyMinibatch = Minibatch | PaddedMinibatch | ExtendedMinibatch
"""What a dataset yields."""


def _is_empty(part: Any) -> bool:
    return isinstance(part, dict) and not part


def mapped(part: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply a function to a tensor, or to those of a dict or of tokens; ``None`` stays ``None``."""
    if isinstance(part, dict):
        return {name: function(tensor) for name, tensor in part.items()}
    if isinstance(part, tuple):
        return type(part)(*map(function, part))
    return None if part is None else function(part)


def moved(parts: tuple[Any, ...], device: Any, non_blocking: bool | None) -> Iterator[Any]:
    """Yield the tensors, or dicts of them, on a device."""
    if non_blocking is None:  # as Lightning chooses it for minibatches without a method ``to``
        non_blocking = torch.device(device).type == "cuda"
    return (mapped(part, lambda tensor: tensor.to(device, non_blocking=non_blocking)) for part in parts)


def array_of(rows: Any) -> npt.NDArray[Any]:
    """Return rows as an array. Tensors may be on any device and have gradients; bfloat16 becomes float32."""
    if isinstance(rows, torch.Tensor):
        rows = rows.detach().cpu()
        rows = (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
    return np.asarray(rows)


def densified(X: torch.Tensor) -> torch.Tensor:
    """Return a CSR tensor as a dense tensor on the same device; return any other tensor unchanged.

    On a CPU this takes a third of the time of :meth:`torch.Tensor.to_dense`. It uses one thread: other threads may be
    reading the next minibatches.
    """
    if X.layout != torch.sparse_csr:
        return X
    is_known_to_numba = X.dtype not in (torch.float16, torch.bfloat16)
    if X.device.type != "cpu" or X.requires_grad or not is_known_to_numba:
        return X.to_dense()
    from cellfeed.rows.kernels import spread_csr

    values = X.values().numpy()
    out = np.empty(tuple(X.shape), values.dtype)
    spread_csr(X.crow_indices().numpy(), X.col_indices().numpy(), values, out)
    return torch.from_numpy(out)


def quiet_beta_warning() -> None:
    """Trigger and suppress PyTorch's once-per-process warnings: CSR tensors are in beta, and are not checked.

    The second warning is triggered only by a tensor that does not set ``check_invariants``. The tensor here is valid:
    users may have enabled the checks.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 1], [0], [1.0], size=(1, 1), device="cpu")
