"""Minibatches as tensors: the edge to PyTorch."""

from __future__ import annotations

import itertools
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cellfeed._joinids import IntArray
from cellfeed.errors import ReadError
from cellfeed.rows.cell_rows import CellRows
from cellfeed.rows.row_allocator import RowPointers


class Minibatch(NamedTuple):
    """What an :class:`~cellfeed.ExperimentDataset` yields.

    Attributes
    ----------
    X
        float32, shape (B, n_vars): dense, or ``torch.sparse_csr`` with int32 indices, canonical (each row's
        columns ascend, none twice). With ``batch_size=1`` dense X has shape (n_vars,).
    obs
        int64, shape (B, n_columns): one column per encoder, in order. With ``batch_size=1``: (n_columns,).

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
            Likewise; ``None`` is ``True`` for a CUDA device, where it is safe and lets copies of pinned memory overlap.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700())
        >>> next(iter(dataset)).to("cpu").X.device
        device(type='cpu')
        """
        return Minibatch(*moved(self, device, non_blocking))


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


def moved(tensors: tuple[torch.Tensor, ...], device: Any, non_blocking: bool | None) -> Iterator[torch.Tensor]:
    """Yield tensors on a device."""
    if non_blocking is None:  # as Lightning does, which leaves it to a minibatch that has a method of its own
        non_blocking = torch.device(device).type == "cuda"
    return (tensor.to(device, non_blocking=non_blocking) for tensor in tensors)


