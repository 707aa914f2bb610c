"""Applies a query to obs or var in a pandas frame; it selects the rows that TileDB-SOMA selects."""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cellfeed._checks import raising
from cellfeed._joinids import JOINID, IntArray
from cellfeed.errors import SelectionError
from cellfeed.select.coordinates import meets_coordinates
from cellfeed.select.filter_check import ORDER, fit_query, is_text
from cellfeed.select.filter_expression import column_of, comparisons, constants

COMPARE = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
"""Functions of Arrow that compare a column with one value."""


def matching_rows(
    query: Any,
    frame: pd.DataFrame,
    joinids: IntArray,
    *,
    argument: str = "obs_query",
    column_names: Collection[str] = (),
) -> IntArray:
    """Return the ascending positions of the rows that a query selects.

    Parameters
    ----------
    query
        Has a ``value_filter`` and ``coords``, as a ``tiledbsoma.AxisQuery`` has.
    frame
        The columns that the value filter names, as far as the table has them; see :func:`columns_of_filter`.
    joinids
        int64, shape (n_rows,): the joinid of each row, in any order. In a value filter they are ``soma_joinid``.
    argument
        Name of the query in errors: ``"obs_query"`` or ``"var_query"``.
    column_names
        Names of other columns of the table, for errors.

    Raises
    ------
    SelectionError
        If the value filter does not fit the columns, or the coordinates cannot be joinids of the table.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> obs = pd.DataFrame({"tissue": pd.Categorical(["lung", None, "blood", "lung"])})
    >>> query = SimpleNamespace(value_filter="tissue != 'blood'", coords=(slice(1, 3),))
    >>> matching_rows(query, obs, np.array([0, 1, 2, 3])).tolist()
    [3]
    """
    table = _Table(frame, joinids, column_names)
    value_filter = fit_query(argument, query, table, argument.removesuffix("_query")).value_filter
    selected = meets_coordinates(argument, query.coords, joinids)
    if value_filter is not None:
        with raising(SelectionError, f"{argument} cannot be answered"), np.errstate(over="ignore"):
            selected &= _meets(ast.parse(value_filter, mode="eval").body, table)
    return np.flatnonzero(selected)


class _Table:
    """Columns of a pandas frame as Arrow arrays, behind the methods that :func:`fit_query` calls."""

    def __init__(self, frame: pd.DataFrame, joinids: IntArray, column_names: Collection[str]) -> None:
        self.columns = {str(name): _as_arrow(str(name), frame[name]) for name in frame.columns if name != JOINID}
        self.columns[JOINID] = pa.array(joinids)
        others = {name: pa.null() for name in column_names}
        self.schema = pa.schema({**others, **{name: column.type for name, column in self.columns.items()}})

    def get_enumeration_values(self, column_names: Sequence[str]) -> dict[str, pa.Array]:
        """Return the categories of columns."""
        return {name: self.columns[name].dictionary for name in column_names}


def _as_arrow(name: str, column: pd.Series[Any]) -> pa.Array | pa.ChunkedArray:
    """Return a column in Arrow's types; NaN is a missing value."""
    if column.dtype == np.float16:
        column = column.astype(np.float32)  # Arrow cannot compare float16
    with raising(SelectionError, f"column {name!r} has values that a filter cannot compare"):
        array = pa.array(column, from_pandas=True)
    if pa.types.is_null(array.type):  # all values are missing
        return array.cast(pa.string())
    if pa.types.is_dictionary(array.type) and pa.types.is_null(array.type.value_type):
        return pa.DictionaryArray.from_arrays(array.indices, array.dictionary.cast(pa.string()))
    return array


def _meets(node: ast.expr, table: _Table) -> npt.NDArray[np.bool_]:
    """Return which rows meet a fitted expression: comparisons that are joined by ``and`` and ``or``."""
    if isinstance(node, ast.Compare):
        [(left, operator, right)] = comparisons(node)
        column = table.columns[str(column_of(left))]
        return _rows_that_meet(column, operator, constants(right))
    assert isinstance(node, (ast.BoolOp, ast.BinOp)), ast.dump(node)
    parts = node.values if isinstance(node, ast.BoolOp) else [node.left, node.right]
    combine = np.logical_and if isinstance(node.op, (ast.And, ast.BitAnd)) else np.logical_or
    return reduce(combine, (_meets(part, table) for part in parts))


def _rows_that_meet(
    column: pa.Array | pa.ChunkedArray, operator: ast.cmpop, values: list[Any]
) -> npt.NDArray[np.bool_]:
    """Return which rows of a column meet a comparison; categories are compared once, not row by row."""
    if values == [None]:
        return np.asarray(column.is_null() if isinstance(operator, ast.Eq) else column.is_valid())
    if not pa.types.is_dictionary(column.type):
        met = _compare(column, operator, values)
    else:
        categories = column.dictionary
        if isinstance(operator, ORDER):
            values = [categories.to_pylist().index(values[0])]
            categories = pa.array(np.arange(len(categories)))
        met = pc.take(_compare(categories, operator, values), column.indices)
    return np.asarray(pc.and_(pc.fill_null(met, False), column.is_valid()))


def _compare(array: pa.Array | pa.ChunkedArray, operator: ast.cmpop, values: list[Any]) -> pa.Array | pa.ChunkedArray:
    """Compare values with constants; the result of a missing value is undefined."""
    if is_text(array.type):
        array = array.cast(pa.large_binary())  # the order of TileDB-SOMA is that of bytes
        others = pa.array([value.encode() if isinstance(value, str) else value for value in values], array.type)
    else:
        if pa.types.is_timestamp(array.type):
            array = array.cast(pa.int64())
        others = pa.array(np.array(values, array.type.to_pandas_dtype()), array.type)
    if not isinstance(operator, (ast.In, ast.NotIn)):
        return COMPARE[type(operator)](array, others[0])
    met = pc.is_in(array, value_set=others)
    return pc.invert(met) if isinstance(operator, ast.NotIn) else met
