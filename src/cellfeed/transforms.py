"""Transforms of X, applied in the loader's thread, or on a device after the transfer.

A transform is a callable that takes ``X`` (shape (B, n_vars), dense or CSR, on any device) and returns another tensor::

    transform = Compose([NormalizeTotal(1e4), Log1p()])
    dataset = cellfeed.ExperimentDataset(uri, transform=transform)      # in the loader, or
    X = to_device(X, "cuda", transform)                                 # in the training loop

If X is float32 and the transform of a loader begins with :class:`NormalizeTotal`, :class:`Log1p`, or both in this
order, then these are computed while values are copied to the minibatch, without another pass over X.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cellfeed._checks import check_transform, is_number, ordered
from cellfeed.errors import PlanError
from cellfeed.rows.assemble import Scaling
from cellfeed.rows.device_copies import DeviceCopies
from cellfeed.rows.minibatch import densified
from cellfeed.select.gene_names import find_genes, gene_list

Transform = Callable[[torch.Tensor], torch.Tensor]


class OfValues(abc.ABC):
    """A transform of single values that maps zero to zero, so that CSR keeps its sparsity."""

    @abc.abstractmethod
    def _change(self, values: torch.Tensor, X: torch.Tensor) -> None:
        """Change float values in place: all values of a dense X, the stored values of CSR."""

    def __call__(self, X: torch.Tensor) -> torch.Tensor:
        """Return a new tensor: float32, or the type of X if that is a float."""
        return self.apply_(X.clone())

    def apply_(self, X: torch.Tensor) -> torch.Tensor:
        """Transform X in place if it holds floats, else return a new tensor."""
        if not X.is_floating_point():
            X = X.to(torch.float32)
        self._change(X.values() if X.layout == torch.sparse_csr else X, X)
        return X


class NormalizeTotal(OfValues):
    """Scale each cell so that its values sum to ``target_sum``; a cell without values is unchanged.

    The sum covers the genes in X. For that of the whole library, read all genes, and :class:`SelectGenes` afterwards.

    Parameters
    ----------
    target_sum
        The sum of each cell, above 0.

    Examples
    --------
    >>> import torch
    >>> NormalizeTotal(10)(torch.tensor([[1.0, 3.0], [0.0, 0.0]])).tolist()
    [[2.5, 7.5], [0.0, 0.0]]
    """

    def __init__(self, target_sum: float = 1e4) -> None:
        if not is_number(target_sum) or not 0 < target_sum < float("inf"):
            raise PlanError(f"target_sum={target_sum!r} must be a number above 0, such as 1e4")
        self._target = float(target_sum)

    def _change(self, values: torch.Tensor, X: torch.Tensor) -> None:
        dtype = torch.promote_types(X.dtype, torch.float32)  # the total of a cell can exceed the range of float16
        lengths = X.crow_indices().long().diff() if X.layout == torch.sparse_csr else None  # nnz of each row
        if lengths is None:
            totals = X.sum(dim=1, keepdim=True, dtype=dtype)
        else:
            totals = torch.segment_reduce(values.to(dtype), "sum", lengths=lengths, unsafe=True)
        factors = torch.where(totals == 0, 1.0, self._target / totals)
        values.mul_(factors if lengths is None else factors.repeat_interleave(lengths, output_size=len(values)))

    def __repr__(self) -> str:
        return f"NormalizeTotal({self._target:g})"


class Log1p(OfValues):
    """Take the natural logarithm of 1 + x.

    Examples
    --------
    >>> import torch
    >>> Log1p()(torch.tensor([[0.0, 1.0]]))
    tensor([[0.0000, 0.6931]])
    """

    def _change(self, values: torch.Tensor, X: torch.Tensor) -> None:
        values.log1p_()

    def __repr__(self) -> str:
        return "Log1p()"


class SelectGenes:
    """Keep named genes, in the given order.

    Use it after a transform that needs all genes, such as :class:`NormalizeTotal`; otherwise
    :meth:`cellfeed.ExperimentDataset.select_genes`, which does not read the other genes, is faster.

    Parameters
    ----------
    genes
        The names of the columns of the result, without duplicates.
    var_names
        The names of the columns of X: :meth:`cellfeed.ExperimentDataset.gene_names`.
    missing
        If ``var_names`` lacks a gene, ``"error"`` raises an error, ``"zeros"`` warns and fills its column with zeros.

    Raises
    ------
    SelectionError
        If genes are missing, or if a name stands for several columns; the message lists them.

    Examples
    --------
    >>> import torch
    >>> SelectGenes(["C", "A"], var_names=["A", "B", "C"])(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
    [[3.0, 1.0]]
    """

    def __init__(
        self, genes: Sequence[str], var_names: Sequence[str] | npt.NDArray[Any], missing: str = "error"
    ) -> None:
        self.genes = tuple(gene_list(genes))
        var_names = ordered("var_names", var_names)
        self.source = find_genes(self.genes, var_names, missing)  # (n_vars,): columns of X, -1 for missing genes
        self._n_before = len(var_names)
        self._is_identity = np.array_equal(self.source, np.arange(self._n_before))
        self._has = self.source >= 0
        target = np.full(self._n_before, -1, np.int64)  # columns of the result, -1 for dropped genes
        target[self.source[self._has]] = np.flatnonzero(self._has)
        self._columns = DeviceCopies(np.maximum(self.source, 0), ~self._has, target)

    @property
    def n_vars(self) -> int:
        """Number of columns of the result."""
        return len(self.genes)

    def __call__(self, X: torch.Tensor) -> torch.Tensor:
        """Return X with the genes as its columns; X itself if these are its columns already."""
        if X.shape[-1] != self._n_before:
            raise PlanError(f"X has {X.shape[-1]} columns, but SelectGenes was made for {self._n_before} var_names")
        if self._is_identity:
            return X
        return self._csr(X) if X.layout == torch.sparse_csr else self._dense(X)

    def _dense(self, X: torch.Tensor) -> torch.Tensor:
        source, is_missing, _ = self._columns.on(X.device)
        out = X.index_select(1, source)
        return out if self._has.all() else out.masked_fill_(is_missing, 0)

    def _csr(self, X: torch.Tensor) -> torch.Tensor:
        rows = torch.repeat_interleave(X.crow_indices().long().diff(), output_size=len(X.values()))
        _, _, target = self._columns.on(X.device)
        columns = target[X.col_indices().long()]
        kept = columns >= 0  # (nnz,)
        rows, columns, values = rows[kept], columns[kept], X.values()[kept]
        order = torch.argsort(rows * self.n_vars + columns)
        counts = torch.bincount(rows, minlength=X.shape[0])
        indptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        dtype = X.col_indices().dtype
        return torch.sparse_csr_tensor(
            indptr.to(dtype), columns[order].to(dtype), values[order], size=(X.shape[0], self.n_vars),
            device=X.device, check_invariants=False,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"SelectGenes({self.n_vars} genes)"


class Compose:
    """Apply transforms in order, to a copy of X, in place if they can.

    Parameters
    ----------
    transforms
        Callables that take X and return X: a list of them, or one argument per transform.

    Examples
    --------
    >>> import torch
    >>> Compose([NormalizeTotal(2), Log1p(), torch.neg])(torch.tensor([[1.0, 1.0]]))
    tensor([[-0.6931, -0.6931]])
    """

    def __init__(self, *transforms: Transform | Sequence[Transform]) -> None:
        listed = len(transforms) == 1 and isinstance(transforms[0], (list, tuple))
        steps: Any = transforms[0] if listed else transforms
        self.transforms = tuple(step for transform in steps for step in steps_of(check_transform(transform)))

    @property
    def n_vars(self) -> int | None:
        """Number of columns of the result; ``None`` if no transform has an attribute ``n_vars``."""
        widths = [getattr(transform, "n_vars", None) for transform in self.transforms]
        return next((n_vars for n_vars in reversed(widths) if n_vars is not None), None)

    def __call__(self, X: torch.Tensor) -> torch.Tensor:
        """Return a new tensor; X is unchanged."""
        return self.apply_(X.clone())

    def apply_(self, X: torch.Tensor) -> torch.Tensor:
        """Apply each transform, in place if it can."""
        for transform in self.transforms:
            X = apply(transform, X)
        return X

    def __repr__(self) -> str:
        return f"Compose({', '.join(str(name_of(transform)) for transform in self.transforms)})"


def apply(transform: Transform, X: torch.Tensor) -> torch.Tensor:
    """Apply a transform, in place if it can: the caller must own X."""
    return getattr(transform, "apply_", transform)(X)


def check_result(transform: Transform | None, X: Any, n_rows: int) -> None:
    """Raise a PlanError if a transform returned ``None`` or another number of rows: ``obs`` would not match them."""
    if X is None:
        raise PlanError(
            f"transform={name_of(transform)} returned None; it must return X, even if it changes X in place"
        )
    shape = getattr(X, "shape", None)
    if shape is not None and (len(shape) == 0 or shape[0] != n_rows):
        raise PlanError(
            f"transform={name_of(transform)} returned {tuple(shape)} for a minibatch of {n_rows} cells; it must return "
            f"one row per cell. Select cells by obs_query= instead"
        )


def split_scaling(transform: Transform | None) -> tuple[Scaling | None, Transform | None]:
    """Split a transform into the scaling with which it begins, and the rest; either may be ``None``.

    Examples
    --------
    >>> split_scaling(Compose([NormalizeTotal(10), Log1p(), NormalizeTotal(1)]))
    (Scaling(target=10.0, log=True), Compose(NormalizeTotal(1)))
    """
    steps = steps_of(transform)
    target = steps.pop(0)._target if steps and type(steps[0]) is NormalizeTotal else 0.0
    log = bool(steps) and type(steps[0]) is Log1p
    if not (target or log):
        return None, transform
    return Scaling(target, log), Compose(steps[log:]) if steps[log:] else None


def steps_of(transform: Any) -> list[Any]:
    """Return the transforms of a :class:`Compose`, or the transform itself in a list."""
    return list(transform.transforms) if type(transform) is Compose else [transform]


def columns_after(transform: Any, n_vars: int) -> int:
    """Return the number of columns after a transform: its ``n_vars``, or the number before it."""
    n_after = getattr(transform, "n_vars", None)
    return n_vars if n_after is None else int(n_after)


def name_of(transform: Any) -> str | None:
    """Return a name that is the same in every process."""
    if transform is None or type(transform).__module__.startswith("cellfeed."):
        return None if transform is None else repr(transform)
    named = transform if hasattr(transform, "__qualname__") else type(transform)
    return f"{named.__module__}.{named.__qualname__}"


def to_device(X: torch.Tensor, device: Any, transform: Transform | None = None, *, dense: bool = True) -> torch.Tensor:
    """Return X on a device, transformed there; CSR, a tenth of the bytes of dense X, becomes dense on the device.

    Parameters
    ----------
    X
        Dense or CSR, from a loader; it is not changed.
    device
        As for :meth:`torch.Tensor.to`.
    transform
        Applied on the device, before CSR becomes dense.
    dense
        Whether CSR becomes dense at the end.

    Examples
    --------
    >>> import torch
    >>> X = torch.tensor([[0.0, 1.0]]).to_sparse_csr()
    >>> to_device(X, "cpu", Compose([NormalizeTotal(1), Log1p()]))
    tensor([[0.0000, 0.6931]])
    """
    X = X.to(device, non_blocking=True)
    if transform is not None:
        X = transform(X)
    return densified(X) if dense else X
