"""From what a user writes to a query of obs or var that is checked against the columns that there are.

TileDB-SOMA parses a value filter as a Python expression and compares a column with constants of its type. A constant
that the type cannot hold is an error there, or loses its fraction; here such a comparison gets the value that it has
for numbers.
"""

from __future__ import annotations

import ast
import copy
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cellfeed import native
from cellfeed.errors import SelectionError, nearest, some
from cellfeed.redact import redacted
from cellfeed.valuefilter import obs_filter

NEVER, ALWAYS = "soma_joinid < 0", "soma_joinid >= 0"
"""Filters that no row and each row meets."""

NOT_IN_LISTS = (pa.int8(), pa.int16(), pa.uint8())
"""Types of columns that TileDB-SOMA does not compare with lists, or not with all lists."""

NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
"""Of the units of times."""

MAX_ROWS_READ = 1_000_000
"""Rows of a column that are read for the values that it has, where it has no dictionary of them."""


def as_axis_query(argument: str, given: Any) -> Any:
    """Return a ``tiledbsoma.AxisQuery``: one, a value filter as text, or values by column as :func:`obs_filter` takes.

    Raises
    ------
    SelectionError
        If it is none of these, or its coordinates are booleans or floats.
    """
    import tiledbsoma as soma

    if given is None:
        return soma.AxisQuery()
    if isinstance(given, str):
        return soma.AxisQuery(value_filter=given)
    if isinstance(given, Mapping):
        return soma.AxisQuery(value_filter=obs_filter(given))
    if not isinstance(given, soma.AxisQuery):
        raise SelectionError(
            f"{argument}={redacted(repr(given))} must be a value filter as text, a dict of values by column, or a "
            f"tiledbsoma.AxisQuery, for example tiledbsoma.AxisQuery(value_filter=cellfeed.obs_filter(tissue='lung'))"
        )
    for coordinates in given.coords or ():
        if _holds_fractions(coordinates):
            raise SelectionError(
                f"{argument}: the coordinates are floats, as pandas has integers beside missing values; give "
                f"integers: tiledbsoma.AxisQuery(coords=(joinids.astype('int64'),))"
            )
        if _holds_booleans(coordinates):
            raise SelectionError(
                f"{argument}: the coordinates are booleans, and TileDB-SOMA would read them as the joinids 0 and 1; "
                f"give the joinids that a mask selects: tiledbsoma.AxisQuery(coords=(joinids[mask],))"
            )
    return given


def _holds_booleans(coordinates: Any) -> bool:
    if isinstance(coordinates, (pa.Array, pa.ChunkedArray)):
        return bool(pa.types.is_boolean(coordinates.type))
    if isinstance(coordinates, bool) or getattr(coordinates, "dtype", None) in (bool, "boolean"):
        return True
    if isinstance(coordinates, (list, tuple)):
        return any(isinstance(one, (bool, np.bool_)) for one in coordinates)
    return False


def _holds_fractions(coordinates: Any) -> bool:
    if isinstance(coordinates, (pa.Array, pa.ChunkedArray)):
        return bool(pa.types.is_floating(coordinates.type))
    if isinstance(coordinates, np.ndarray):
        return bool(coordinates.dtype.kind == "f")
    return isinstance(coordinates, (list, tuple)) and any(isinstance(one, (float, np.floating)) for one in coordinates)


def fit_query(argument: str, query: Any, schema: pa.Schema, table: str) -> Any:
    """Return a query whose value filter fits the types of the columns of a table, ``"obs"`` or ``"var"``.

    Raises
    ------
    SelectionError
        If the filter is no expression, names a column that is not there, or compares text with numbers.
    """
    if not isinstance(query.value_filter, str):
        return query
    what = f"{argument}: value_filter={query.value_filter!r}"
    tree = _parse(what, query.value_filter)
    fitted = _Fitting(what, schema, table).visit(copy.deepcopy(tree))
    if ast.dump(fitted) == ast.dump(tree):
        return query
    return type(query)(value_filter=ast.unparse(fitted), coords=query.coords)


