"""Makes a :class:`Selection` of AnnData and a query: reads the needed columns of obs and var once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cellfeed._checks import check_name, shortened
from cellfeed._digests import digest_of_names
from cellfeed._joinids import JOINID, IntArray, JoinIds
from cellfeed.errors import SelectionError
from cellfeed.select.content import NOTHING_MORE, Content
from cellfeed.select.encoders import Encoder
from cellfeed.select.filter_expression import columns_of_filter, given_filter
from cellfeed.select.frame_filter import matching_rows
from cellfeed.select.obs_columns import ObsColumns
from cellfeed.select.row_figures import NNZ, figures_of
from cellfeed.select.selection import FurtherMatrix, Selection
from cellfeed.sources.anndata.axes import Tables, known_among
from cellfeed.sources.anndata.embeddings import find_obsm, read_obsm
from cellfeed.sources.anndata.files import AnnDataFile
from cellfeed.sources.anndata.layers import find_layer
from cellfeed.sources.anndata.parts import Part, open_matrix
from cellfeed.sources.anndata.provenance import recorded_dtype
from cellfeed.sources.anndata.source import AnnDataSource, MatrixShape, geometry_of


class Query(NamedTuple):
    """A query of obs or var, without the import of ``tiledbsoma``, whose ``AxisQuery`` has these attributes."""

    value_filter: str | None = None
    coords: tuple[Any, ...] = ()


def select(
    source: AnnDataSource,
    obs_query: Any,
    var_query: Any,
    obs_column_names: Sequence[str] = (),
    encoders: Sequence[Encoder] | None = None,
    *,
    content: Content = NOTHING_MORE,
    allow_empty: bool = False,
) -> Selection:
    """Select cells and genes of a source.

    Parameters
    ----------
    obs_query, var_query
        Objects with the attributes ``value_filter`` and ``coords``, as of ``tiledbsoma.AxisQuery``.
    """
    columns = ObsColumns.from_arguments(obs_column_names, encoders)
    matrices, shapes = _further(source, content), find_obsm(source.parts, content)
    known = source.tables.known("obs")
    filtered = [column for column in columns_of_filter(obs_query.value_filter) if column != JOINID]
    figures = _figures(source, known)
    needed = [*columns.needed([*known, JOINID]), *content.needed([*known, JOINID])]
    wanted = list(dict.fromkeys([*needed, *figures, *known_among(filtered, known)]))
    frame, joinids = source.tables.read("obs", wanted)
    rows = matching_rows(obs_query, frame, joinids, column_names=known)
    var_rows = _select_genes(source, var_query)
    frame = frame.iloc[rows].reset_index(drop=True)
    frame[JOINID] = joinids[rows]
    nnz, _, _ = figures_of(frame[figures])
    selection = Selection(
        experiment_uri=source.name,
        measurement_name="RNA",
        X_name=source.layer,
        source=source,
        joinids=JoinIds.from_sorted(rows),
        var_joinids=var_rows,
        encoders={},
        codes={},
        soma_joinids=None if np.array_equal(joinids[rows], rows) else joinids[rows],
        nnz=nnz,
        content=content,
        obsm=read_obsm(source.parts, content, shapes, rows),
        matrices=matrices,
        obs_values=content.numbers(frame),
        queries=(_described(obs_query), _described(var_query)),
        all_genes=len(var_rows) == source.geometry.n_columns,
    )
    if not allow_empty:
        _check_not_empty(selection, obs_query, var_query)
    return columns.encode(selection, frame)


def _further(source: AnnDataSource, content: Content) -> tuple[FurtherMatrix, ...]:
    """Return the layers that are read beside X."""
    if content.measurements:
        raise SelectionError(
            f"measurements={dict(content.measurements)!r}: an AnnData has one measurement; leave it out"
        )
    matrices = []
    for name in content.layers:
        made = make_source(source.name, [part.file for part in source.parts], name, argument="layers: a name")
        if made.parts[0].table("var") != source.parts[0].table("var"):
            raise SelectionError(
                f"layers: {made.layer!r} has other genes than {source.layer!r}, which is X; give it as X_name"
            )
        matrices.append(
            FurtherMatrix("layers", name, "RNA", made.layer, source if made.layer == source.layer else made)
        )
    return tuple(matrices)


def make_source(
    name: str, files: Sequence[AnnDataFile], layer: str, dtype: str | None = None, *, argument: str = "X_name"
) -> AnnDataSource:
    """Return the source of a layer of one AnnData, or of several, all with the same genes.

    Parameters
    ----------
    name
        The path or URI, without credentials.
    dtype
        The type of the values of X; by default the one that the record of a copy names, or the stored type.
    argument
        Names the layer in errors.
    """
    check_name(argument, layer)
    parts, shape = open_parts(files, [layer] * len(files), argument)
    shape = shape._replace(dtype=np.dtype(dtype or recorded_dtype(parts[0].record, parts[0].layer) or shape.dtype))
    is_remote = "://" in files[0].path
    identity = None if is_remote else digest_of_names([str(part.stamp) for part in parts])
    return AnnDataSource(name, parts, Tables(parts), geometry_of(parts, shape), is_remote, identity=identity)


def open_parts(
    files: Sequence[AnnDataFile], layers: Sequence[str], argument: str
) -> tuple[tuple[Part, ...], MatrixShape]:
    """Return a part per file, and what their matrices have in common; ``argument`` names the layer in errors."""
    parts, shapes = [], []
    for file, name in zip(files, layers, strict=True):
        layer = find_layer(file, name, argument).name
        matrix = open_matrix(file, layer)
        parts.append(Part.of(file, layer, matrix))
        shapes.append(MatrixShape(matrix.n_columns, matrix.dtype, matrix.chunk_size))
        matrix.close()
    n_columns, dtypes, chunk_sizes = zip(*shapes, strict=True)
    return tuple(parts), MatrixShape(max(n_columns), np.result_type(*dtypes), max(chunk_sizes))


def _figures(source: AnnDataSource, known: Sequence[str]) -> list[str]:
    """Return the column with the number of values of each row, if cellfeed wrote the AnnData: others may mean else.

    Sums are not compared: the chunks have checksums.
    """
    is_own = all(part.columns is None and part.record.get("figures") == part.layer for part in source.parts)
    return known_among([NNZ], known) if is_own else []


def _select_genes(source: AnnDataSource, var_query: Any) -> IntArray:
    known = source.tables.known("var")
    frame, joinids = source.tables.read("var", known_among(columns_of_filter(var_query.value_filter), known))
    return matching_rows(var_query, frame, joinids, argument="var_query", column_names=known)


def _described(query: Any) -> Any:
    coords = query.coords
    return {"value_filter": given_filter(query.value_filter), "coords": repr(coords) if coords else None}


def _check_not_empty(selection: Selection, obs_query: Any, var_query: Any) -> None:
    for axis, query, n in (("obs", obs_query, selection.n_obs), ("var", var_query, selection.n_vars)):
        if n == 0:
            text = given_filter(query.value_filter)
            shown = f": {shortened(repr(text))}" if text else ""
            raise SelectionError(f"{axis}_query selects nothing{shown}; allow_empty=True makes an empty dataset")
