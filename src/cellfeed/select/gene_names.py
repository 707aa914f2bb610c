"""The names of a selection's genes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._checks import abbreviate, missing_from, ordered, shortened, suggest, warn_user
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError, SelectionError
from cellfeed.select.selection import Selection

JOINID = "soma_joinid"

NAMES = ("feature_id", "var_id", "feature_name")
"""Columns of var that name genes: that of a Census; the index, as tiledbsoma.io writes it; and the symbols."""


def gene_list(genes: Any) -> list[str]:
    """Return the names of genes as a list, in their order; refuse what is no name, and names that come twice."""
    names: list[str] = ordered("genes", genes)
    if not names:
        raise SelectionError("genes=[] selects nothing; give the names of one gene or more")
    others = [gene for gene in names if not isinstance(gene, str)]
    if others:
        raise SelectionError(f"genes={shortened(repr(names))} must be names, as text; {others[0]!r} is none")
    if len(set(names)) != len(names):
        raise SelectionError(f"genes={abbreviate(names)} must be a list of names, none of them twice")
    return names


def find_genes(
    genes: Sequence[str], among: Sequence[str] | npt.NDArray[Any], missing: str = "error"
) -> npt.NDArray[np.int64]:
    """Return the place of each gene among the columns, -1 for missing ones where those are to be zeros."""
    if missing not in ("error", "zeros"):
        raise PlanError(f'missing={missing!r} must be "error" or "zeros"')
    genes = gene_list(genes)
    place: dict[str, int] = {}
    wanted, twice = set(genes), []
    for k, name in enumerate(among):
        if name in wanted and place.setdefault(name, k) != k:
            twice.append(name)
    if twice:
        raise SelectionError(
            f"genes {abbreviate(twice)} stand for several columns each; name genes by a column of unique values, "
            f"such as feature_id"
        )
    absent = [name for name in genes if name not in place]
    if absent:
        told = f"{len(absent)} of {len(genes)} genes are not in the store: {abbreviate(absent)}"
        if missing == "error" or len(absent) == len(genes):
            raise SelectionError(
                f'{told}; leave them out, name genes by the right column of var, or take missing="zeros"'
            )
        warn_user(f"{told}; their columns are zeros")
    return np.array([place.get(name, -1) for name in genes], np.int64)


def read_genes(selection: Selection, column: str | None = None) -> npt.NDArray[Any]:
    """Read the name of each selected gene, in the order of their joinids.

    Returns
    -------
    Text, dtype object, shape (n_vars,), of the column of var, by default the first of :data:`NAMES` that is there;
    ``None`` for a gene without a name.
    """

    def choose(known: Sequence[str]) -> str:
        chosen = next((name for name in NAMES if name in known), None) if column is None else column
        if chosen is None or chosen not in known:
            asked = f"no column {chosen!r}" if chosen else f"none of the columns {', '.join(NAMES)}"
            raise SelectionError(f"var has {asked}; name genes by another: {suggest(column or NAMES[0], known)}")
        return chosen

    names = selection.source.read_var(selection.var_joinids, "names of genes", choose).astype(object)
    return np.array(
        [str(name) if there else None for name, there in zip(names, names.notna(), strict=True)], dtype=object
    )


def find_selected(
    selection: Selection, genes: Sequence[str], column: str | None, missing: str
) -> tuple[IntArray, npt.NDArray[Any]]:
    """Find genes by name among those that are selected.

    Returns
    -------
    The place of each gene, int64, -1 for those that are missing and are to be zeros; and the names of all that are
    selected.

    Raises
    ------
    SelectionError
        If genes are missing, or a name stands for several; if another column of var holds the names, it says so.
    """
    names = read_genes(selection, column)
    try:
        return find_genes(genes, names, missing), names
    except SelectionError as error:
        absent = missing_from(genes, names.tolist())
        held = _columns_that_hold(selection, absent) if absent else {}
        if not held:
            raise
        shown = ", ".join(f"{other!r} ({n} of {len(absent)})" for other, n in held.items())
        other = max(held, key=lambda name: held[name])
        raise SelectionError(f"{error}. Var holds them in {shown}: give var_column={other!r}") from None


def _columns_that_hold(selection: Selection, names: Sequence[str]) -> dict[str, int]:
    """Count the names that each column of var holds, for those that hold any."""
    columns: list[str] = []

    def note(known: Sequence[str]) -> str:
        columns.extend(name for name in known if name != JOINID)
        return JOINID

    selection.source.read_var(selection.var_joinids, "names of columns", note)
    found = {}
    for column in columns:
        values = selection.source.read_var(selection.var_joinids, "names of genes", partial(_return, column))
        found[column] = len(set(names) & set(values.dropna().astype(str)))
    return {column: n for column, n in found.items() if n}


def _return(column: str, _known: Sequence[str]) -> str:
    return column


def name_columns(selection: Selection, column: str | None = None) -> npt.NDArray[Any]:
    """Read the name of each column of X, before any transform; a missing gene has the name it was asked by."""
    if selection.column_transform is None:
        return read_genes(selection, column)
    asked = np.array(selection.column_transform.genes, dtype=object)
    if column is None:
        return asked
    source = selection.column_transform.source
    return np.where(source >= 0, read_genes(selection, column)[np.maximum(source, 0)], asked)


def identify_columns(selection: Selection, column: str | None = None) -> list[str]:
    """Name the columns of X as :func:`name_columns` does; by their joinids where var has no names."""
    try:
        return [str(name) for name in name_columns(selection, column)]
    except SelectionError:
        if column is not None:
            raise
        return [str(joinid) for joinid in selection.var_joinids]
