"""The names of the genes of a selection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfeed._checks import abbreviate, missing_from, ordered, shortened, suggest, warn_user
from cellfeed._joinids import JOINID, IntArray
from cellfeed.errors import PlanError, SelectionError
from cellfeed.select.selection import Selection

NAMES = ("feature_id", "var_id", "feature_name")
"""Columns of var that name genes: that of a Census; the index, as tiledbsoma.io writes it; and the symbols."""


def gene_list(genes: Any) -> list[str]:
    """Return the names of genes as a list; raise a SelectionError unless all are distinct text."""
    names: list[str] = ordered("genes", genes)
    if not names:
        raise SelectionError("genes=[] selects nothing; give the names of one gene or more")
    others = [gene for gene in names if not isinstance(gene, str)]
    if others:
        raise SelectionError(f"genes={shortened(repr(names))} must be names, as text; {others[0]!r} is not")
    if len(set(names)) != len(names):
        raise SelectionError(f"genes={abbreviate(names)} must be a list of names, none of them twice")
    return names


def find_genes(
    genes: Sequence[str], var_names: Sequence[str] | npt.NDArray[Any], missing: str = "error"
) -> npt.NDArray[np.int64]:
    """Return the index of each gene in ``var_names``; -1 for a missing gene if ``missing="zeros"``."""
    if missing not in ("error", "zeros"):
        raise PlanError(f'missing={missing!r} must be "error" or "zeros"')
    genes = gene_list(genes)
    index_of: dict[str, int] = {}
    wanted, repeated = set(genes), []
    for k, name in enumerate(var_names):
        if name in wanted and index_of.setdefault(name, k) != k:
            repeated.append(name)
    if repeated:
        raise SelectionError(
            f"genes {abbreviate(repeated)} stand for several columns each; name genes by a column of unique values, "
            f"such as feature_id"
        )
    absent = [name for name in genes if name not in index_of]
    if absent:
        message = f"{len(absent)} of {len(genes)} genes are not in the store: {abbreviate(absent)}"
        if missing == "error" or len(absent) == len(genes):
            raise SelectionError(
                f'{message}; leave them out, give the column of var that has these names, or take missing="zeros"'
            )
        warn_user(f"{message}; their columns are zeros")
    return np.array([index_of.get(name, -1) for name in genes], np.int64)


def read_genes(selection: Selection, var_column: str | None = None) -> npt.NDArray[Any]:
    """Read the name of each selected gene, in the order of their joinids.

    Parameters
    ----------
    var_column
        The column of var that names genes; by default the first of :data:`NAMES` that var has.

    Returns
    -------
    Text, dtype object, shape (n_vars,); ``None`` for a gene without a name.
    """

    def choose(known: Sequence[str]) -> list[str]:
        chosen = next((name for name in NAMES if name in known), None) if var_column is None else var_column
        if chosen is None or chosen not in known:
            absent = f"no column {chosen!r}" if chosen else f"none of the columns {', '.join(NAMES)}"
            raise SelectionError(f"var has {absent}; give another var_column: {suggest(var_column or NAMES[0], known)}")
        return [chosen]

    return as_names(selection.source.read_var(selection.var_joinids, "names of genes", choose).iloc[:, 0])


def as_names(column: pd.Series[Any]) -> npt.NDArray[Any]:
    """Return a column as text, dtype object; ``None`` for a missing value."""
    values = column.astype(object)
    return np.array([str(name) if there else None for name, there in zip(values, values.notna(), strict=True)], object)


def find_selected(
    selection: Selection, genes: Sequence[str], var_column: str | None, missing: str
) -> tuple[IntArray, npt.NDArray[Any]]:
    """Find genes by name in the selection.

    Returns
    -------
    The index of each gene among the selected genes, int64, -1 for a missing gene if ``missing="zeros"``; and the names
    of all selected genes.

    Raises
    ------
    SelectionError
        If genes are missing, or if a name stands for several. The message says which other columns of var have the
        missing names.
    """
    names = read_genes(selection, var_column)
    try:
        return find_genes(genes, names, missing), names
    except SelectionError as error:
        absent = missing_from(genes, names.tolist())
        counts = _count_in_columns(selection, absent) if absent else {}
        if not counts:
            raise
        shown = ", ".join(f"{column!r} ({n} of {len(absent)})" for column, n in counts.items())
        best = max(counts, key=lambda column: counts[column])
        raise SelectionError(f"{error}. Var holds them in {shown}: give var_column={best!r}") from None


def _count_in_columns(selection: Selection, names: Sequence[str]) -> dict[str, int]:
    """Return how many of the names each column of var has, without columns that have none."""
    var = selection.source.read_var(selection.var_joinids, "names of genes", lambda known: known)
    counts = {name: len(set(names) & set(var[name].dropna().astype(str))) for name in var if name != JOINID}
    return {name: n for name, n in counts.items() if n}


def name_columns(selection: Selection, var_column: str | None = None) -> npt.NDArray[Any]:
    """Read the name of each column of X, before any transform; a missing gene keeps its name in ``select_genes``."""
    if selection.column_transform is None:
        return read_genes(selection, var_column)
    genes = np.array(selection.column_transform.genes, dtype=object)
    if var_column is None:
        return genes
    source = selection.column_transform.source  # (n_columns,): indices of selected genes, -1 for missing ones
    return np.where(source >= 0, read_genes(selection, var_column)[np.maximum(source, 0)], genes)


def identify_columns(selection: Selection, var_column: str | None = None) -> list[str]:
    """Return the names of :func:`name_columns`, or the joinids of the genes if var has no column of names."""
    try:
        return [str(name) for name in name_columns(selection, var_column)]
    except SelectionError:
        if var_column is not None:
            raise
        return [str(joinid) for joinid in selection.var_joinids]
