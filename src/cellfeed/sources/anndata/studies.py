"""Makes one source of one or several AnnData: the cells one after another, the genes joined by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy.typing as npt

from cellfeed.errors import SelectionError
from cellfeed.select.gene_names import as_names
from cellfeed.sources.anndata.axes import JoinedTables
from cellfeed.sources.anndata.files import AnnDataFile, anndata_files
from cellfeed.sources.anndata.joins import How, check_same_var, join_genes, study_names
from cellfeed.sources.anndata.layers import Counts, find_counts
from cellfeed.sources.anndata.parts import Part
from cellfeed.sources.anndata.query import make_source, open_parts
from cellfeed.sources.anndata.source import AnnDataSource, geometry_of
from cellfeed.sources.anndata.tables import read_names, read_table
from cellfeed.sources.redact import public_uri


class Study(NamedTuple):
    """One path of a user, with its AnnData, several of a collection, and the layer that is read."""

    path: str
    files: tuple[AnnDataFile, ...]
    layer: Counts


def find_studies(paths: Sequence[str | os.PathLike[str]], layer: str | None, argument: str) -> list[Study]:
    """Return what is at each path; without a layer, the one that holds counts is taken.

    Raises
    ------
    SelectionError
        If a path stands twice, holds no AnnData, or its layers cannot be read; ``argument`` names it.
    """
    places = [os.fspath(path) for path in paths]
    if repeated := [place for k, place in enumerate(places) if place in places[:k]]:
        raise SelectionError(f"{argument}={repeated[0]!r} is given twice; its cells would be, too")
    studies = []
    for place in places:
        files = anndata_files(place, argument)
        check_same_var(files)
        studies.append(Study(place, files, find_counts(files[0]) if layer is None else Counts(layer, "it was given")))
    return studies


def source_of(
    studies: Sequence[Study], *, genes: How = "union", obs: How = "union", var_column: str | None = None
) -> AnnDataSource:
    """Return the source of the cells of studies; several are joined.

    Parameters
    ----------
    genes, obs
        Whether genes, and columns of obs, are those of any study (``"union"``) or of all (``"intersection"``).
    var_column
        Column of var that names the genes to join; ``None`` takes ``var_names``.
    """
    files = [file for study in studies for file in study.files]
    layers = [study.layer.name for study in studies for _ in study.files]
    name = " + ".join(public_uri(study.path) for study in studies)
    if len(studies) == 1:
        return make_source(name, files, layers[0], argument="layer")
    names = study_names([replace(study.files[0], path=study.path) for study in studies])
    of = [study for study, own in zip(names, studies, strict=True) for _ in own.files]
    parts, shape = open_parts(files, layers, "layer")
    joined = join_genes([_names_of_genes(part, var_column) for part in parts], of, genes)
    parts = tuple(replace(part, columns=columns) for part, columns in zip(parts, joined.columns, strict=True))
    shape = shape._replace(n_columns=len(joined.names))
    is_remote = any("://" in file.path for file in files)
    return AnnDataSource(name, parts, JoinedTables(parts, of, joined, obs), geometry_of(parts, shape), is_remote)


def _names_of_genes(part: Part, var_column: str | None) -> npt.NDArray[Any]:
    if var_column is None:
        return read_names(part.file, part.table("var"))
    return as_names(read_table(part.file, part.table("var"), [var_column])[var_column])
