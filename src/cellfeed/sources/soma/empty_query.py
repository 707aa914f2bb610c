"""Why a query selects nothing: values of its filter that the column does not hold, and the nearest that it does."""

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
from cellfeed.errors import SelectionError
from cellfeed.select.filter_check import column_of, comparisons, constants, dictionary_of, given_filter, is_text
from cellfeed.sources.soma import tiledb_private

MAX_ROWS_READ = 1_000_000
"""Rows of a column that are read for the values that it has, where it has no dictionary of them."""

MAX_REASONS = 3
"""Values that an error names; to find what is near each takes time."""

MEETS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.In: operator.eq, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
"""How a value of a column is compared with one of a filter."""

SIGNS = {ast.Lt: "< ", ast.LtE: "<= ", ast.Gt: "> ", ast.GtE: ">= "}


def check_not_empty(axis_query: Any, n_obs: int, n_vars: int) -> None:
    """Refuse a query that selects no cells or no genes, with the nearest values of its filter."""
    tables = axis_query.experiment.obs, axis_query.experiment.ms[axis_query.measurement_name].var
    parts = tiledb_private.parts_of(axis_query) or (None, None)
    for table, frame, query, found in zip(("obs", "var"), tables, parts, (n_obs, n_vars), strict=True):
        if found == 0:
            given = given_filter(getattr(query, "value_filter", None))
            asked = f": {shortened(repr(given))}" if given else ""
            raise SelectionError(
                f"{table}_query selects nothing{asked}{_why(table, frame, given)}; allow_empty=True makes an empty "
                f"dataset"
            )


def _why(table: str, frame: Any, given: str | None) -> str:
    """Say why a query of an open data frame selects nothing, as far as single comparisons explain it."""
    n_rows = frame.count
    if not n_rows:
        return f"; {table} has no rows"
    if not given:
        return f"; {table} has {n_rows:,} rows"
    with np.errstate(over="ignore"):  # a number beyond float32 is infinite there
        reasons = list(islice(_reasons(frame, given), MAX_REASONS))
    return "".join(f"; {reason}" for reason in reasons) or f"; none of {n_rows:,} rows meets all of its conditions"


def _reasons(frame: Any, given: str) -> Iterator[str]:
    """Yield which comparisons no value of their column meets."""
    for column, compared, value in _conditions(ast.parse(given.strip(), mode="eval").body):
        known = _known_values(frame, column)
        as_stored = np.float32(value) if frame.schema.field(column).type == pa.float32() else value
        if known and not any(MEETS[compared](one, as_stored) for one in known):
            is_partial = frame.count > MAX_ROWS_READ and not pa.types.is_dictionary(frame.schema.field(column).type)
            where = f" in its first {MAX_ROWS_READ:,} rows" if is_partial else ""
            yield f"{column} holds no {_not_held(compared, value, known, where)}"


def _conditions(node: ast.expr) -> Iterator[tuple[str, type[ast.cmpop], Any]]:
    """Yield column, operator and value of the comparisons of a filter, without those under ``not``."""
    if isinstance(node, ast.BoolOp):
        for one in node.values:
            yield from _conditions(one)
    elif isinstance(node, ast.BinOp):
        yield from _conditions(node.left)
        yield from _conditions(node.right)
    elif isinstance(node, ast.Compare):
        for left, compared, right in comparisons(node):
            for value in constants(right) if type(compared) in MEETS else ():
                if isinstance(value, (str, int, float)):
                    yield str(column_of(left)), type(compared), value


def _known_values(frame: Any, column: str) -> list[Any]:
    """Return the values of a column of text or numbers, from its dictionary or its first rows; none of other types."""
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
    """Return the coordinates of the first rows: a page alone can have a hundred million."""
    if tuple(frame.index_column_names) != ("soma_joinid",):
        return ()
    first = int(frame.domain[0][0])
    return (slice(first, first + MAX_ROWS_READ - 1),)


def _not_held(compared: type[ast.cmpop], value: Any, known: list[Any], where: str) -> str:
    """Say what a column holds instead of a value: the nearest texts, or the range of numbers."""
    if not isinstance(value, str):
        return f"value {SIGNS.get(compared, '')}{value!r}{where}: it has {min(known)!r} to {max(known)!r}"
    by_case = {one.casefold(): one for one in sorted(known)}
    close = difflib.get_close_matches(value.casefold(), list(by_case), n=3, cutoff=0.5)
    guess = " or ".join(repr(by_case[one]) for one in close)
    return f"{value!r}{where}: " + (f"did you mean {guess}?" if close else f"there are {abbreviate(sorted(known))}")
