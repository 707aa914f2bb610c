"""Makes value filters of TileDB-SOMA of Python values, quoted for its parser."""

from __future__ import annotations

import datetime
import keyword
import math
import numbers
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from cellfeed.errors import SelectionError

MAX_COMPARISONS = 16
"""Up to this number, numbers are compared one by one; more by ``in``, which is faster but lacks some types."""

OPERATORS = (">", ">=", "<", "<=", "!=", "==")
"""Operators of a comparison."""


def obs_filter(columns: Mapping[str, Any] | None = None, /, **more: Any) -> str:
    r"""Make the value filter of a query of Python values.

    A row is selected if each named column has the given value, or one of the given values. A comparison is a pair of
    an operator and a value, such as ``(">", 500)``; the operators are ``>``, ``>=``, ``<``, ``<=``, ``!=`` and ``==``.
    All comparisons of a list must hold, as in the range ``[(">=", 500), ("<", 6000)]``. ``("!=", None)`` selects the
    rows that have a value. Quotes, backslashes and line breaks in text are escaped: a value cannot change the meaning
    of the filter.

    Parameters
    ----------
    columns
        Values by name, for columns whose names are not Python names, such as ``"orig.ident"``.
    more
        Values by name. A value is text, a number or a boolean, or a list, tuple, set, NumPy array or pandas
        ``Series``, ``Index`` or ``Categorical`` of these, all of one kind; or a comparison, or a list of comparisons.
        Times are text, such as ``"2026-01-31"``.

    Returns
    -------
    Text for ``tiledbsoma.AxisQuery(value_filter=...)``. It can be extended: ``obs_filter(...) + " and nnz > 500"``.

    Raises
    ------
    SelectionError
        If a list is empty (it would select nothing), or a value is missing, not finite, or of another type.

    Examples
    --------
    >>> obs_filter(tissue_general=["tongue", "lung"], is_primary_data=True)
    "tissue_general in ['tongue', 'lung'] and is_primary_data == True"
    >>> obs_filter({"orig.ident": "patient's"}, n_genes=[500, 501])
    'attr(\'orig.ident\') == "patient\'s" and (n_genes == 500 or n_genes == 501)'
    >>> obs_filter(n_genes=[(">=", 500), ("<", 6000)], cell_type=("!=", ["unknown", "doublet"]))
    "n_genes >= 500 and n_genes < 6000 and cell_type != 'unknown' and cell_type != 'doublet'"
    """
    if columns is not None and not isinstance(columns, Mapping):
        raise SelectionError(
            f"obs_filter takes columns by name, not {columns!r}: obs_filter(tissue='lung'), or a dict of such"
        )
    repeated = sorted(set(columns or ()) & set(more))
    if repeated:
        raise SelectionError(f"obs_filter received column {repeated[0]!r} twice; give all its values in one list")
    wanted = {**(columns or {}), **more}
    if not wanted:
        raise SelectionError("obs_filter received no column; name one, or make the dataset without obs_query")
    return " and ".join(_term(name, value) for name, value in wanted.items())


def _term(name: object, value: Any) -> str:
    if not isinstance(name, str) or not name:
        raise SelectionError(f"obs_filter: column {name!r} must be the name of a column, as text")
    _check_text(name, name)
    if _is_comparison(value):
        value = [value]
    if isinstance(value, (list, tuple)) and any(map(_is_comparison, value)):
        return " and ".join(_comparison(name, comparison) for comparison in value)
    values = [_plain(name, element) for element in _as_list(name, value)]
    kinds = sorted({_kind(element) for element in values})
    if len(kinds) > 1:
        raise SelectionError(
            f"obs_filter: the values of {name!r} are of several kinds ({', '.join(kinds)}); give one kind, or "
            f'comparisons such as {_column(name)}=(">", 500) with one of {", ".join(OPERATORS)}'
        )
    if kinds == ["boolean"] and len(values) > 2:
        raise SelectionError(
            f"obs_filter: {name} has {len(values)} booleans, which look like a mask over rows; give values of the "
            f"column, or the joinids that the mask selects: tiledbsoma.AxisQuery(coords=(joinids[mask],))"
        )
    terms = _compare(_column(name), list(dict.fromkeys(values)), kinds[0])
    return terms[0] if len(terms) == 1 else f"({' or '.join(terms)})"


