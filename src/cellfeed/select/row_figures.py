"""Figures of each row of X in obs: the number of its values, their sum, and the sum of their squares.

A Census has these figures in ``nnz``, ``raw_sum`` and ``raw_variance_nnz``, the variance of the stored values with
``ddof=1``. The sum of squares follows from them::

    squares = raw_variance_nnz * (nnz - 1) + raw_sum**2 / nnz

For counts it is an integer. This distinguishes the variance from another column of the same name.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

NNZ = "nnz"
"""The column of obs with the number of stored values of each cell."""

RAW_SUM, RAW_VARIANCE, RAW = "raw_sum", "raw_variance_nnz", "raw"
"""Columns of obs with the sum and the variance of the stored values of each cell, and the layer of these values."""

INTEGER_TOLERANCE = 0.01
"""Maximum distance of a sum of squares from an integer: it is computed in float64."""

MIN_INTEGERS = 0.9
"""Minimum fraction of cells with an integer sum of squares if a column is the variance; other columns have few."""

EXACT_BELOW = 1e8
"""Above this number, float64 is not exact enough to decide whether a sum of squares is an integer."""


def columns_of(X_name: str, known: Collection[str], *, is_remote: bool) -> list[str]:
    """Return the known columns of obs that have figures of a layer.

    The variance is not read from an object store: it takes 8 bytes per cell and compresses badly.
    """
    wanted = [NNZ] if X_name != RAW else [NNZ, RAW_SUM] if is_remote else [NNZ, RAW_SUM, RAW_VARIANCE]
    return [column for column in wanted if column in known]


def figures_of(
    frame: pd.DataFrame,
) -> tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None, npt.NDArray[Any] | None]:
    """Return the numbers of values, their sums, and the sums of their squares; ``None`` for a figure that obs lacks."""
    nnz = _counts(frame[NNZ]) if NNZ in frame else None
    raw_sum = _sums(frame[RAW_SUM].to_numpy()) if RAW_SUM in frame else None
    if nnz is None or raw_sum is None or RAW_VARIANCE not in frame:
        return nnz, raw_sum, None
    return nnz, raw_sum, _squares(nnz, raw_sum, frame[RAW_VARIANCE].to_numpy())


def _counts(column: pd.Series[Any]) -> npt.NDArray[Any] | None:
    """Return a column of counts in the smallest type that can hold them; ``None`` if it is not a column of counts."""
    values = column.to_numpy()
    if values.dtype.kind not in "iu" or (len(values) and values.min() < 0):
        return None
    largest = int(values.max()) if len(values) else 0
    return values.astype(next(t for t in (np.uint16, np.uint32, np.int64) if largest <= np.iinfo(t).max))


def _sums(values: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """Return sums as uint32 if possible, else as float64; ``None`` if they are not finite numbers."""
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        return None
    whole = values.astype(np.uint32) if values.min(initial=0) >= 0 and values.max(initial=0) < 2**32 else None
    return whole if whole is not None and np.array_equal(whole, values) else values.astype(np.float64)


def _squares(nnz: npt.NDArray[Any], raw_sum: npt.NDArray[Any], variance: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """Return sums of squares, rounded to integers; ``None`` if the column is not the variance of counts."""
    if variance.dtype.kind != "f":
        return None
    n, total = nnz.astype(np.float64), raw_sum.astype(np.float64)
    squares = total**2 / np.maximum(n, 1)
    squares += np.where(n > 1, variance, 0) * np.maximum(n - 1, 0)
    rounded = np.rint(squares)
    is_exact = (n > 1) & (np.abs(squares) < EXACT_BELOW)
    are_integers = np.abs(squares - rounded)[is_exact] < INTEGER_TOLERANCE
    if not len(are_integers) or are_integers.mean() < MIN_INTEGERS:
        return None
    return _sums(rounded)
