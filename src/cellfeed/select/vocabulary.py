"""The distinct values of a column of obs, and their codes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

MISSING = "<missing>"
"""The text of a missing value."""


class Vocabulary:
    """The distinct values of a column in ascending order, and the missing value last, if the column has one.

    Attributes
    ----------
    values
        Shape (n_values,): the values by code; ``None`` is the missing value.
    has_missing
        Whether the last code is that of the missing value.

    Parameters
    ----------
    column
        A column of obs.
    with_missing
        Whether the missing value gets a code.
    """

    def __init__(self, column: pd.Series[Any], *, with_missing: bool = True) -> None:
        values, has_missing = _distinct(column)
        self._set_values(values, has_missing and with_missing)

    @classmethod
    def of(cls, values: list[Any]) -> Vocabulary:
        """Make a vocabulary from values by code; the last may be ``None``, the missing value."""
        self = cls.__new__(cls)
        has_missing = bool(values) and values[-1] is None
        self._set_values(values[:-1] if has_missing else values, has_missing)
        return self

    def _set_values(self, values: list[Any], has_missing: bool) -> None:
        self.values = np.array(values, dtype=_dtype_of(values))
        if has_missing:
            self.values = np.append(self.values.astype(object), [None])
        self.values.flags.writeable = False  # users receive this array
        self.has_missing = has_missing
        self._codes = {value: code for code, value in enumerate(values)}

    def __len__(self) -> int:
        return len(self.values)

    @property
    def texts(self) -> list[str]:
        """The values as distinct text, by code; the text of a value does not depend on the other values."""
        return [text_of(value) for value in self.values.tolist()]

    def codes(self, column: pd.Series[Any]) -> npt.NDArray[np.signedinteger[Any]]:
        """Return one code per row, -1 for a value that is not in the vocabulary."""
        if isinstance(column.dtype, pd.CategoricalDtype):
            rows, distinct = column.cat.codes.to_numpy(), column.cat.categories
        else:
            rows, distinct = pd.factorize(column)
        # A dict compares integers exactly; pandas compares some integer types as float64.
        table = [self._codes.get(value, -1) for value in distinct.tolist()]
        table.append(len(self.values) - 1 if self.has_missing else -1)  # rows is -1 for a missing value
        return np.array(table, dtype=code_dtype(len(self.values)))[rows]


def _distinct(column: pd.Series[Any]) -> tuple[list[Any], bool]:
    """Return the distinct values of a column, ascending, and whether any is missing."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes = np.unique(column.cat.codes.to_numpy())
        values = column.cat.categories[codes[codes >= 0]]
        return sorted(values.tolist()), bool((codes < 0).any())
    values = pd.Index(column.dropna().unique())
    return sorted(values.tolist()), bool(column.isna().any())


def text_of(value: Any) -> str:
    """Return the text of a value: distinct values have distinct texts, and that of ``None`` is :data:`MISSING`.

    Examples
    --------
    >>> text_of("T cell"), text_of("None"), text_of(None)
    ('T cell', 'None', '<missing>')
    >>> text_of("<missing>")
    '<<missing>>'
    """
    if value is None:
        return MISSING
    text = str(value)
    return f"<{text}>" if re.fullmatch(f"<*{MISSING}>*", text) else text


def plain_values(values: Iterable[Any]) -> list[Any]:
    """Return values as Python objects, each of its own type; ``None`` for a missing value.

    Examples
    --------
    >>> plain_values([np.uint64(2**63), 1, np.nan])
    [9223372036854775808, 1, None]
    """
    plain = (value.item() if isinstance(value, np.generic) else value for value in values)
    return [None if value is None or value is pd.NA or value != value else value for value in plain]


def _dtype_of(values: list[Any]) -> npt.DTypeLike:
    kinds = {type(value) for value in values}
    if kinds == {int}:
        dtypes = (np.int64, np.uint64)
        fitting = (t for t in dtypes if np.iinfo(t).min <= min(values) and max(values) <= np.iinfo(t).max)
        return next(fitting, object)
    return kinds.pop() if kinds in ({float}, {bool}) else object


def code_dtype(n_codes: int) -> type[np.signedinteger[Any]]:
    """Return the smallest signed integer type for codes from -1 to ``n_codes - 1``."""
    for dtype in (np.int8, np.int16, np.int32):
        if n_codes <= np.iinfo(dtype).max:
            return dtype
    return np.int64
