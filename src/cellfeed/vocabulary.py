"""The distinct values of a column of obs, and their codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd


class Vocabulary:
    """Distinct values of one column, ascending, a missing value last.

    Attributes
    ----------
    values
        shape (n_values,): the values, by code; ``None`` for the missing one.
    """

    def __init__(self, column: pd.Series[Any]) -> None:
        self._set_up(*_distinct(column))

    @classmethod
    def of(cls, values: list[Any]) -> Vocabulary:
        """Make the vocabulary of values in this order; ``None``, the missing one, may be the last."""
        self = cls.__new__(cls)
        has_missing = bool(values) and values[-1] is None
        self._set_up(values[:-1] if has_missing else values, has_missing)
        return self

    def _set_up(self, used: list[Any], has_missing: bool) -> None:
        self.values = np.array(used, dtype=_dtype_of(used))
        if has_missing:
            self.values = np.append(self.values.astype(object), [None])
        self._has_missing = has_missing
        self._index = pd.Index(used)

    def __len__(self) -> int:
        return len(self.values)

    def codes(self, column: pd.Series[Any]) -> npt.NDArray[np.int64]:
        """Return one code per row, -1 for a value that is not in the vocabulary."""
        missing = len(self.values) - 1 if self._has_missing else -1
        if isinstance(column.dtype, pd.CategoricalDtype):
            by_category = self._lookup(column.cat.categories)
            # int16 is enough for most vocabularies, and this table is all that is widened.
            table = np.append(by_category, missing).astype(code_dtype(len(self.values)))
            return table[column.cat.codes.to_numpy()]
        codes = self._lookup(pd.Index(column))
        return np.where(column.isna().to_numpy(), missing, codes)

    def _lookup(self, values: pd.Index[Any]) -> npt.NDArray[np.int64]:
        return np.asarray(self._index.get_indexer(values), dtype=np.int64)


def _distinct(column: pd.Series[Any]) -> tuple[list[Any], bool]:
    """Return the distinct values of a column, ascending, and whether any is missing."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes = np.unique(column.cat.codes.to_numpy())
        values = column.cat.categories[codes[codes >= 0]]
        return sorted(values.tolist()), bool((codes < 0).any())
    values = pd.Index(column.dropna().unique())
    return sorted(values.tolist()), bool(column.isna().any())


def _dtype_of(values: list[Any]) -> npt.DTypeLike:
    kinds = {type(value) for value in values}
    return np.result_type(*kinds) if kinds and kinds <= {int, float, bool} and len(kinds) == 1 else object


def code_dtype(n_codes: int) -> type[np.signedinteger[Any]]:
    """Return the smallest signed type for codes -1 to ``n_codes - 1``."""
    for dtype in (np.int8, np.int16, np.int32):
        if n_codes <= np.iinfo(dtype).max:
            return dtype
    return np.int64