def _parse(what: str, text: str) -> ast.Expression:
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as cause:
        raise SelectionError(
            f"{what} is not an expression ({getattr(cause, 'msg', cause)}); write for example \"tissue == 'lung' and "
            f'n_counts > 1000", or let cellfeed.obs_filter write it'
        ) from None


class _Fitting(ast.NodeTransformer):
    """Replaces comparisons with constants that the type of a column does not hold."""

    def __init__(self, what: str, schema: pa.Schema, table: str) -> None:
        self._what = what
        self._schema = schema
        self._table = table

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        name = _column_of(node.left)
        if name is None or len(node.ops) != 1:
            return node
        if name not in self._schema.names:
            raise SelectionError(
                f"{self._what}: {self._table} has no column {name!r}; {nearest(name, self._schema.names)}"
            )
        kind = self._schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_timestamp(kind):
            node, kind = self._with_times_as_numbers(name, kind, node), pa.int64()
        for value in node.comparators[0].elts if isinstance(node.comparators[0], ast.List) else node.comparators:
            self._check(name, kind, value)
        values = _constants(node.comparators[0])
        is_list = isinstance(node.ops[0], (ast.In, ast.NotIn))
        if values and is_list and pa.types.is_boolean(kind):
            return _one_by_one(node, values)
        if values is None or not pa.types.is_integer(kind):
            return node
        if is_list:
            return _fit_list(node, kind, values)
        return _fit_number(node, kind, values[0])

    def _with_times_as_numbers(self, name: str, kind: pa.DataType, node: ast.Compare) -> ast.Compare:
        """Return a comparison with times as TileDB-SOMA takes them: numbers of the column's units since 1970."""
        values = _constants(node.comparators[0])
        if values is None or not all(isinstance(one, str) for one in values):
            return node
        numbers: list[ast.expr] = [ast.Constant(self._since_1970(name, kind, one)) for one in values]
        node.comparators = [ast.List(numbers, ast.Load())] if isinstance(node.comparators[0], ast.List) else numbers
        return node

    def _since_1970(self, name: str, kind: Any, text: str) -> float:
        time = pd.to_datetime(text, errors="coerce", utc=True)
        if time is pd.NaT:
            raise SelectionError(
                f"{self._what}: column {name!r} holds times, and {text!r} is none; write for example '2026-01-31' or "
                f"'2026-01-31T12:00:00'"
            )
        whole, rest = divmod(time.as_unit("ns").value, NANOSECONDS[kind.unit])
        return float(whole + 0.5) if rest else int(whole)

    def _check(self, name: str, kind: pa.DataType, node: ast.expr) -> None:
        if isinstance(node, ast.Name):
            raise SelectionError(f"{self._what}: {node.id} stands where a value belongs; quote text: {node.id!r}")
        values = _constants(node)
        if values is None:
            return
        holds_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if holds_text != isinstance(values[0], str) and (holds_text or pa.types.is_primitive(kind)):
            raise SelectionError(
                f"{self._what}: column {name!r} holds {'text' if holds_text else f'{kind} values'}, which cannot be "
                f"compared with {values[0]!r}"
            )


def _column_of(node: ast.expr) -> str | None:
    """Return the column that an expression names: as it is, or inside ``attr("...")``."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "attr" and node.args:
        return str(getattr(node.args[0], "value", "")) or None
    return None


def _constants(node: ast.expr) -> list[Any] | None:
    """Return the constants of a comparison, a list of them or one; ``None`` if it is anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "val" and node.args:
        node = node.args[0]
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    values = value if isinstance(value, list) else [value]
    return values if all(isinstance(one, (str, int, float, bool)) for one in values) else None


def _fit_number(node: ast.Compare, kind: pa.DataType, value: float) -> ast.expr:
    """Compare a column of integers with a number that its type holds, to the same effect."""
    if not math.isfinite(value):
        return node
    low, high = _limits(kind)
    below, above = value < low, value > high
    if not (below or above or value != math.trunc(value)):
        return node
    operator = type(node.ops[0])
    if operator in (ast.Eq, ast.NotEq):
        return _expression(NEVER if operator is ast.Eq else ALWAYS)
    if below or above:
        return _expression(ALWAYS if below == (operator in (ast.Gt, ast.GtE)) else NEVER)
    node.comparators = [ast.Constant(math.floor(value) if operator in (ast.Gt, ast.LtE) else math.ceil(value))]
    return node


