"""Minibatches as tensors: the edge to PyTorch."""

from __future__ import annotations

import threading
import warnings
import weakref
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cellfeed.block import Block, Reader
from cellfeed.feed import Draft
from cellfeed.joinids import IntArray


class Minibatch(NamedTuple):
    """What an :class:`~cellfeed.ExperimentDataset` yields.

    Attributes
    ----------
    X
        float32, shape (B, n_vars): dense, or ``torch.sparse_csr`` with int32 indices, canonical (each row's
        columns ascend, none twice). With ``batch_size=1`` dense X has shape (n_vars,).
    obs
        int64, shape (B, n_columns): one column per encoder, in order. With ``batch_size=1``: (n_columns,).
    """

    X: torch.Tensor
    obs: torch.Tensor


class PaddedMinibatch(NamedTuple):
    """A minibatch under ``remainder="pad"``: ``mask`` (bool, shape (B,)) is False for repeated cells."""

    X: torch.Tensor
    obs: torch.Tensor
    mask: torch.Tensor


class DenseBuffers:
    """Memory for dense minibatches, used again once nobody holds the tensor that was made of it.

    A fresh minibatch of 1,024 x 60,000 genes is 240 MB of page faults. Every loan is a new array over the
    memory. Handed to ``torch.from_numpy``, it lives for as long as any tensor, view or NumPy array shares the
    tensor's storage, and its end returns the memory: a tensor that is still held is never written to.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._free: list[npt.NDArray[Any]] = []
        self._lock = threading.Lock()

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


def dense_X(draft: Draft, n_vars: int, dtype: str, buffers: DenseBuffers) -> torch.Tensor:
    """Make the dense X of a minibatch: shape (B, n_vars)."""
    from cellfeed import kernels

    stored, as_torch = _representation(dtype)
    out = buffers.borrow((len(draft.positions), n_vars), stored)
    for pick in draft.picks:
        block = pick.block
        kernels.gather_dense(block.indptr, block.genes, block.values, pick.rows, pick.targets, out)
    return torch.from_numpy(out).view(as_torch)


def sparse_X(draft: Draft, n_vars: int, dtype: str) -> torch.Tensor:
    """Make the CSR X of a minibatch: int32 indices, shape (B, n_vars)."""
    from cellfeed import kernels

    stored, as_torch = _representation(dtype)
    n_rows = len(draft.positions)
    sizes = np.zeros(n_rows + 1, np.int64)
    for pick in draft.picks:
        kernels.gather_sizes(pick.block.indptr, pick.rows, pick.targets, sizes[1:])
    indptr = np.cumsum(sizes)
    index_dtype = np.int32 if indptr[-1] < 2**31 else np.int64
    genes = np.empty(indptr[-1], index_dtype)
    values = np.empty(indptr[-1], stored)
    for pick in draft.picks:
        block = pick.block
        kernels.gather_csr(block.indptr, block.genes, block.values, pick.rows, pick.targets, indptr, genes, values)
    return torch.sparse_csr_tensor(
        torch.from_numpy(indptr.astype(index_dtype)),
        torch.from_numpy(genes),
        torch.from_numpy(values).view(as_torch),
        size=(n_rows, n_vars),
        check_invariants=False,  # canonical by construction, and tested to be
    )


HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def _representation(dtype: str) -> tuple[npt.DTypeLike, torch.dtype]:
    """Return the type of the array that is filled and that of the tensor over it.

    NumPy has no bfloat16 and numba no float16: their bits travel as int16.
    """
    if dtype in HALVES:
        return np.int16, HALVES[dtype]
    return np.dtype(dtype), getattr(torch, dtype)


class HalvingReader:
    """A reader whose blocks hold the bits of 16-bit floats: each value is rounded once, not once a minibatch."""

    def __init__(self, reader: Reader, dtype: str) -> None:
        self._reader = reader
        self._half = HALVES[dtype]

    def read(self, joinids: IntArray) -> Block:
        """Return the rows of ascending ``joinids``, values rounded to nearest, half to even."""
        block = self._reader.read(joinids)
        wide = torch.from_numpy(block.values.astype(np.float32, copy=False))
        return Block(block.indptr, block.genes, wide.to(self._half).view(torch.int16).numpy())

    def close(self) -> None:
        """Close the reader within."""
        self._reader.close()


def quiet_beta_warning() -> None:
    """Have PyTorch say now, unheard, what it says once a process: that CSR tensors are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1))
