"""Reads columns of obs and var of AnnData, and the names of cells and genes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy.typing as npt
import pandas as pd

from cellfeed._checks import suggest
from cellfeed.errors import SelectionError
from cellfeed.sources.anndata.files import AnnDataFile, attribute, length_of
from cellfeed.sources.anndata.sealing import check_stored, is_sealed
from cellfeed.sources.redact import reraise_as


class Columns(NamedTuple):
    """The names in a data frame: that of its index (``obs_names`` or ``var_names``), and those of its columns."""

    index_name: str
    names: list[str]


def columns_of(root: Any, axis: str) -> Columns:
    """Return the names in ``obs``, ``var`` or ``raw/var`` of an open AnnData."""
    frame = root[axis]
    return Columns(attribute(frame, "_index"), [str(name) for name in attribute(frame, "column-order")])


def read_table(file: AnnDataFile, axis: str, columns: Sequence[str]) -> pd.DataFrame:
    """Read columns of ``obs``, ``var`` or ``raw/var``; the name of the index stands for the index.

    Returns
    -------
    The columns, in the order of ``columns``, with an index of row numbers. Text is categorical, except that of the
    index, whose values are mostly distinct.

    Raises
    ------
    SelectionError
        If there is no such column, or it cannot be read.
    """
    with file.open() as root:
        return _read_table(root, file, axis, columns)


def read_names(file: AnnDataFile, axis: str) -> npt.NDArray[Any]:
    """Read the index of ``obs``, ``var`` or ``raw/var``: names as text, dtype object."""
    with file.open() as root:
        index = columns_of(root, axis).index_name
        return _read_table(root, file, axis, [index])[index].to_numpy(object)


def _read_table(root: Any, file: AnnDataFile, axis: str, columns: Sequence[str]) -> pd.DataFrame:
    with reraise_as(SelectionError, f"{axis} of {str(file)!r} cannot be read", file.secrets):
        known = columns_of(root, axis)
        for name in columns:
            if name not in (known.index_name, *known.names):
                raise SelectionError(f"{axis} of {str(file)!r} has no column {name!r}; {_advice(root, name, known)}")
        n_rows = length_of(root, axis)
        frame = {name: _read_column(root[axis][name], n_rows, is_index=name == known.index_name) for name in columns}
        if is_sealed(root):
            for name in columns:
                check_stored(root[axis][name])
    return pd.DataFrame(frame, index=pd.RangeIndex(n_rows), copy=False)


def _advice(root: Any, name: str, known: Columns) -> str:
    if "obsm" in root and name in root["obsm"]:
        return f"{name!r} is in obsm, whose arrays are embeddings of several columns, not labels of obs"
    return suggest(name, [known.index_name, *known.names])


def _read_column(element: Any, n_rows: int, *, is_index: bool) -> pd.Series[Any]:
    from anndata.io import read_elem

    column = pd.Series(read_elem(element), copy=False)
    if len(column) != n_rows:
        raise ValueError(f"{element.name!r} has {len(column)} values, and the index has {n_rows}")
    if isinstance(column.dtype, pd.CategoricalDtype):
        if _is_text(column.cat.categories.dtype):
            column = column.cat.set_categories(column.cat.categories.astype(object), rename=True)
        return column.astype(object) if is_index else column
    if is_index:
        return column.astype(str).astype(object)
    return column.astype(object).astype("category") if _is_text(column.dtype) else column


def _is_text(dtype: Any) -> bool:
    return pd.api.types.is_object_dtype(dtype) or pd.api.types.is_string_dtype(dtype)
