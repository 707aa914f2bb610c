"""The distinct values of a column of obs, and their codes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

MISSING = "<missing>"
"""The text of a missing value, where values are known by their text."""


class Vocabulary:
    """Distinct values of one column, ascending, a missing value last.

    Attributes
    ----------
    values
        shape (n_values,): the values, by code; ``None`` for the missing one.
    has_missing
        Whether the last code is that of a missing value.

    Parameters
    ----------
    column
        The values.
    with_missing
        Whether a missing value has a code, if there is one.
    """

    def __init__(self, column: pd.Series[Any], *, with_missing: bool = True) -> None:
        used, has_missing = _distinct(column)
        self._set_up(used, has_missing and with_missing)

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
        self.values.flags.writeable = False  # users are given it
        self.has_missing = has_missing
        self._codes = {value: code for code, value in enumerate(used)}

    def __len__(self) -> int:
        return len(self.values)

    @property
    def texts(self) -> list[str]:
        """The values as text, all different; the text of a value does not depend on the other values."""
        return [text_of(value) for value in self.values.tolist()]

    def codes(self, column: pd.Series[Any]) -> npt.NDArray[np.signedinteger[Any]]:
        """Return one code per row, -1 for a value that is not in the vocabulary."""
        if isinstance(column.dtype, pd.CategoricalDtype):
            rows, distinct = column.cat.codes.to_numpy(), column.cat.categories
        else:
            rows, distinct = pd.factorize(column)
        # A dict compares integers exactly; pandas compares some types of them as float64.
        table = [self._codes.get(value, -1) for value in distinct.tolist()]
        table.append(len(self.values) - 1 if self.has_missing else -1)  # rows with a missing value hold -1
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
    """Return a text that stands for one value only, in every data set: that of ``None`` is :data:`MISSING`.

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
    """Return values each in its own type, not one common type that may not hold them; ``None`` if one is missing.

    Examples
    --------
    >>> plain_values([np.uint64(2**63), 1, np.nan])
    [9223372036854775808, 1, None]
    """
    plain = (value.item() if isinstance(value, np.generic) else value for value in values)
    return [None if value is None or value is pd.NA or value != value else value for value in plain]


def _are_integers(values: list[Any]) -> bool:
    return bool(values) and all(type(value) is int for value in values)


def _dtype_of(values: list[Any]) -> npt.DTypeLike:
    if _are_integers(values):
        types = (np.int64, np.uint64)
        fitting = (t for t in types if np.iinfo(t).min <= min(values) and max(values) <= np.iinfo(t).max)
        return next(fitting, object)
    kinds = {type(value) for value in values}
    return np.result_type(*kinds) if kinds and kinds <= {int, float, bool} and len(kinds) == 1 else object


def code_dtype(n_codes: int) -> type[np.signedinteger[Any]]:
    """Return the smallest signed type for codes -1 to ``n_codes - 1``."""
    for dtype in (np.int8, np.int16, np.int32):
        if n_codes <= np.iinfo(dtype).max:
            return dtype
    return np.int64
