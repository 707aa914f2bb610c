"""Values in half precision: rounded once when they are read, not once per minibatch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cellfeed._joinids import IntArray
from cellfeed.errors import ReadError
from cellfeed.rows.row_allocator import Reader, RowAllocator, RowPointers

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


class HalfPrecisionReader:
    """A :class:`~cellfeed.rows.row_allocator.Reader` that rounds the values of another reader to 16-bit floats.

    Parameters
    ----------
    reader
        The reader of the rows.
    dtype
        A name in ``HALF_DTYPES``.
    """

    def __init__(self, reader: Reader, dtype: str) -> None:
        self._reader = reader
        self._half = HALF_DTYPES[dtype]

    def read(self, joinids: IntArray, allocator: RowAllocator) -> RowPointers:
        """Read rows, with values rounded to the nearest half-precision number, ties to even, as int16 bits."""
        from cellfeed.rows import kernels

        rows = self._reader.read(joinids, allocator.with_value_bytes(2))
        for low in range(0, len(rows.sizes), ROWS_PER_STEP):
            part = slice(low, low + ROWS_PER_STEP)
            indptr = np.append(0, np.cumsum(rows.sizes[part]))
            values = np.empty(indptr[-1], np.float32)
            kernels.collect_values(rows.values[part], indptr, rows.types[1], values)
            rounded = torch.from_numpy(values).to(self._half)
            if torch.isinf(rounded).any():
                self._check_overflow(joinids[part], indptr, values, rounded.isinf().numpy())
            kernels.put_values(rows.values[part], indptr, rounded.view(torch.int16).numpy())
        return replace(rows, value_dtype=np.dtype(np.int16))

    def _check_overflow(
        self, joinids: IntArray, indptr: IntArray, values: npt.NDArray[np.float32], is_infinite: npt.NDArray[Any]
    ) -> None:
        """Raise ReadError if a finite value is too large for the type; infinite values of the layer are permitted."""
        overflows = np.flatnonzero(is_infinite & np.isfinite(values))
        if len(overflows):
            cell = joinids[np.searchsorted(indptr, overflows[0], side="right") - 1]
            name = str(self._half).removeprefix("torch.")
            raise ReadError(
                f"X holds {values[overflows[0]]:.12g} for soma_joinid {cell}, which X_dtype={name!r} cannot hold (at "
                f'most {torch.finfo(self._half).max:g}): give X_dtype="float32"'
            )

    def close(self) -> None:
        """Close the reader of the rows."""
        self._reader.close()
