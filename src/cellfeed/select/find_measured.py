"""Finds out which genes were measured in the cells of a selection: by a table of the user, or one in the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfeed._checks import abbreviate
from cellfeed._joinids import IntArray
from cellfeed.errors import SelectionError
from cellfeed.select.gene_names import NAMES, read_genes
from cellfeed.select.labels import known_columns, read_obs_column
from cellfeed.select.measured import Measured, Table
from cellfeed.select.selection import Selection
from cellfeed.select.vocabulary import Vocabulary, plain_values

DATASET = "dataset_id"
"""The column of obs with the data set of each cell, as in a Census."""

GIVE = "give one: measured=pandas.DataFrame(..., index=values of a column of obs, columns=names of genes)"
"""How a user names the genes that were measured."""

ReadTable = Callable[[list[Any], IntArray], Table]
"""Receives the labels of groups, and var joinids; returns which genes were measured: shape (n_groups, n_genes)."""


def with_measured(selection: Selection, measured: Any, read: ReadTable | None) -> Selection:
    """Return a selection whose minibatches say which genes were measured.

    Parameters
    ----------
    measured
        ``False`` returns the selection unchanged; ``True`` reads the table of the store; or a table of the user.
    read
        Reads the table of the store for values of ``dataset_id``; ``None`` if the kind of store has no such table.
    """
    if measured is False:
        return selection
    if measured is not True:
        return replace(selection, measured=find_in_table(selection, measured))
    if read is None:
        raise SelectionError(f"measured=True: an AnnData has no table of the genes that were measured; {GIVE}")
    return replace(selection, measured=find_measured(selection, DATASET, read))


def find_measured(selection: Selection, column: str, read: ReadTable) -> Measured:
    """Return which genes of a selection were measured in its cells.

    Parameters
    ----------
    column
        The column of obs that divides the cells into groups.
    read
        Returns the rows of these groups.

    Raises
    ------
    SelectionError
        If obs has no such column, or cells have no value in it.
    """
    values = read_obs_column(selection, column)
    if n_missing := int(values.isna().sum()):
        raise SelectionError(
            f"measured: {n_missing} of {len(values)} cells have no value of {column!r}, so that it is unknown which "
            f'genes were measured in them; exclude them: obs_query="{column} != None"'
        )
    groups = Vocabulary(values)
    return Measured(read(groups.values.tolist(), selection.var_joinids), groups.codes(values))


def find_in_table(selection: Selection, table: pd.DataFrame) -> Measured:
    """Return which genes of a selection were measured in its cells, according to a table of a user.

    Parameters
    ----------
    table
        Its index holds values of the column of obs that the index names, by default ``dataset_id``; its columns are
        names of genes, or var joinids; its values are True or False, or 1 or 0.

    Raises
    ------
    SelectionError
        If the table lacks a group of cells or a gene, has one of them twice, or holds other values.
    """
    if not isinstance(table, pd.DataFrame):
        raise SelectionError(
            f"measured={table!r} must be True, or a pandas.DataFrame with a row per data set and a column per gene"
        )
    column = DATASET if table.index.name is None else str(table.index.name)
    for axis, names in (("index", table.index), ("columns", table.columns)):
        if not names.is_unique:
            raise SelectionError(
                f"measured: {names[names.duplicated()].tolist()[0]!r} is in the {axis} of the table twice"
            )
    values = _as_bool(table)
    columns = _find_columns(selection, table.columns)

    def read(labels: list[Any], _: IntArray) -> Table:
        row_of = {label: row for row, label in enumerate(plain_values(table.index))}
        if absent := [label for label in labels if label not in row_of]:
            raise SelectionError(
                f"measured: the table has no row for {len(absent)} of the {len(labels)} values of {column!r} in obs: "
                f"{abbreviate(absent)}; add them, or name the column of obs that the index holds: "
                f"table.rename_axis(...)"
            )
        rows = np.array([row_of[label] for label in labels], np.int64)
        return values[np.ix_(rows, columns)]

    return find_measured(selection, column, read)


def _as_bool(table: pd.DataFrame) -> Table:
    values = table.to_numpy()
    if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise SelectionError(
            "measured: the values of the table must be True or False, or 1 or 0, none of them missing; if they are: "
            "measured=table.astype(bool)"
        )
    return values.astype(bool)


def _find_columns(selection: Selection, columns: pd.Index[Any]) -> IntArray:
    """Return the column of a table for each gene of a selection."""
    if columns.dtype.kind in "iu":
        return _places(columns, selection.var_joinids, "soma_joinid")
    known = known_columns(selection.source.read_var)
    genes = {name: read_genes(selection, name) for name in NAMES if name in known}
    if not genes:
        raise SelectionError(
            f"measured: var has none of the columns {', '.join(NAMES)}; give var joinids as columns of the table"
        )
    best = max(genes, key=lambda name: int(np.isin(genes[name].astype(str), columns.astype(str)).sum()))
    return _places(columns, genes[best], best)


def _places(columns: pd.Index[Any], genes: npt.NDArray[Any], name: str) -> IntArray:
    places = columns.get_indexer(pd.Index(genes))
    if absent := genes[places < 0].tolist():
        raise SelectionError(
            f"measured: the table has no column for {len(absent)} of {len(genes)} genes, by {name!r} of var: "
            f"{abbreviate(absent)}; add them, with False if they were not measured"
        )
    return np.asarray(places, np.int64)
