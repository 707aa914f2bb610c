"""The genes of a join: the names of its columns, and the column of each gene of each dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cellfeed._checks import abbreviate, missing_from, repeated
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError, SelectionError
from cellfeed.rows.columns import Columns
from cellfeed.select.gene_names import gene_list, name_columns
from cellfeed.select.selection import Selection

Names = npt.NDArray[Any]
"""Shape (n_vars,), text: the name in the join of each gene of a dataset; ``None`` if it has no name."""

Orthologs = Mapping[str, Mapping[str, str]]
"""For each dataset, the name in the join of some of its genes."""


class Placed(NamedTuple):
    """The genes of a dataset that are in a join.

    Attributes
    ----------
    positions
        int64, ascending: their positions among the genes of the dataset.
    columns
        Their columns in the join.
    """

    positions: IntArray
    columns: Columns


def read_names(
    selections: Mapping[str, Selection], orthologs: Orthologs, var_columns: Mapping[str, str | None]
) -> dict[str, Names]:
    """Read the names of the genes of each dataset, in a column of var, and return those in the join."""
    return {
        name: _renamed(name, _names_by_position(name, selection, var_columns.get(name)), orthologs.get(name, {}))
        for name, selection in selections.items()
    }


def choose_genes(names: Mapping[str, Names], genes: str | Sequence[str]) -> list[str]:
    """Return the names of the columns of a join.

    Raises
    ------
    SelectionError
        If no gene is left, or a name is in none of the datasets.
    """
    own = [dict.fromkeys(name for name in each if name is not None) for each in names.values()]
    union = list(dict.fromkeys(name for each in own for name in each))
    if isinstance(genes, str):
        if genes not in ("intersection", "union"):
            raise PlanError(f'genes={genes!r} must be "intersection", "union", or a list of names')
        chosen = union if genes == "union" else [name for name in union if all(name in each for each in own)]
        if not chosen:
            shown = "; ".join(f"{key!r} has {abbreviate(list(each)[:3])}" for key, each in zip(names, own, strict=True))
            raise SelectionError(
                f"the datasets have no common genes ({shown}); give the names of orthologs as orthologs=, or the "
                f'column of var that has common names as var_column=, or genes="union"'
            )
        return chosen
    chosen = gene_list(genes)
    absent = missing_from(chosen, union)
    if absent:
        raise SelectionError(
            f"{len(absent)} of {len(chosen)} genes are in none of the datasets: {abbreviate(absent)}; leave them out, "
            f"or give the column of var that has these names as var_column="
        )
    return chosen


def place_genes(dataset: str, names: Names, chosen: Sequence[str]) -> Placed:
    """Return the genes of a dataset that are in the join, with their columns.

    Raises
    ------
    SelectionError
        If the dataset has none of them, or a name stands for several.
    """
    column_of = {name: column for column, name in enumerate(chosen)}
    positions = np.array([k for k, name in enumerate(names) if name in column_of], np.int64)
    own = names[positions].tolist()
    if not own:
        raise SelectionError(f"{dataset!r} has none of the {len(chosen)} genes of the join: {abbreviate(chosen[:3])}")
    twice = repeated(own)
    if twice:
        raise SelectionError(
            f"{dataset!r} has several genes of the same name: {abbreviate(twice)}; name genes by a column of var with "
            f"unique values, such as var_column='feature_id', or give orthologs= of which none is repeated"
        )
    return Placed(positions, Columns(np.array([column_of[name] for name in own], np.uint32), len(chosen)))


def _names_by_position(dataset: str, selection: Selection, var_column: str | None) -> Names:
    """Return the name of each selected gene; ``select_genes`` may have left one out that is selected."""
    try:
        names = name_columns(selection, var_column)
    except SelectionError as error:
        raise SelectionError(f"{dataset!r}: {error}") from error
    if selection.column_transform is None:
        return names
    by_position = np.full(selection.n_vars, None, object)
    source = selection.column_transform.source  # (n_columns,): indices of selected genes, -1 for missing ones
    by_position[source[source >= 0]] = names[source >= 0]
    return by_position


def _renamed(dataset: str, names: Names, orthologs: Mapping[str, str]) -> Names:
    """Return the names of genes in the join."""
    if orthologs and not set(orthologs) & set(names):
        raise SelectionError(
            f"orthologs[{dataset!r}] has none of the genes of the dataset: it begins with "
            f"{abbreviate(list(orthologs)[:3])}, and the dataset with {abbreviate(names[:3].tolist())}; give names of "
            f"the same kind, or the column of var that holds them as var_column="
        )
    return np.array([orthologs.get(name, name) for name in names], object)
