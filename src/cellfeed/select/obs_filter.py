"""Value filters of TileDB-SOMA from Python values, quoted as its parser reads them."""

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

MANY = 16
"""So many numbers are compared one by one; more of them by ``in``, which is fast but knows not every type."""


OPERATORS = (">", ">=", "<", "<=", "!=", "==")
"""Operators of comparisons."""


def obs_filter(columns: Mapping[str, Any] | None = None, /, **more: Any) -> str:
    r"""Make the value filter of a query from Python values.

    A row is selected if each column named has the value given, or one of the values given. A comparison is a pair of an
    operator and a value: ``(">", 500)``, with ``>``, ``>=``, ``<``, ``<=``, ``!=`` or ``==``; of several in a list, all
    must hold, as in the range ``[(">=", 500), ("<", 6000)]``. ``("!=", None)`` selects the rows that have a value.
    Quotes, backslashes and line breaks inside text are escaped; nothing in a value can change what the filter means.

    Parameters
    ----------
    columns
        Values by name, for columns whose names are no Python names, such as ``"orig.ident"``.
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
        If a list is empty (it would select nothing), or a value is missing, not finite, or of another kind.

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
    twice = sorted(set(columns or ()) & set(more))
    if twice:
        raise SelectionError(f"obs_filter was given column {twice[0]!r} twice; give all its values in one list")
    wanted = {**(columns or {}), **more}
    if not wanted:
        raise SelectionError("obs_filter was given no column; name one, or make the dataset without obs_query")
    return " and ".join(_term(name, value) for name, value in wanted.items())


def _term(name: object, value: Any) -> str:
    if not isinstance(name, str) or not name:
        raise SelectionError(f"obs_filter: column {name!r} must be the name of a column, as text")
    _check_text(name, name)
    if _is_comparison(value):
        value = [value]
    if isinstance(value, (list, tuple)) and any(map(_is_comparison, value)):
        return " and ".join(_comparison(name, one) for one in value)
    values = [_plain(name, one) for one in _as_list(name, value)]
    kinds = sorted({_kind(one) for one in values})
    if len(kinds) > 1:
        raise SelectionError(
            f"obs_filter: the values of {name!r} are of several kinds ({', '.join(kinds)}); give one, or comparisons "
            f'such as {_column(name)}=(">", 500), by one of {", ".join(OPERATORS)}'
        )
    if kinds == ["boolean"] and len(values) > 2:
        raise SelectionError(
            f"obs_filter: {name} has {len(values)} booleans, which look like a mask over rows; give values of the "
            f"column, or the joinids that the mask selects: tiledbsoma.AxisQuery(coords=(joinids[mask],))"
        )
    terms = _compare(_column(name), list(dict.fromkeys(values)), kinds[0])
    return terms[0] if len(terms) == 1 else f"({' or '.join(terms)})"


def _is_comparison(value: Any) -> bool:
    """Whether a value is a pair of an operator and what to compare with."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and value[0] in OPERATORS


def _comparison(name: str, value: Any) -> str:
    """Write a comparison with a value; unlike all values of a list is unlike each of them."""
    if not _is_comparison(value):
        raise SelectionError(
            f'obs_filter: {name} has comparisons and {value!r} in one list; give pairs such as (">", 500) only, all of '
            f"which must hold"
        )
    operator, compared = value
    if operator == "!=" and compared is None:
        return f"{_column(name)} != None"
    values = [_plain(name, one) for one in _as_list(name, compared)]
    if operator != "!=" and len(values) > 1:
        raise SelectionError(
            f'obs_filter: {name}=({operator!r}, {compared!r}) compares with one value; a list goes with "!="'
        )
    return " and ".join(f"{_column(name)} {operator} {one!r}" for one in values)


def _compare(column: str, values: list[Any], kind: str) -> list[str]:
    """Write comparisons of which one must hold; TileDB-SOMA knows no lists with a sign in them, nor any of booleans."""
    if kind == "text" and len(values) == 1:
        return [f"{column} == {values[0]!r}"]
    listed = [one for one in values if kind == "text" or (kind == "number" and one >= 0)]
    if kind == "number" and len(listed) <= MANY:
        listed = []
    alone = [one for one in values if not listed or (kind == "number" and one < 0)]
    among = [f"{column} in [{', '.join(map(repr, listed))}]"] if listed else []
    return among + [_equal(column, one) for one in alone]


def _equal(column: str, value: float) -> str:
    if isinstance(value, float) and not value.is_integer():
        # Compared with a column of integers, a number loses its fraction; none of them has one.
        return f"({column} == {value!r} and {column} != {math.trunc(value)})"
    return f"{column} == {value!r}"


def _column(name: str) -> str:
    """Write the name of a column: as it is where it is a Python name, which the parser would also normalise."""
    plain = name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name
    return name if plain else f"attr({name!r})"


def _as_list(name: str, value: Any) -> list[Any]:
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=lambda one: (type(one).__name__, repr(one)))  # the same filter in every process
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
        raise SelectionError(f"obs_filter: {name}=[] would select nothing; leave {name!r} out to take all its values")
    return values


def _plain(name: str, value: Any) -> str | bool | int | float:
    """Return a value as one of Python's own types."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, str):
        text = str.__str__(value)
        _check_text(name, text)
        return text
    if isinstance(value, numbers.Real) and np.dtype(type(value)).kind != "m":  # NumPy counts time differences as well
        return _number(name, value)
    if value is None or value is pd.NA or value is pd.NaT:
        raise SelectionError(
            f"obs_filter: {name} has a missing value ({value!r}) among those wanted; drop it, or write "
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
            f"obs_filter: {name}={value!r} is not a finite number; no comparison finds it. Leave it out"
        )
    if not -(2**63) <= number < 2**64:
        raise SelectionError(f"obs_filter: {name}={value!r} is beyond 64 bits; no column of integers holds it")
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
