"""Checks a value filter against the columns of its table and fits it to their types, before anything is read.

TileDB-SOMA parses a value filter as a Python expression and compares a column with constants of its type. If the type
cannot hold a constant, TileDB-SOMA raises an error or drops the fraction; cellfeed rewrites the comparison so that it
has its mathematical value. As in TileDB-SOMA, a missing value meets only comparisons with ``None``.
"""

from __future__ import annotations

import ast
import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cellfeed._checks import abbreviate, shortened, suggest
from cellfeed.errors import SelectionError
from cellfeed.select.filter_expression import (
    LISTS,
    FittedFilter,
    column_of,
    comparisons,
    constants,
    given_filter,
    negated,
    nested_too_deeply,
    parse_filter,
)

ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)

COMBINED = (ast.Expression, ast.BoolOp, ast.boolop, ast.BitAnd, ast.BitOr)
"""Nodes that combine comparisons, besides ``not`` and the operators ``&`` and ``|``."""

NOT_IN_LISTS = (pa.int8(), pa.int16(), pa.uint8())
"""Types of columns that TileDB-SOMA cannot compare with every list."""

NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
"""Nanoseconds per unit of a time column."""


def fit_query(argument: str, query: Any, frame: Any, table: str) -> Any:
    """Return a query whose value filter fits the types of the columns of a table.

    Parameters
    ----------
    argument, query
        A ``tiledbsoma.AxisQuery``, and its name in errors.
    frame, table
        The open ``tiledbsoma.DataFrame``, and its name, ``"obs"`` or ``"var"``.

    Raises
    ------
    SelectionError
        If the filter is not an expression, names a column that the table lacks, or compares values of other types.
    """
    if not isinstance(query.value_filter, str):
        return query
    given = str(given_filter(query.value_filter))
    what = f"{argument}: value_filter={shortened(repr(given))}"
    try:
        tree = parse_filter(what, given)
        fitted = _Fitting(what, frame, table).visit(copy.deepcopy(tree))
        if ast.dump(fitted) == ast.dump(tree) and given == given.strip():
            return query
        text = FittedFilter(ast.unparse(fitted))
    except RecursionError:
        raise nested_too_deeply(what) from None
    text.given = given
    return type(query)(value_filter=text, coords=query.coords)


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def dictionary_of(frame: Any, column: str) -> list[Any]:
    """Return all categories of a column of an open ``tiledbsoma.DataFrame``, used or not."""
    values: list[Any] = frame.get_enumeration_values([column])[column].to_pylist()
    return values


