"""Explains why a query selects nothing: values of its filter that a column lacks, and the most similar it has."""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from cellfeed._checks import abbreviate, shortened
from cellfeed._joinids import JOINID
from cellfeed.errors import SelectionError
from cellfeed.select.filter_check import dictionary_of, is_text
from cellfeed.select.filter_expression import column_of, comparisons, constants, given_filter
from cellfeed.sources.soma import tiledb_private

MAX_ROWS_READ = 1_000_000
"""Number of rows that are read to find the values of a column without a dictionary."""

MAX_REASONS = 3
"""Maximum number of values that an error names: the search for similar values takes time."""

MEETS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.In: operator.eq, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
"""Functions that compare a value of a column with one of a filter."""

SIGNS = {ast.Lt: "< ", ast.LtE: "<= ", ast.Gt: "> ", ast.GtE: ">= "}


def check_not_empty(axis_query: Any, n_obs: int, n_vars: int) -> None:
    """Raise an error if a query selects no cells or no genes; it names values similar to those of the filter."""
    tables = axis_query.experiment.obs, axis_query.experiment.ms[axis_query.measurement_name].var
    parts = tiledb_private.parts_of(axis_query) or (None, None)
    for table, frame, query, n_rows in zip(("obs", "var"), tables, parts, (n_obs, n_vars), strict=True):
        if n_rows == 0:
            text = given_filter(getattr(query, "value_filter", None))
            shown = f": {shortened(repr(text))}" if text else ""
            raise SelectionError(
                f"{table}_query selects nothing{shown}{_reason(table, frame, text)}; allow_empty=True makes an empty "
                f"dataset"
            )


def _reason(table: str, frame: Any, value_filter: str | None) -> str:
    """Return why a query of an open data frame selects nothing, as far as single comparisons explain it."""
    n_rows = frame.count
    if not n_rows:
        return f"; {table} has no rows"
    if not value_filter:
        return f"; {table} has {n_rows:,} rows"
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite
        reasons = list(islice(_reasons(frame, value_filter), MAX_REASONS))
    return "".join(f"; {reason}" for reason in reasons) or f"; none of {n_rows:,} rows meets all its conditions"


def _reasons(frame: Any, value_filter: str) -> Iterator[str]:
    """Yield a text for each comparison that no value of its column meets."""
    for column, operator_, value in _conditions(ast.parse(value_filter.strip(), mode="eval").body):
        known = _known_values(frame, column)
        as_stored = np.float32(value) if frame.schema.field(column).type == pa.float32() else value
        if known and not any(MEETS[operator_](candidate, as_stored) for candidate in known):
            is_partial = frame.count > MAX_ROWS_READ and not pa.types.is_dictionary(frame.schema.field(column).type)
            rows = f" in its first {MAX_ROWS_READ:,} rows" if is_partial else ""
            yield f"{column} holds no {_missing(operator_, value, known, rows)}"


def _conditions(node: ast.expr) -> Iterator[tuple[str, type[ast.cmpop], Any]]:
    """Yield column, operator and value of each comparison of a filter that is not under ``not``."""
    if isinstance(node, ast.BoolOp):
        for part in node.values:
            yield from _conditions(part)
    elif isinstance(node, ast.BinOp):
        yield from _conditions(node.left)
        yield from _conditions(node.right)
    elif isinstance(node, ast.Compare):
        for left, compared, right in comparisons(node):
            for value in constants(right) if type(compared) in MEETS else ():
                if isinstance(value, (str, int, float)):
                    yield str(column_of(left)), type(compared), value


def _known_values(frame: Any, column: str) -> list[Any]:
    """Return the values of a column of text or numbers, from its dictionary or first rows; empty for other types."""
    kind = frame.schema.field(column).type
    if pa.types.is_dictionary(kind):
        return [value for value in dictionary_of(frame, column) if value is not None]
    if not (is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return []
    known: dict[Any, None] = {}
    n_rows = 0
    for page in frame.read(_first_rows(frame), column_names=[column]):
        known.update(dict.fromkeys(page.column(column).unique().to_pylist()))
        n_rows += page.num_rows
        if n_rows >= MAX_ROWS_READ:
            break
    return [value for value in known if value is not None and value == value]  # NaN differs from itself


def _first_rows(frame: Any) -> tuple[slice, ...]:
    """Return the coordinates of the first rows; without them one page can have a hundred million rows."""
    if tuple(frame.index_column_names) != (JOINID,):
        return ()
    first = int(frame.domain[0][0])
    return (slice(first, first + MAX_ROWS_READ - 1),)


def _missing(operator_: type[ast.cmpop], value: Any, known: list[Any], rows: str) -> str:
    """Return a missing value, and what the column has instead: similar texts, or the range of its numbers."""
    if not isinstance(value, str):
        return f"value {SIGNS.get(operator_, '')}{value!r}{rows}: it has {min(known)!r} to {max(known)!r}"
    by_case = {text.casefold(): text for text in sorted(known)}
    close = difflib.get_close_matches(value.casefold(), list(by_case), n=3, cutoff=0.5)
    guess = " or ".join(repr(by_case[text]) for text in close)
    return f"{value!r}{rows}: " + (f"did you mean {guess}?" if close else f"there are {abbreviate(sorted(known))}")
