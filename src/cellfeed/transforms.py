"""What is done to X before a model sees it: in the loader's thread, or on a device after the transfer.

Each is a callable that takes ``X`` (shape (B, n_vars), dense or CSR, on any device) and returns another; those of your
own are any such callables. A loader applies the one that is given as its dataset's ``transform=``::

    transform = Compose(NormalizeTotal(1e4), Log1p())
    dataset = cellfeed.ExperimentDataset(uri, transform=transform)      # beside the training loop, or
    X = to_device(X, "cuda", transform)                                 # inside it

In a loader, where a transform begins with :class:`NormalizeTotal`, :class:`Log1p`, or both in this order, and X is
float32, they are done to the stored values while these are copied to the minibatch: no pass over X is made for them.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cellfeed._checks import check_transform, is_number, ordered
from cellfeed.errors import PlanError
from cellfeed.rows.assemble import Scaling
from cellfeed.rows.minibatch import densified
from cellfeed.select.gene_names import find_genes, gene_list

Transform = Callable[[torch.Tensor], torch.Tensor]


class OfValues(abc.ABC):
    """A transform that changes values where they lie; zeros stay zeros, so that CSR stays as sparse as it was."""

    @abc.abstractmethod
    def _change(self, values: torch.Tensor, X: torch.Tensor) -> None:
        """Change the values of X, which are floats, in place: all of a dense X, the stored ones of CSR."""

    def __call__(self, X: torch.Tensor) -> torch.Tensor:
        """Return a new tensor of float32, or of X's own type if that is a float."""
        return self.apply_(X.clone())

    def apply_(self, X: torch.Tensor) -> torch.Tensor:
        """Do it in X's own memory where that holds floats."""
        if not X.is_floating_point():
            X = X.to(torch.float32)
        self._change(X.values() if _is_csr(X) else X, X)
        return X