class _Fitting(ast.NodeTransformer):
    """Checks comparisons, and rewrites those with constants that the type of their column cannot hold."""

    def __init__(self, what: str, frame: Any, table: str) -> None:
        self._what = what
        self._frame = frame
        self._table = table

    def generic_visit(self, node: ast.AST) -> ast.AST:
        combines = isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitAnd, ast.BitOr))
        if combines or isinstance(node, COMBINED):
            return super().generic_visit(node)
        raise self._error(
            f"{ast.unparse(node)!r} is not a comparison; write for example \"flag == True and tissue == 'lung'\", and "
            f"parentheses around comparisons next to & and |"
        )

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        """Return an expression without ``not``: TileDB-SOMA crashes on one before a list or a combination."""
        return self.visit(negated(node.operand)) if isinstance(node.op, ast.Not) else self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        fitted = [self._fit(*comparison) for comparison in comparisons(node)]
        return fitted[0] if len(fitted) == 1 else ast.BoolOp(ast.And(), fitted)

    def _fit(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> ast.expr:
        name = column_of(left)
        if name is None:
            raise self._error(
                f"{ast.unparse(left)!r} is not a column; write a name that is not a Python name as in "
                f"attr('orig.ident') == 'a'"
            )
        if name not in self._frame.schema.names:
            raise self._error(f"{self._table} has no column {name!r}; {suggest(name, self._frame.schema.names)}")
        values = self._values(name, operator, right)
        kind = self._frame.schema.field(name).type
        if values == [None] and isinstance(operator, (ast.Eq, ast.NotEq)):
            return _compare(left, operator, values)
        if pa.types.is_dictionary(kind):
            if isinstance(operator, ORDER):
                self._check_order(name, kind, values[0])
            kind = kind.value_type
        if pa.types.is_timestamp(kind):
            values, kind = [self._as_number(name, kind, value) for value in values], pa.int64()
        for value in values:
            self._check(name, kind, value)
        if pa.types.is_floating(kind):
            values = [self._as_float(name, kind, value) for value in values]
        if isinstance(operator, (ast.In, ast.NotIn)):
            return self._fit_list(left, operator, kind, values)
        return self._fit_number(left, operator, kind, values[0])

    def _values(self, name: str, operator: ast.cmpop, right: ast.expr) -> list[Any]:
        """Return the constants of a comparison: a single one, or those of a list."""
        for element in right.elts if isinstance(right, LISTS) else [right]:
            if isinstance(element, ast.Name):
                raise self._error(f"{element.id} is not a value; quote text: {element.id!r}")
        try:
            values = constants(right)
        except ValueError:
            raise self._error(f"{ast.unparse(right)!r} is not a value; give text or a number") from None
        if isinstance(operator, (ast.Is, ast.IsNot)):
            raise self._error(f"{name!r} is compared by the `is` operator, which is not supported; write == or !=")
        if isinstance(operator, (ast.In, ast.NotIn)) != isinstance(right, LISTS) or not values:
            raise self._error(
                f"{name!r} is compared with {ast.unparse(right)}; in and not in take a list of values, other operators "
                f"take one"
            )
        return values

    def _check(self, name: str, kind: pa.DataType, value: Any) -> None:
        is_number = isinstance(value, (int, float))
        if is_text(kind):
            fits, held = isinstance(value, (str, bytes)), "text"
        elif pa.types.is_boolean(kind):
            fits, held = is_number and value in (0, 1), "True and False"
        else:
            fits = (is_number and not isinstance(value, bool)) or not pa.types.is_primitive(kind)
            held = f"{kind} values"
        if not fits:
            raise self._error(f"column {name!r} holds {held}, which cannot be compared with {value!r}")

    def _check_order(self, name: str, kind: Any, value: Any) -> None:
        """Raise an error if a categorical column has no order, or lacks the value: TileDB-SOMA cannot compare them."""
        known = dictionary_of(self._frame, name)
        if not kind.ordered:
            raise self._error(f"column {name!r} is categorical and has no order; list its values: {abbreviate(known)}")
        if value not in known:
            raise self._error(
                f"column {name!r} is categorical, and {value!r} is not one of its ordered values: {abbreviate(known)}"
            )

    def _as_number(self, name: str, kind: Any, value: Any) -> Any:
        """Return a time as TileDB-SOMA compares it: the number of the column's units since 1970."""
        if not isinstance(value, str):
            return value
        time = pd.to_datetime(value, errors="coerce", utc=True)
        if time is pd.NaT:
            raise self._error(
                f"column {name!r} holds times, and {value!r} is not a time; write for example '2026-01-31' or "
                f"'2026-01-31T12:00:00'"
            )
        whole, rest = divmod(time.as_unit("ns").value, NANOSECONDS[kind.unit])
        return float(whole + 0.5) if rest else int(whole)

    def _as_float(self, name: str, kind: Any, value: Any) -> Any:
        """Return a number for comparison with a column of floats: infinite if it is beyond their type."""
        largest = float(np.finfo(kind.to_pandas_dtype()).max)
        if abs(value) > largest:
            return math.inf if value > 0 else -math.inf
        if value == 0 and pa.types.is_dictionary(self._frame.schema.field(name).type):
            # TileDB-SOMA compares the bits of categories, and those of -0.0 are not those of 0.0.
            return next((category for category in dictionary_of(self._frame, name) if category == 0), value)
        return value

    def _fit_number(self, left: ast.expr, operator: ast.cmpop, kind: pa.DataType, value: Any) -> ast.expr:
        """Return an equivalent comparison with a number that the column's type can hold."""
        if not pa.types.is_integer(kind):
            return _compare(left, operator, [value])
        low, high = _limits(kind)
        below, above = value < low, value > high
        if not (below or above) and value == math.trunc(value):
            return _compare(left, operator, [value])
        if isinstance(operator, (ast.Eq, ast.NotEq)):
            return self._constant(left, kind, holds=isinstance(operator, ast.NotEq))
        if below or above:
            return self._constant(left, kind, holds=below == isinstance(operator, (ast.Gt, ast.GtE)))
        whole = math.floor(value) if isinstance(operator, (ast.Gt, ast.LtE)) else math.ceil(value)
        return _compare(left, operator, [whole])

    def _fit_list(self, left: ast.expr, operator: ast.cmpop, kind: pa.DataType, values: list[Any]) -> ast.expr:
        """Return an equivalent comparison with the listed values that the type can hold, one by one if needed."""
        if pa.types.is_boolean(kind):
            return _one_by_one(left, operator, [bool(value) for value in values])
        if pa.types.is_floating(kind) and min(values) <= 0:
            return _one_by_one(left, operator, values)  # a list of TileDB-SOMA takes no sign, and 0.0 in it is not -0.0
        if not pa.types.is_integer(kind):
            return _compare(left, operator, values)
        low, high = _limits(kind)
        held = [int(value) for value in values if low <= value <= high and value == math.trunc(value)]
        if not held:
            return self._constant(left, kind, holds=isinstance(operator, ast.NotIn))
        if kind in NOT_IN_LISTS or min(held) < 0:
            return _one_by_one(left, operator, held)
        return _compare(left, operator, held)

    def _constant(self, left: ast.expr, kind: pa.DataType, *, holds: bool) -> ast.expr:
        """Return a comparison that all integers meet, or that no integer meets; missing values never meet it."""
        name = str(column_of(left))
        low, high = _limits(kind)
        if not pa.types.is_dictionary(self._frame.schema.field(name).type):
            return _compare(left, ast.GtE() if holds else ast.Lt(), [low])
        known = set(dictionary_of(self._frame, name))
        absent = next((value for value in range(high, low - 1, -1) if value not in known), None)
        if absent is None:
            raise self._error(f"the categories of {name!r} are all {kind} values; compare with one of these")
        return _compare(left, ast.NotEq() if holds else ast.Eq(), [absent])

    def _error(self, reason: str) -> SelectionError:
        return SelectionError(f"{self._what}: {reason}")


def _compare(left: ast.expr, operator: ast.cmpop, values: Sequence[Any]) -> ast.Compare:
    """Return a comparison with one value, or with a list of values."""
    right = [ast.parse(ast.unparse(ast.Constant(value)), mode="eval").body for value in values]
    if isinstance(operator, (ast.In, ast.NotIn)):
        right = [ast.List(right, ast.Load())]
    return ast.Compare(left, [operator], right)


def _one_by_one(left: ast.expr, operator: ast.cmpop, values: Sequence[Any]) -> ast.expr:
    """Return comparisons with each value of a list, joined by ``or`` or ``and``."""
    sign, word = (ast.Eq(), ast.Or()) if isinstance(operator, ast.In) else (ast.NotEq(), ast.And())
    each: list[ast.expr] = [_compare(left, sign, [value]) for value in dict.fromkeys(values)]
    return each[0] if len(each) == 1 else ast.BoolOp(word, each)


def _limits(kind: pa.DataType) -> tuple[int, int]:
    limits = np.iinfo(kind.to_pandas_dtype())
    return int(limits.min), int(limits.max)