def _is_comparison(value: Any) -> bool:
    """Whether a value is a pair of an operator and a value."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and value[0] in OPERATORS


def _comparison(name: str, value: Any) -> str:
    """Return a comparison as text; ``!=`` with a list means unequal to each of its values."""
    if not _is_comparison(value):
        raise SelectionError(
            f'obs_filter: {name} has comparisons and {value!r} in one list; give only pairs such as (">", 500), all of '
            f"which must hold"
        )
    operator, compared = value
    if operator == "!=" and compared is None:
        return f"{_column(name)} != None"
    values = [_plain(name, element) for element in _as_list(name, compared)]
    if operator != "!=" and len(values) > 1:
        raise SelectionError(
            f'obs_filter: {name}=({operator!r}, {compared!r}) compares with one value; only "!=" takes a list'
        )
    return " and ".join(f"{_column(name)} {operator} {element!r}" for element in values)


def _compare(column: str, values: list[Any], kind: str) -> list[str]:
    """Return comparisons of which one must hold; TileDB-SOMA has no lists of negative numbers or of booleans."""
    if kind == "text" and len(values) == 1:
        return [f"{column} == {values[0]!r}"]
    listed = [value for value in values if kind == "text" or (kind == "number" and value >= 0)]
    if kind == "number" and len(listed) <= MAX_COMPARISONS:
        listed = []
    others = [value for value in values if not listed or (kind == "number" and value < 0)]
    terms = [f"{column} in [{', '.join(map(repr, listed))}]"] if listed else []
    return terms + [_equal(column, value) for value in others]


def _equal(column: str, value: float) -> str:
    if isinstance(value, float) and not value.is_integer():
        # TileDB-SOMA drops the fraction if the column has integers, which are never equal to such a number.
        return f"({column} == {value!r} and {column} != {math.trunc(value)})"
    return f"{column} == {value!r}"


def _column(name: str) -> str:
    """Return the name of a column in a filter; the parser would normalise a Python name that is not normalised."""
    plain = name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name
    return name if plain else f"attr({name!r})"


def _as_list(name: str, value: Any) -> list[Any]:
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=lambda element: (type(element).__name__, repr(element)))  # equal in every process
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return [value[()]]
    if getattr(value, "ndim", 1) > 1:
        raise SelectionError(
            f"obs_filter: the values of {name!r} are a {type(value).__name__} of {value.ndim} dimensions; give one"
        )
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        return [value]
    values = list(value)
    if not values:
        raise SelectionError(f"obs_filter: {name}=[] would select nothing; omit {name!r} to select all its values")
    return values


def _plain(name: str, value: Any) -> str | bool | int | float:
    """Return a value as a Python str, bool, int or float."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, str):
        text = str.__str__(value)
        _check_text(name, text)
        return text
    if (
        isinstance(value, numbers.Real) and np.dtype(type(value)).kind != "m"
    ):  # NumPy's time differences are integers too
        return _number(name, value)
    if value is None or value is pd.NA or value is pd.NaT:
        raise SelectionError(
            f"obs_filter: {name} has a missing value ({value!r}); drop it, or write "
            f'"{_column(name)} == None" into the filter yourself'
        )
    if isinstance(value, (datetime.date, np.datetime64)):
        raise SelectionError(f"obs_filter: {name}={value!r} is a time; give it as text: {str(pd.Timestamp(value))!r}")
    raise SelectionError(
        f"obs_filter: {name}={value!r} is a {type(value).__name__}; give text, a number, a boolean, or a list of these"
    )


def _number(name: str, value: Any) -> int | float:
    try:
        whole = isinstance(value, numbers.Integral) or float(value).is_integer()
        number = int(value) if whole else float(value)
    except (OverflowError, ValueError, TypeError):
        number = math.nan
    if not math.isfinite(number):
        raise SelectionError(
            f"obs_filter: {name}={value!r} is not a finite number, and no comparison finds it; omit it"
        )
    if not -(2**63) <= number < 2**64:
        raise SelectionError(f"obs_filter: {name}={value!r} does not fit 64 bits; no column of integers can hold it")
    return number


def _check_text(name: str, text: str) -> None:
    if "\x00" in text:
        raise SelectionError(
            f"obs_filter: {name}={text!r} holds a NUL character, where TileDB ends the text; remove it"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SelectionError(
            f"obs_filter: {name}={text!r} is not valid Unicode text: it holds half a character"
        ) from None


def _kind(value: str | bool | int | float) -> str:
    return "text" if isinstance(value, str) else "boolean" if isinstance(value, bool) else "number"
