"""Sums of rows in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray
from cellfeed.rows.cell_rows import ValueWidth


def sums_of_rows(
    addresses: IntArray, sizes: IntArray, dtype: np.dtype[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the sum, and the sum of squares, of each row: float64, shape (n_rows,) each.

    Sums of squares of uint8 and uint16 are modulo 2**32.

    Parameters
    ----------
    addresses, sizes
        int64, shape (n_rows,): address of each row's first value, and the number of its values.
    dtype
        Type of the values.
    """
    from cellfeed.rows import kernels

    sums, squares = np.empty(len(sizes)), np.empty(len(sizes))
    width = ValueWidth.of(dtype)
    if width < ValueWidth.WIDE:
        kernels.sum_counts(addresses, sizes, int(width), sums, squares)
    else:
        kernels.sum_values(addresses, sizes, np.empty(0, dtype), sums, squares)
    return sums, squares