def array_of(rows: Any) -> npt.NDArray[Any]:
    """Return rows as an array: a tensor on any device, with a gradient, or of bfloat16, which NumPy lacks, too."""
    if isinstance(rows, torch.Tensor):
        rows = rows.detach().cpu()
        rows = (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
    return np.asarray(rows)


class DenseBuffers:
    """Memory for dense minibatches, used again once nobody holds the tensor that was made of it.

    A fresh minibatch of 1,024 x 60,000 genes is 240 MB of page faults. Every loan is a new array over the
    memory. Handed to ``torch.from_numpy``, it lives for as long as any tensor, view or NumPy array shares the
    tensor's storage, and its end returns the memory: a tensor that is still held is never written to.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._free: list[npt.NDArray[Any]] = []
        self._lock = threading.RLock()  # memory may be given back while this very thread takes some

    def borrow(self, shape: tuple[int, int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array of ``shape`` with unknown contents; hand itself, no view of it, to PyTorch."""
        with self._lock:
            memory = self._free.pop() if self._free else None
        n_bytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
        if memory is None or memory.nbytes < n_bytes:
            memory = np.empty(n_bytes, np.uint8)
        loan = memory[:n_bytes].view(dtype).reshape(shape)
        # On this very object: NumPy lets go of the arrays between a view and the memory's owner.
        weakref.finalize(loan, self._give_back, memory).atexit = False
        return loan

    def _give_back(self, memory: npt.NDArray[Any]) -> None:
        with self._lock:
            if len(self._free) < self._keep:
                self._free.append(memory)


class Scaling(NamedTuple):
    """What may be done to values while they are copied to a minibatch."""

    target: float
    """Of :class:`~cellfeed.transforms.NormalizeTotal`; 0 leaves totals as they are."""
    log: bool
    """Whether :class:`~cellfeed.transforms.Log1p` follows."""


MAX_GATHERERS = 8
"""Threads that share one minibatch at most: more of them take longer to wake than it takes to make."""


class Assembler:
    """Makes tensors of rows, on several cores: while the training loop waits, none is to be idle.

    Parameters
    ----------
    n_vars
        Columns of X.
    dtype
        Type of X, by its name.
    n_threads
        Threads that share a minibatch, the caller's among them.
    buffers
        Where dense minibatches are made.
    scaling
        What is done to values on the way; then X is float32.
    """

    def __init__(
        self, n_vars: int, dtype: str, *, n_threads: int, buffers: DenseBuffers, scaling: Scaling | None = None
    ) -> None:
        self._n_vars = n_vars
        self._scaling = scaling
        self._stored, self._as_torch = _representation(dtype)
        self._buffers = buffers
        self._n_threads = min(n_threads, MAX_GATHERERS)
        self._pool = ThreadPoolExecutor(self._n_threads, thread_name_prefix="cellfeed-assemble")

    def dense_X(self, rows: CellRows) -> torch.Tensor:
        """Make dense X: shape (B, n_vars)."""
        out = self._buffers.borrow((len(rows), self._n_vars), self._stored)
        gather = self._kernels().gather_dense
        how = self._scaling or ()
        self._share(rows, lambda part, low, high: gather(*_memory(part), *how, out[low:high]))
        return torch.from_numpy(out).view(self._as_torch)

    def sparse_X(self, rows: CellRows) -> torch.Tensor:
        """Make CSR X: int32 indices, shape (B, n_vars)."""
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(rows.sizes, out=indptr[1:])
        index_dtype = np.int32 if indptr[-1] < 2**31 else np.int64
        genes = np.empty(indptr[-1], index_dtype)
        values = np.empty(indptr[-1], self._stored)
        gather = self._kernels().gather_csr
        how = self._scaling or ()
        self._share(rows, lambda part, low, high: gather(*_memory(part), indptr[low:high], *how, genes, values))
        return torch.sparse_csr_tensor(
            torch.from_numpy(indptr.astype(index_dtype)),
            torch.from_numpy(genes),
            torch.from_numpy(values).view(self._as_torch),
            size=(len(rows), self._n_vars),
            device="cpu",
            check_invariants=False,  # canonical by construction, and tested to be
        )

    def _kernels(self) -> Any:
        """Return the module of the kernels that copy values as they are to come."""
        from cellfeed.rows import kernels, scaling_kernels

        return kernels if self._scaling is None else scaling_kernels

    def _share(self, rows: CellRows, gather: Callable[[CellRows, int, int], None]) -> None:
        edges = [len(rows) * k // self._n_threads for k in range(self._n_threads + 1)]
        parts = [(rows.cut(low, high), low, high) for low, high in itertools.pairwise(edges) if low < high]
        others = [self._pool.submit(gather, *part) for part in parts[1:]]
        try:
            for part in parts[:1]:
                gather(*part)
        finally:
            wait(others)  # none may still write when the memory goes
        for other in others:
            other.result()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True)


def _memory(rows: CellRows) -> tuple[Any, ...]:
    """Return what kernels need of rows."""
    types = np.empty(0, rows.gene_dtype), np.empty(0, rows.value_dtype)
    return rows.genes, rows.values, rows.sizes, rows.widths, *types


ROWS_PER_STEP = 128
"""Rows whose values are rounded at once: theirs stay in the cache."""

HALF_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def _representation(dtype: str) -> tuple[npt.DTypeLike, torch.dtype]:
    """Return the type of the array that is filled and that of the tensor over it.

    NumPy has no bfloat16 and numba no float16: their bits travel as int16.
    """
    if dtype in HALF_DTYPES:
        return np.int16, HALF_DTYPES[dtype]
    return np.dtype(dtype), getattr(torch, dtype)


def round_to_half(rows: RowPointers, joinids: IntArray, dtype: torch.dtype) -> RowPointers:
    """Replace values, in place, by the bits of 16-bit floats, rounded to nearest, half to even.

    The values need a place of at least two bytes each. They are rounded once, and not in each minibatch.

    Parameters
    ----------
    rows
        Rows of X.
    joinids
        int64, shape (n_rows,): names the cells in errors.
    dtype
        ``torch.float16`` or ``torch.bfloat16``.
    """
    from cellfeed.rows import kernels

    for low in range(0, len(rows.sizes), ROWS_PER_STEP):
        part = slice(low, low + ROWS_PER_STEP)
        indptr = np.append(0, np.cumsum(rows.sizes[part]))
        wide = np.empty(indptr[-1], np.float32)
        kernels.collect_values(rows.values[part], indptr, rows.types[1], wide)
        rounded = torch.from_numpy(wide).to(dtype)
        if torch.isinf(rounded).any():
            _refuse_overflow(joinids[part], indptr, wide, rounded)
        kernels.put_values(rows.values[part], indptr, rounded.view(torch.int16).numpy())
    return replace(rows, value_dtype=np.dtype(np.int16))


def _refuse_overflow(joinids: IntArray, indptr: IntArray, wide: Any, rounded: torch.Tensor) -> None:
    """Refuse finite values that are too large for the type; infinite values of the layer stay as they are."""
    overflows = np.flatnonzero(rounded.isinf().numpy() & np.isfinite(wide))
    if len(overflows):
        cell = joinids[np.searchsorted(indptr, overflows[0], side="right") - 1]
        name = str(rounded.dtype).removeprefix("torch.")
        raise ReadError(
            f"X holds {wide[overflows[0]]:.12g} for soma_joinid {cell}, which X_dtype={name!r} cannot hold (at "
            f'most {torch.finfo(rounded.dtype).max:g}): give X_dtype="float32"'
        )


def quiet_beta_warning() -> None:
    """Trigger and suppress what PyTorch warns of once per process: CSR tensors are in beta, and are not checked.

    Only a tensor that neither asks for checks nor declines them triggers the second warning. It is valid, as a user
    may have checks on.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 1], [0], [1.0], size=(1, 1), device="cpu")
