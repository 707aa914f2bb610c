"""What a store tells twice is compared: rows of X with what obs says of them.

A Census has no checksums. Its obs tells how many values each cell has (``nnz``) and what its counts add up to
(``raw_sum``): that finds lost values and wrong ones, whatever the cause.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray
from cellfeed.errors import ReadError
from cellfeed.rows.cell_rows import ValueWidth
from cellfeed.rows.row_allocator import Reader, RowAllocator, RowPointers
from cellfeed.select.selection import Selection

SUM_TOLERANCE = 1e-6
"""Sums that differ by no more than this part of them are equal: obs may have been added up in float32."""

SQUARES_TOLERANCE = 1e-9
"""Sums of squares that differ by no more than this part of them are equal: they follow from a variance in float64."""

EXACT_BELOW = 1 << 24
"""Counts are added up without error in float32 as long as their sum is less."""


class VerifyingReader:
    """A reader whose rows are compared with obs before anybody sees them.

    Values must be finite. Where all genes are selected, a row must have as many values as obs says in ``nnz``, and
    they must add up to its ``raw_sum``, and their squares to what follows from its variance; of some genes there must
    not be more.

    Parameters
    ----------
    reader
        The reader to verify.
    selection
        What is read.
    """

    def __init__(self, reader: Reader, selection: Selection) -> None:
        self._reader = reader
        self._selection = selection
        self._all_genes = selection.all_genes

    def read(self, joinids: IntArray, space: RowAllocator) -> RowPointers:
        """Put the rows of ascending ``joinids`` where there is room; a mismatch is a :class:`ReadError`."""
        from cellfeed.rows import kernels

        rows = self._reader.read(joinids, space)
        nnz, raw_sum, raw_squares = self._figures(joinids)
        if nnz is not None:
            self._check_sizes(joinids, rows, nnz.astype(np.int64))
        if raw_sum is not None or rows.value_dtype.kind == "f":
            sums, squares = np.empty(len(joinids)), np.empty(len(joinids))
            if (width := ValueWidth.of(rows.value_dtype)) < ValueWidth.WIDE:
                kernels.sum_counts(rows.values, rows.sizes, int(width), sums, squares)
            else:
                kernels.sum_values(rows.values, rows.sizes, rows.types[1], sums, squares)
            self._check_finite(joinids, rows, sums)
            if raw_sum is not None:
                self._check_sums(joinids, sums, raw_sum)
            if raw_squares is not None:
                self._check_squares(joinids, rows, squares, raw_squares.astype(np.float64))
        return rows

    def _figures(self, joinids: IntArray) -> list[npt.NDArray[Any] | None]:
        """Return what obs says of cells: number of values, sum, sum of squares; ``None`` for what is not compared."""
        selection = self._selection
        figures = [selection.nnz, *((selection.raw_sum, selection.raw_squares) if self._all_genes else (None, None))]
        if all(figure is None for figure in figures):
            return figures
        positions = selection.joinids.positions_of(joinids)
        return [None if figure is None else figure[positions] for figure in figures]

    def _check_sizes(self, joinids: IntArray, rows: RowPointers, told: IntArray) -> None:
        wrong = rows.sizes != told if self._all_genes else rows.sizes > told
        if wrong.any():
            of_them = "" if self._all_genes else " of the selected genes"
            self._refuse(joinids, wrong, rows.sizes, f"values{of_them}", "nnz", told)

    def _check_finite(self, joinids: IntArray, rows: RowPointers, sums: npt.NDArray[np.float64]) -> None:
        # A sum of finite values can be infinite, which no store of counts or logarithms holds.
        if not np.isfinite(sums).all():
            k = int(np.argmin(np.isfinite(sums)))
            narrowed = self._selection.geometry.dtype == "float64" and rows.value_dtype == np.float32
            beyond = ', or beyond float32, in which it is read: float64 values come with X_dtype="store"' * narrowed
            raise ReadError(
                f"{self._name} holds a value that is not finite (NaN or infinite){beyond} for soma_joinid {joinids[k]}"
                f': a model could not be trained with it; write the layer again, or take it as it is with verify="off"'
            )

    def _check_sums(self, joinids: IntArray, sums: npt.NDArray[np.float64], told: npt.NDArray[Any]) -> None:
        expected = told.astype(np.float64)
        exact = (told.dtype == np.uint32) & (expected < EXACT_BELOW)
        wrong = np.abs(sums - expected) > np.where(exact, 0.0, SUM_TOLERANCE * np.abs(expected))
        if wrong.any():
            self._refuse(joinids, wrong, sums, "as the sum of its values", "raw_sum", expected)

    def _check_squares(
        self, joinids: IntArray, rows: RowPointers, squares: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]
    ) -> None:
        """Compare sums of squares: values that change so that their number and sum stay have others."""
        if ValueWidth.of(rows.value_dtype) < ValueWidth.WIDE:  # they are modulo 2**32
            expected %= 2.0**32
        wrong = np.abs(squares - expected) > np.maximum(0.5, SQUARES_TOLERANCE * expected)
        if wrong.any():
            self._refuse(joinids, wrong, squares, "as the sum of its squared values", "sum of squares", expected)

    def _refuse(
        self,
        joinids: IntArray,
        wrong: npt.NDArray[np.bool_],
        found: npt.NDArray[Any],
        what: str,
        column: str,
        told: Any,
    ) -> None:
        k = int(np.argmax(wrong))
        others = f" (and {int(wrong.sum()) - 1} more of {len(joinids)} cells differ)" if wrong.sum() > 1 else ""
        raise ReadError(
            f"{self._name} holds {found[k]:.12g} {what} for soma_joinid {joinids[k]} where obs tells "
            f"{column}={told[k]:.12g}{others}: X or obs is damaged, or that column is of another layer or of more "
            f"genes, as in a store made of some genes of a Census: drop nnz and raw_sum from obs, or take X as it is "
            f'with verify="off"'
        )

    @property
    def _name(self) -> str:
        return f"X[{self._selection.X_name!r}]"

    def close(self) -> None:
        """Close the reader within."""
        self._reader.close()