class NormalizeTotal(OfValues):
    """Scale each cell so that its values sum to ``target_sum``; a cell without values stays as it is.

    The sum is over the genes that X has at this point: normalise before :class:`SelectGenes`, or read all genes, for
    that of the whole library.

    Parameters
    ----------
    target_sum
        Above 0.

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
        values.mul_(_factors(X, self._target))

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
    """Keep named genes, in the order given.

    Where only some of a store's genes are wanted, :meth:`cellfeed.ExperimentDataset.select_genes` reads no others;
    this is for what must see them first, such as :class:`NormalizeTotal`.

    Parameters
    ----------
    genes
        The columns to come, by name, none twice.
    among
        The columns that X has: :meth:`cellfeed.ExperimentDataset.gene_names`.
    missing
        What to do about genes that are not among them: ``"error"``, or ``"zeros"``, which warns once.

    Raises
    ------
    SelectionError
        If genes are missing, or a name stands for several columns; the message names them.

    Examples
    --------
    >>> import torch
    >>> SelectGenes(["C", "A"], among=["A", "B", "C"])(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
    [[3.0, 1.0]]
    """

    def __init__(self, genes: Sequence[str], among: Sequence[str] | npt.NDArray[Any], missing: str = "error") -> None:
        self.genes = tuple(gene_list(genes))
        among = ordered("among", among)
        self.source = find_genes(self.genes, among, missing)
        self._n_before = len(among)
        self._is_identity = len(self.source) == len(among) and bool(np.all(self.source == np.arange(len(among))))
        self._has = self.source >= 0
        self._target = np.full(len(among), -1, np.int64)
        self._target[self.source[self._has]] = np.flatnonzero(self._has)

    @property
    def n_vars(self) -> int:
        """Columns of the result."""
        return len(self.genes)

    def __call__(self, X: torch.Tensor) -> torch.Tensor:
        """Return X with the genes as its columns; X itself if it has them already."""
        if X.shape[-1] != self._n_before:
            raise PlanError(f"X has {X.shape[-1]} columns where SelectGenes was told of {self._n_before} genes")
        if self._is_identity:
            return X
        return self._csr(X) if _is_csr(X) else self._dense(X)

    def _dense(self, X: torch.Tensor) -> torch.Tensor:
        if self._has.all():
            return X.index_select(1, torch.from_numpy(self.source).to(X.device))
        out = X.new_zeros(X.shape[0], self.n_vars)
        kept = X.index_select(1, torch.from_numpy(self.source[self._has]).to(X.device))
        return out.index_copy_(1, torch.from_numpy(np.flatnonzero(self._has)).to(X.device), kept)

    def _csr(self, X: torch.Tensor) -> torch.Tensor:
        rows = _rows_of(X)
        columns = torch.from_numpy(self._target).to(X.device)[X.col_indices().long()]
        kept = columns >= 0
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
    """Apply transforms one after another, in the memory of the first result where they can.

    Parameters
    ----------
    transforms
        Any callables that take X and return X.

    Examples
    --------
    >>> import torch
    >>> Compose(NormalizeTotal(2), Log1p(), torch.neg)(torch.tensor([[1.0, 1.0]]))
    tensor([[-0.6931, -0.6931]])
    """

    def __init__(self, *transforms: Transform) -> None:
        self.transforms = tuple(check_transform(transform) for transform in transforms)

    @property
    def n_vars(self) -> int | None:
        """Columns of the result; ``None`` if no step says how many."""
        told = [getattr(step, "n_vars", None) for step in self.transforms]
        return next((n for n in reversed(told) if n is not None), None)

    def __call__(self, X: torch.Tensor) -> torch.Tensor:
        """Return a new tensor; X is not changed."""
        return self.apply_(X.clone())

    def apply_(self, X: torch.Tensor) -> torch.Tensor:
        """Do it in X's own memory where a step can."""
        for transform in self.transforms:
            X = apply(transform, X)
        return X

    def __repr__(self) -> str:
        return f"Compose({', '.join(str(name_of(step)) for step in self.transforms)})"


def apply(transform: Transform, X: torch.Tensor) -> torch.Tensor:
    """Apply a transform to a tensor that nobody else holds: in its memory, if the transform can."""
    in_place: Transform = getattr(transform, "apply_", transform)
    return in_place(X)


def check_result(transform: Transform | None, X: Any, n_rows: int) -> None:
    """Refuse what a transform returned if it is nothing, or has not one row for each cell.

    Raises
    ------
    PlanError
        The message names the transform. Rows of ``obs`` would be those of other cells.
    """
    if X is None:
        raise PlanError(
            f"transform={name_of(transform)} returned None; it must return X, also if it changes X in place"
        )
    shape = getattr(X, "shape", None)
    if shape is not None and (len(shape) == 0 or shape[0] != n_rows):
        raise PlanError(
            f"transform={name_of(transform)} returned {tuple(shape)} for a minibatch of {n_rows} cells; it must return "
            f"one row per cell. Choose cells by obs_query= instead"
        )


def split_scaling(transform: Transform | None) -> tuple[Scaling | None, Transform | None]:
    """Return the library size and logarithm with which a transform begins, and the rest of it; None for none.

    Examples
    --------
    >>> split_scaling(Compose(NormalizeTotal(10), Log1p(), NormalizeTotal(1)))
    (Scaling(target=10.0, log=True), Compose(NormalizeTotal(1)))
    """
    steps = list(_steps(transform))
    target = steps.pop(0)._target if steps and type(steps[0]) is NormalizeTotal else 0.0
    log = bool(steps) and type(steps[0]) is Log1p
    rest = steps[log:]
    if not (target or log):
        return None, transform
    return Scaling(target, log), Compose(*rest) if rest else None


def _steps(transform: Any) -> Iterator[Any]:
    """Yield the transforms of which one is composed, in order."""
    if type(transform) is Compose:
        for step in transform.transforms:
            yield from _steps(step)
    elif transform is not None:
        yield transform


def columns_after(transform: Any, n_vars: int) -> int:
    """Return the columns that a transform leaves of ``n_vars``: as many, unless it says."""
    told = getattr(transform, "n_vars", None)
    return n_vars if told is None else int(told)


def name_of(transform: Any) -> str | None:
    """Return a name that is the same in another process."""
    if transform is None or type(transform).__module__ == __name__:
        return None if transform is None else repr(transform)
    named = transform if hasattr(transform, "__qualname__") else type(transform)
    return f"{named.__module__}.{named.__qualname__}"


def to_device(X: torch.Tensor, device: Any, transform: Transform | None = None, *, dense: bool = True) -> torch.Tensor:
    """Send X to a device and transform it there: CSR crosses in a tenth of the bytes, and becomes dense behind.

    Parameters
    ----------
    X
        Dense or CSR, from a loader; not changed.
    device
        As for :meth:`torch.Tensor.to`.
    transform
        Applied on the device, while X is still CSR if it was.
    dense
        Whether CSR becomes dense at the end.

    Returns
    -------
    X on the device, transformed.

    Examples
    --------
    >>> import torch
    >>> X = torch.tensor([[0.0, 1.0]]).to_sparse_csr()
    >>> to_device(X, "cpu", Compose(NormalizeTotal(1), Log1p()))
    tensor([[0.0000, 0.6931]])
    """
    X = X.to(device, non_blocking=True)
    if transform is not None:
        X = transform(X)
    return densified(X) if dense else X


def _is_csr(X: torch.Tensor) -> bool:
    return X.layout == torch.sparse_csr


def _rows_of(X: torch.Tensor) -> torch.Tensor:
    """Return the row of each value of a CSR tensor."""
    return torch.repeat_interleave(torch.arange(X.shape[0], device=X.device), X.crow_indices().long().diff())


def _factors(X: torch.Tensor, target: float) -> torch.Tensor:
    """Return what brings each row to a total: a column for dense X, one number per value for CSR.

    Totals are summed in float32: that of a library is more than a half can hold.
    """
    if not _is_csr(X):
        totals = X.sum(dim=1, keepdim=True, dtype=torch.promote_types(X.dtype, torch.float32))
        return torch.where(totals == 0, torch.ones_like(totals), target / totals)
    values, lengths = X.values(), X.crow_indices().long().diff()
    totals = torch.segment_reduce(values.to(torch.promote_types(X.dtype, torch.float32)), "sum", lengths=lengths)
    return torch.repeat_interleave(torch.where(totals == 0, torch.ones_like(totals), target / totals), lengths)
