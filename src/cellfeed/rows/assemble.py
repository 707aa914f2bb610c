"""Assembly of minibatches: rows are copied to tensors by several threads."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cellfeed._joinids import IntArray
from cellfeed.rows.cell_rows import CellRows
from cellfeed.rows.half_precision import representation

MAX_THREADS = 8
"""Most threads that share one minibatch: waking more takes longer than the work that they save."""


class DenseBuffers:
    """Reusable memory for dense minibatches.

    A new minibatch of 1,024 x 60,000 genes causes page faults for 240 MB. Each call of :meth:`borrow` returns a new
    array over reusable memory. The array lives as long as any tensor, view or NumPy array that shares its memory; when
    it is garbage-collected, the memory can be borrowed again. A tensor that is still referenced is never overwritten.

    Parameters
    ----------
    keep
        Number of unused buffers to keep.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._free: list[npt.NDArray[Any]] = []
        self._lock = threading.RLock()  # a thread that borrows may collect garbage, which gives memory back

    def borrow(self, shape: tuple[int, int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array of ``shape`` with undefined values; give the array, not a view of it, to PyTorch."""
        with self._lock:
            memory = self._free.pop() if self._free else None
        n_bytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
        if memory is None or memory.nbytes < n_bytes:
            memory = np.empty(n_bytes, np.uint8)
        loan = memory[:n_bytes].view(dtype).reshape(shape)
        # The finalizer is attached to this object: NumPy drops the arrays between a view and the owner of its memory.
        weakref.finalize(loan, self._give_back, memory).atexit = False
        return loan

    def _give_back(self, memory: npt.NDArray[Any]) -> None:
        with self._lock:
            if len(self._free) < self._keep:
                self._free.append(memory)


class Scaling(NamedTuple):
    """Steps that kernels apply to values while they copy them to a minibatch."""

    target: float
    """Total of each row after :class:`~cellfeed.transforms.NormalizeTotal`; 0 leaves totals unchanged."""
    log: bool
    """Whether :class:`~cellfeed.transforms.Log1p` follows."""


class CsrArrays(NamedTuple):
    """A CSR matrix as an argument of kernels.

    Attributes
    ----------
    indptr
        int64, shape (n_rows,) or longer: start of each row.
    genes, values
        shape (nnz,), filled.
    """

    indptr: IntArray
    genes: IntArray
    values: npt.NDArray[Any]


class Assembler:
    """Copies rows to tensors, in parallel, because the training loop may be waiting for the minibatch.

    Parameters
    ----------
    n_vars
        Number of columns of X.
    dtype
        Name of the type of X.
    n_threads
        Number of threads that share a minibatch, including the calling thread.
    buffers
        Memory for dense minibatches.
    scaling
        Steps applied to values; X is then float32.
    """

    def __init__(
        self, n_vars: int, dtype: str, *, n_threads: int, buffers: DenseBuffers, scaling: Scaling | None = None
    ) -> None:
        self._n_vars = n_vars
        self._scaling = scaling
        self._array_dtype, self._tensor_dtype = representation(dtype)
        self._buffers = buffers
        self._n_threads = min(n_threads, MAX_THREADS)
        self._pool = ThreadPoolExecutor(self._n_threads, thread_name_prefix="cellfeed-assemble")

    def dense_X(self, rows: CellRows) -> torch.Tensor:
        """Return X as a dense tensor, shape (B, n_vars)."""
        from cellfeed.rows import kernels, scaling_kernels

        out = self._buffers.borrow((len(rows), self._n_vars), self._array_dtype)

        def gather(part: CellRows, low: int, high: int) -> None:
            if self._scaling is None:
                kernels.gather_dense(part.arrays, part.widths, out[low:high])
            else:
                scaling_kernels.gather_dense_scaled(part.arrays, part.widths, self._scaling, out[low:high])

        self._run(rows, gather)
        return torch.from_numpy(out).view(self._tensor_dtype)

    def sparse_X(self, rows: CellRows) -> torch.Tensor:
        """Return X as a CSR tensor, shape (B, n_vars), with int32 indices."""
        from cellfeed.rows import kernels, scaling_kernels

        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(rows.sizes, out=indptr[1:])
        index_dtype = np.int32 if indptr[-1] < 2**31 else np.int64
        genes = np.empty(indptr[-1], index_dtype)
        values = np.empty(indptr[-1], self._array_dtype)

        def gather(part: CellRows, low: int, high: int) -> None:
            csr = CsrArrays(indptr[low:high], genes, values)
            if self._scaling is None:
                kernels.gather_csr(part.arrays, part.widths, csr)
            else:
                scaling_kernels.gather_csr_scaled(part.arrays, part.widths, self._scaling, csr)

        self._run(rows, gather)
        return torch.sparse_csr_tensor(
            torch.from_numpy(indptr.astype(index_dtype)),
            torch.from_numpy(genes),
            torch.from_numpy(values).view(self._tensor_dtype),
            size=(len(rows), self._n_vars),
            device="cpu",
            check_invariants=False,  # canonical by construction, and tested
        )

    def _run(self, rows: CellRows, gather: Callable[[CellRows, int, int], None]) -> None:
        """Call ``gather`` for equal parts of the rows, on all threads."""
        bounds = [len(rows) * k // self._n_threads for k in range(self._n_threads + 1)]
        parts = [(rows.slice(low, high), low, high) for low, high in itertools.pairwise(bounds) if low < high]
        others = [self._pool.submit(gather, *part) for part in parts[1:]]
        try:
            for part in parts[:1]:
                gather(*part)
        finally:
            wait(others)  # no thread may write after an error has freed the memory
        for other in others:
            other.result()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True)