def _fit_list(node: ast.Compare, kind: pa.DataType, values: Sequence[float]) -> ast.expr:
    """Compare a column of integers with those of a list that its type holds, one by one where lists are not taken."""
    low, high = _limits(kind)
    held = [int(value) for value in values if low <= value <= high and value == math.trunc(value)]
    is_in = isinstance(node.ops[0], ast.In)
    if not held:
        return _expression(NEVER if is_in else ALWAYS)
    if kind not in NOT_IN_LISTS and min(held) >= 0:
        node.comparators = [ast.List([ast.Constant(value) for value in held], ast.Load())]
        return node
    return _one_by_one(node, held)


def _one_by_one(node: ast.Compare, values: Sequence[float]) -> ast.expr:
    """Write a comparison with a list as one of its values each."""
    sign, word = ("==", " or ") if isinstance(node.ops[0], ast.In) else ("!=", " and ")
    return _expression(word.join(f"{ast.unparse(node.left)} {sign} {value}" for value in values))


def _limits(kind: pa.DataType) -> tuple[int, int]:
    limits = np.iinfo(kind.to_pandas_dtype())
    return int(limits.min), int(limits.max)


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def check_not_empty(axis_query: Any, n_obs: int, n_vars: int) -> None:
    """Refuse a query that selects no cells or no genes, with the nearest values of its filter."""
    tables = axis_query.experiment.obs, axis_query.experiment.ms[axis_query.measurement_name].var
    parts = native.parts_of(axis_query) or (as_axis_query("obs_query", None),) * 2
    for table, frame, query, found in zip(("obs", "var"), tables, parts, (n_obs, n_vars), strict=True):
        if found == 0:
            asked = f": {query.value_filter!r}" if query.value_filter else ""
            raise SelectionError(
                f"{table}_query selects nothing{asked}{_why_empty(table, frame, query)}; allow_empty=True makes "
                f"an empty dataset"
            )


def _why_empty(table: str, frame: Any, query: Any) -> str:
    """Say why a query of an open data frame selects nothing, as far as values that it does not hold explain it."""
    if not isinstance(query.value_filter, str):
        return f"; {table} has {frame.count:,} rows" if query.coords else f"; {table} has no rows"
    unknown = []
    for column, values in _equalities(query.value_filter):
        kind = frame.schema.field(column).type if column in frame.schema.names else pa.null()
        known = _known_values(frame, column, kind)
        unknown += [_not_held(column, value, known) for value in values if known and value not in known]
    if unknown:
        return "".join(f"; {one}" for one in unknown[:3])
    return "; the filter's values exist, but no row meets all of its conditions" + " and coordinates" * bool(
        query.coords
    )


def _equalities(text: str) -> Iterator[tuple[str, list[Any]]]:
    """Yield the columns that a filter compares with values by ``==`` or ``in``, and the values."""
    for node in ast.walk(ast.parse(text, mode="eval")):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], (ast.Eq, ast.In)):
            column, values = _column_of(node.left), _constants(node.comparators[0])
            if column is not None and values is not None:
                yield column, values


def _known_values(frame: Any, column: str, kind: pa.DataType) -> set[Any]:
    """Return the values of a column of text, from its dictionary or from its first rows; nothing for other types."""
    if pa.types.is_dictionary(kind):
        return set(frame.get_enumeration_values([column])[column].to_pylist())
    known: set[Any] = set()
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return known
    n_rows = 0
    for page in frame.read(column_names=[column]):
        known.update(page.column(column).unique().to_pylist())
        n_rows += page.num_rows
        if n_rows > MAX_ROWS_READ:
            break
    return known


def _not_held(column: str, value: Any, known: set[Any]) -> str:
    texts = sorted(str(one) for one in known if one is not None)
    by_case = {one.casefold(): one for one in texts}
    close = difflib.get_close_matches(str(value).casefold(), list(by_case), n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(repr(by_case[one]) for one in close)}?" if close else f"there are {some(texts)}"
    return f"{column} holds no {value!r}: {guess}"
