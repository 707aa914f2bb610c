"""Rows of X are compared with the figures of the same cells in obs.

A Census has no checksums, but its obs has the number of stored values (``nnz``) and the sum of the counts (``raw_sum``)
of each cell. The comparison finds lost and wrong values, whatever the cause.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray
from cellfeed.errors import ReadError
from cellfeed.rows.cell_rows import ValueWidth
from cellfeed.rows.row_allocator import RowPointers
from cellfeed.rows.row_sums import sums_of_rows
from cellfeed.select.selection import Selection

SUM_TOLERANCE = 1e-6
"""Relative difference up to which two sums are equal: the sums in obs may have been computed in float32."""

SQUARES_TOLERANCE = 1e-9
"""Relative difference up to which two sums of squares are equal: they follow from a variance in float64."""

EXACT_BELOW = 1 << 24
"""float32 adds counts without error as long as the sum is below this number."""


def check_rows(rows: RowPointers, positions: IntArray, joinids: IntArray, selection: Selection) -> None:
    """Compare rows of X with obs.

    Values must be finite. If all genes are selected, the number of values of a row must be the ``nnz`` of obs, their
    sum must be ``raw_sum``, and their sum of squares must be the one that follows from the variance in obs. If only
    some genes are selected, a row must not have more values than ``nnz``.

    Parameters
    ----------
    rows
        The rows to check.
    positions, joinids
        int64, shape (n_rows,): the cells of the rows, by position in the selection and by ``soma_joinid``.
    selection
        The selection from which the rows were read.

    Raises
    ------
    ReadError
        If a row differs.
    """
    if selection.nnz is not None:
        _check_sizes(rows.sizes, selection.nnz[positions].astype(np.int64), joinids, selection)
    raw_sum = selection.raw_sum if selection.all_genes else None
    if raw_sum is None and rows.value_dtype.kind != "f":
        return
    sums, squares = sums_of_rows(rows.values, rows.sizes, rows.value_dtype)
    _check_finite(sums, rows.value_dtype, joinids, selection)
    if raw_sum is not None:
        _check_sums(sums, raw_sum[positions], joinids, selection)
        if selection.raw_squares is not None:
            expected = selection.raw_squares[positions].astype(np.float64)
            if ValueWidth.of(rows.value_dtype) < ValueWidth.WIDE:  # squares are added modulo 2**32
                expected %= 2.0**32
            _check_squares(squares, expected, joinids, selection)


def _check_sizes(sizes: IntArray, expected: IntArray, joinids: IntArray, selection: Selection) -> None:
    wrong = sizes != expected if selection.all_genes else sizes > expected
    genes = "" if selection.all_genes else " of the selected genes"
    _raise_where(wrong, sizes, f"values{genes}", "nnz", expected, joinids, selection)


def _check_finite(sums: npt.NDArray[np.float64], dtype: np.dtype[Any], joinids: IntArray, selection: Selection) -> None:
    # The sum of finite values can be infinite too, but no store of counts or of logarithms has such values.
    if np.isfinite(sums).all():
        return
    is_narrowed = selection.geometry.dtype == "float64" and dtype == np.float32
    narrowed = ', or beyond float32, in which it is read: float64 values come with X_dtype="stored"' * is_narrowed
    raise ReadError(
        f"X[{selection.X_name!r}] holds a value that is not finite (NaN or infinite){narrowed} for soma_joinid "
        f"{joinids[np.argmin(np.isfinite(sums))]}: a model cannot be trained with it; write the layer again, or read "
        f"it as it is with verify=False"
    )


def _check_sums(
    sums: npt.NDArray[np.float64], raw_sum: npt.NDArray[Any], joinids: IntArray, selection: Selection
) -> None:
    expected = raw_sum.astype(np.float64)
    is_exact = (raw_sum.dtype == np.uint32) & (expected < EXACT_BELOW)
    wrong = np.abs(sums - expected) > np.where(is_exact, 0.0, SUM_TOLERANCE * np.abs(expected))
    _raise_where(wrong, sums, "as the sum of its values", "raw_sum", expected, joinids, selection)


def _check_squares(
    squares: npt.NDArray[np.float64], expected: npt.NDArray[np.float64], joinids: IntArray, selection: Selection
) -> None:
    """Compare sums of squares, which find changes that keep the number and the sum of the values."""
    wrong = np.abs(squares - expected) > np.maximum(0.5, SQUARES_TOLERANCE * expected)
    _raise_where(wrong, squares, "as the sum of its squared values", "sum of squares", expected, joinids, selection)


def _raise_where(
    wrong: npt.NDArray[np.bool_],
    figures: npt.NDArray[Any],
    name: str,
    column: str,
    expected: npt.NDArray[Any],
    joinids: IntArray,
    selection: Selection,
) -> None:
    """Raise an error that names the first cell whose figure is wrong, if there is one."""
    n_wrong, first = np.count_nonzero(wrong), int(np.argmax(wrong)) if len(wrong) else 0
    if n_wrong == 0:
        return
    others = f" (and {n_wrong - 1} more of {len(joinids)} cells differ)" if n_wrong > 1 else ""
    raise ReadError(
        f"X[{selection.X_name!r}] holds {figures[first]:.12g} {name} for soma_joinid {joinids[first]}, but obs has "
        f"{column}={expected[first]:.12g}{others}: X or obs is damaged, or the column describes another layer or more "
        f"genes, as in a store made of some genes of a Census: drop nnz and raw_sum from obs, or read X as it is with "
        f"verify=False"
    )
