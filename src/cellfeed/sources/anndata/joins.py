"""Joins obs and var of several AnnData: the cells one after another, the genes by their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfeed._checks import abbreviate, warn_user
from cellfeed._joinids import IntArray
from cellfeed.errors import SelectionError
from cellfeed.sources.anndata.files import AnnDataFile, names_in
from cellfeed.sources.anndata.tables import read_names

How = Literal["union", "intersection"]


class JoinedGenes(NamedTuple):
    """The genes of several AnnData.

    ``names`` are in the order in which they are first seen. ``columns[k][j]`` is the index in ``names`` of gene ``j``
    of AnnData ``k``; -1 if the gene is left out.
    """

    names: npt.NDArray[Any]
    columns: list[IntArray]


def join_genes(names: Sequence[npt.NDArray[Any]], studies: Sequence[str], how: How) -> JoinedGenes:
    """Join genes by their names; ``studies`` names the AnnData in errors.

    Raises
    ------
    SelectionError
        If a name is missing or stands twice in one AnnData, or no gene is common to all.

    Examples
    --------
    >>> lung, liver = np.array(["ALB", "SFTPC"], object), np.array(["APOA1", "ALB"], object)
    >>> join_genes([lung, liver], ["lung", "liver"], "union")
    JoinedGenes(names=array(['ALB', 'SFTPC', 'APOA1'], dtype=object), columns=[array([0, 1]), array([2, 0])])
    """
    _check_how("genes", how)
    for study, own in zip(studies, names, strict=True):
        _check_distinct(own, study)
    joined = pd.Index(list(dict.fromkeys(chain.from_iterable(names))), dtype=object)
    if how == "intersection":
        joined = joined[np.all([joined.isin(own) for own in names], axis=0)]
    if len(joined) == 0:
        examples = "; ".join(f"{study}: {abbreviate(list(own[:2]))}" for study, own in zip(studies, names, strict=True))
        raise SelectionError(
            f"the AnnData have no gene in common ({examples}); name genes by a column of var that all of them share, "
            f'or give genes="union"'
        )
    return JoinedGenes(joined.to_numpy(), [joined.get_indexer(pd.Index(own)).astype(np.int64) for own in names])


def _check_distinct(names: npt.NDArray[Any], study: str) -> None:
    if n_missing := int(pd.isna(names).sum()):
        raise SelectionError(f"{n_missing} genes of {study!r} have no name; name genes by another column of var")
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        raise SelectionError(
            f"genes {abbreviate(repeated)} of {study!r} stand for several columns each; name genes by a column of "
            f"distinct values, such as feature_id, or rewrite the file after adata.var_names_make_unique()"
        )


def join_var(tables: Sequence[pd.DataFrame], genes: JoinedGenes) -> pd.DataFrame:
    """Return one table of var for joined genes: the values of a gene are those of the first AnnData that has it."""
    seen = np.zeros(len(genes.names), bool)
    firsts = []
    for table, columns in zip(tables, genes.columns, strict=True):
        new = columns >= 0
        new[new] = ~seen[columns[new]]
        seen[columns[new]] = True
        firsts.append(table[new])
    return join_tables(firsts, "union")


def join_tables(tables: Sequence[pd.DataFrame], how: How) -> pd.DataFrame:
    """Return the rows of tables one after another.

    The columns are those of any table (``"union"``), with missing values in the rows of tables without the column, or
    those of all tables (``"intersection"``). Categories are those of all tables, in the order in which they are first
    seen. A column stays ordered if its longest categories contain all others in the same order. A column of text in
    one table and numbers in another becomes text.

    Examples
    --------
    >>> lung = pd.DataFrame({"cell_type": pd.Categorical(["T cell"]), "n_genes": [312]})
    >>> liver = pd.DataFrame({"cell_type": pd.Categorical(["B cell"])})
    >>> join_tables([lung, liver], "union")
      cell_type  n_genes
    0    T cell      312
    1    B cell     <NA>
    """
    _check_how("obs", how)
    names = list(dict.fromkeys(chain.from_iterable(tables)))
    if how == "intersection":
        names = [name for name in names if all(name in table for table in tables)]
    lengths = [len(table) for table in tables]
    joined = {name: _join_column(str(name), [table.get(name) for table in tables], lengths) for name in names}
    return pd.DataFrame(joined, index=pd.RangeIndex(sum(lengths)), copy=False)


def _check_how(argument: str, how: str) -> None:
    if how not in ("union", "intersection"):
        raise SelectionError(f'{argument}={how!r} must be "union" or "intersection"')


def _join_column(name: str, parts: Sequence[pd.Series[Any] | None], lengths: Sequence[int]) -> pd.Series[Any]:
    given = [part for part in parts if part is not None]
    kinds = {_kind(part) for part in given} - {"empty"}
    if len(kinds) > 1:
        warn_user(f"column {name!r} holds {' and '.join(sorted(kinds))} in different files; the joined column is text")
    if len(kinds) < 2 and not any(isinstance(part.dtype, pd.CategoricalDtype) for part in given):
        return _join_values(parts, lengths)
    categorical = [None if part is None else part.astype("category") for part in parts]
    if len(kinds) > 1:
        categorical = [None if part is None else part.cat.rename_categories(str) for part in categorical]
    return _join_categories(categorical, lengths)


def _kind(column: pd.Series[Any]) -> str:
    """Return what a column holds, in words for messages."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        dtype = column.cat.categories.dtype
    if len(column) == 0 or (isinstance(column.dtype, pd.CategoricalDtype) and len(column.cat.categories) == 0):
        return "empty"
    if pd.api.types.is_bool_dtype(dtype):
        return "booleans"
    return "numbers" if pd.api.types.is_numeric_dtype(dtype) else "text"


