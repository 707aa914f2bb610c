"""Values in half precision: rounded once when they are read, not once per minibatch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from cellfeed._joinids import IntArray
from cellfeed.errors import ReadError
from cellfeed.rows.row_allocator import RowPointers

HALF_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}

ROWS_PER_STEP = 128
"""Rows that are rounded together: their values fit in the cache."""


def representation(dtype: str) -> tuple[npt.DTypeLike, torch.dtype]:
    """Return the types of the array that kernels fill and of the tensor over it.

    NumPy has no bfloat16 and numba no float16: their bits are handled as int16.

    >>> representation("float16"), representation("int64")
    ((<class 'numpy.int16'>, torch.float16), (dtype('int64'), torch.int64))
    """
    if dtype in HALF_DTYPES:
        return np.int16, HALF_DTYPES[dtype]
    return np.dtype(dtype), getattr(torch, dtype)


def round_to_half(rows: RowPointers, joinids: IntArray, dtype: torch.dtype) -> RowPointers:
    """Replace values, in place, by the bits of 16-bit floats, rounded to nearest, ties to even.

    Parameters
    ----------
    rows
        Rows of X; each value has at least two bytes of memory.
    joinids
        int64, shape (n_rows,): names the cells in errors.
    dtype
        ``torch.float16`` or ``torch.bfloat16``.

    Raises
    ------
    ReadError
        If a finite value is too large for the type; infinite values of the layer are permitted.
    """
    from cellfeed.rows import kernels

    for low in range(0, len(rows.sizes), ROWS_PER_STEP):
        part = slice(low, low + ROWS_PER_STEP)
        indptr = np.append(0, np.cumsum(rows.sizes[part]))
        values = np.empty(indptr[-1], np.float32)
        kernels.collect_values(rows.values[part], indptr, rows.types[1], values)
        rounded = torch.from_numpy(values).to(dtype)
        if torch.isinf(rounded).any():
            _check_overflow(joinids[part], indptr, values, rounded)
        kernels.put_values(rows.values[part], indptr, rounded.view(torch.int16).numpy())
    return replace(rows, value_dtype=np.dtype(np.int16))


def _check_overflow(
    joinids: IntArray, indptr: IntArray, values: npt.NDArray[np.float32], rounded: torch.Tensor
) -> None:
    overflows = np.flatnonzero(rounded.isinf().numpy() & np.isfinite(values))
    if len(overflows):
        cell = joinids[np.searchsorted(indptr, overflows[0], side="right") - 1]
        name = str(rounded.dtype).removeprefix("torch.")
        raise ReadError(
            f"X holds {values[overflows[0]]:.12g} for soma_joinid {cell}, which X_dtype={name!r} cannot hold (at "
            f'most {torch.finfo(rounded.dtype).max:g}): give X_dtype="float32"'
        )