def _join_values(parts: Sequence[pd.Series[Any] | None], lengths: Sequence[int]) -> pd.Series[Any]:
    """Join columns of numbers, of booleans or of text; integers and booleans with missing values are nullable."""
    given = [part for part in parts if part is not None]
    dtypes: list[Any] = [getattr(part.dtype, "numpy_dtype", part.dtype) for part in given if len(part)]
    dtype: Any = np.result_type(*dtypes) if dtypes else given[0].dtype
    if any(part is None or part.isna().any() for part, n in zip(parts, lengths, strict=True) if n):
        dtype = _nullable(dtype)
    missing = None if pd.api.types.is_object_dtype(dtype) else np.nan if isinstance(dtype, np.dtype) else pd.NA
    filled = [
        pd.Series(missing, index=range(n), dtype=dtype) if part is None else part.astype(dtype)
        for part, n in zip(parts, lengths, strict=True)
    ]
    return pd.concat(filled, ignore_index=True)


def _nullable(dtype: Any) -> Any:
    """Return the type of pandas that holds missing values beside integers or booleans; others hold them already."""
    kinds = {"b": "boolean", "i": f"Int{8 * dtype.itemsize}", "u": f"UInt{8 * dtype.itemsize}"}
    return pd.api.types.pandas_dtype(kinds[dtype.kind]) if dtype.kind in kinds else dtype


def _join_categories(parts: Sequence[pd.Series[Any] | None], lengths: Sequence[int]) -> pd.Series[Any]:
    given = [part for part in parts if part is not None]
    own = [list(part.cat.categories) for part in given]
    longest = max(own, key=len)
    place = {category: k for k, category in enumerate(longest)}
    is_ordered = all(part.cat.ordered for part in given) and all(
        set(one) <= set(place) and sorted(one, key=place.__getitem__) == one for one in own
    )
    categories = longest if is_ordered else list(dict.fromkeys(chain.from_iterable(own)))
    index = pd.Index(categories)
    codes = []
    for part, n in zip(parts, lengths, strict=True):
        if part is None:
            codes.append(np.full(n, -1, np.int64))
        else:
            new = np.append(index.get_indexer(part.cat.categories), -1)  # the last is the code of missing values
            codes.append(new[part.cat.codes.to_numpy()])
    return pd.Series(pd.Categorical.from_codes(np.concatenate(codes), index, ordered=is_ordered), copy=False)


def join_names(names: Sequence[npt.NDArray[Any]], studies: Sequence[str]) -> npt.NDArray[Any]:
    """Return the names of all cells: as they are if all are distinct, else each with its study.

    Examples
    --------
    >>> join_names([np.array(["AAAC", "AAAG"], object), np.array(["AAAC"], object)], ["lung", "liver"])
    array(['AAAC-lung', 'AAAG-lung', 'AAAC-liver'], dtype=object)
    """
    joined = np.concatenate(names)
    if len(names) == 1 or pd.Index(joined).is_unique:
        return joined
    return np.concatenate([own.astype(object) + f"-{study}" for own, study in zip(names, studies, strict=True)])


def study_names(files: Sequence[AnnDataFile]) -> list[str]:
    """Return a distinct name per file: the file's own, after as few of its folders as needed, else a number.

    Examples
    --------
    >>> study_names([AnnDataFile("/data/lung/cells.h5ad", "h5ad"), AnnDataFile("/data/liver/cells.h5ad", "h5ad")])
    ['lung/cells', 'liver/cells']
    """
    parts = [names_in(file.path) for file in files]
    names = [own[-1] for own in parts]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{own[-1]}-{k}" for k, own in enumerate(parts, start=1)]


def study_column(names: Sequence[str]) -> str:
    """Return a name for the column of studies in obs: ``study``, unless obs has such a column."""
    return next(name for name in ("study", *(f"study_{k}" for k in range(2, len(names) + 3))) if name not in names)


def check_same_var(files: Sequence[AnnDataFile]) -> None:
    """Raise a SelectionError unless the members of a collection have the same genes in the same order."""
    if len(files) < 2:
        return
    first = read_names(files[0], "var")
    for file in files[1:]:
        own = read_names(file, "var")
        if len(own) != len(first):
            differ = f"{len(own)} genes and {len(first)} genes"
        elif len(places := np.flatnonzero(own != first)):
            differ = f"at gene {places[0]} {own[places[0]]!r} and {first[places[0]]!r}"
        else:
            continue
        raise SelectionError(
            f"the members of a collection must have the same var, and {str(file)!r} and {str(files[0])!r} have "
            f"{differ}; write one zarr of all of them with `cellfeed copy`, which joins genes by name"
        )
