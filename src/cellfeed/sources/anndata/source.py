"""The source of AnnData: reads a layer of X, and columns of obs and var, of one store or of several parts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cellfeed._geometry import ArrayGeometry
from cellfeed._joinids import JOINID, IntArray, find_in
from cellfeed.plan.planner import Resources
from cellfeed.rows.row_builder import GenePlaces, GeneTable
from cellfeed.select.selection import Selection
from cellfeed.sources.anndata.axes import Tables
from cellfeed.sources.anndata.chunks.matrices import Matrix
from cellfeed.sources.anndata.chunks.reader import AnnDataReader
from cellfeed.sources.anndata.parts import Axis, Part
from cellfeed.sources.retry import NO_RETRY, Retries
from cellfeed.sources.source import ColumnChoice, OpenReader
from cellfeed.stats import Meter

CHUNKS_PER_BLOCK = 16
"""Least number of chunks in a row-block: a read unpacks about one chunk more than it needs."""

MIN_BLOCK_ROWS, MAX_BLOCK_ROWS = 64, 4096

MAX_BLOCK_VALUES = 1 << 23


@dataclass(frozen=True, eq=False)
class AnnDataSource:
    """A matrix with its obs and var: a :class:`~cellfeed.sources.source.Source`.

    The joinid of a cell is the number of its row, counted over the parts; the joinid of a gene is the number of its
    column.

    Attributes
    ----------
    name
        The path or URI, without credentials.
    parts
        The AnnData, whose rows follow each other.
    tables
        obs and var of the parts.
    geometry
        Layout of the values of X.
    is_remote
        Whether the parts are on an object store.
    identity
        Identifier of the files of X; ``None`` on an object store.
    """

    name: str
    parts: tuple[Part, ...]
    tables: Tables
    geometry: ArrayGeometry
    is_remote: bool
    timestamp_ms: int = 0
    identity: str | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def layer(self) -> str:
        """Name of the matrix; the parts of several studies may have it under different names."""
        return " + ".join(dict.fromkeys(part.layer for part in self.parts))

    @property
    def bounds(self) -> IntArray:
        """int64, shape (n_parts + 1,): the first row of each part, and the number of rows."""
        return np.cumsum([0, *(part.n_rows for part in self.parts)]).astype(np.int64)

    def retries(self, *, n_threads: int, meter: Meter) -> Retries:
        """Return an object that tries each request once: zarr's stores repeat requests themselves."""
        return NO_RETRY

    def read_obs(self, joinids: IntArray, what: str, choose: ColumnChoice) -> pd.DataFrame:
        """Return columns of obs for ascending joinids, in their order; ``what`` names the values in errors."""
        return self._read_columns("obs", joinids, choose)

    def read_var(self, joinids: IntArray, what: str, choose: ColumnChoice) -> pd.DataFrame:
        """Return columns of var for ascending joinids, in their order; ``what`` names the values in errors."""
        return self._read_columns("var", joinids, choose)

    def _read_columns(self, axis: Axis, rows: IntArray, choose: ColumnChoice) -> pd.DataFrame:
        columns = list(choose(list(dict.fromkeys([*self.tables.known(axis), JOINID]))))
        if len(rows) == 0:
            return pd.DataFrame(columns=columns, dtype=object)
        frame, joinids = self.tables.read(axis, columns)
        return frame.assign(**{JOINID: joinids})[columns].iloc[rows].reset_index(drop=True)

    def open_reader(
        self, selection: Selection, resources: Resources, *, verify: bool, meter: Meter, retries: Retries
    ) -> OpenReader:
        """Open a reader of the selected rows and genes. Checksums of chunks are always compared."""
        with contextlib.ExitStack() as opened:
            matrices: list[Matrix] = []
            for part in self.parts:
                matrices.append(part.open())
                opened.callback(matrices[-1].close)
            genes = [
                _gene_table(selection.var_joinids, matrix.n_columns, part.columns)
                for part, matrix in zip(self.parts, matrices, strict=True)
            ]
            reader = AnnDataReader(
                matrices,
                self.bounds,
                genes,
                resources.pool_dtype,
                name=self.name,
                check=lambda k: self.parts[k].check(),
                meter=meter,
            )
            opened.pop_all()
        return OpenReader(reader, resources.rows_per_file_read, resources.n_file_reads)


def _gene_table(var_joinids: IntArray, n_columns: int, columns: IntArray | None) -> GeneTable:
    """Return the place of each column of a matrix among the selected genes."""
    if columns is None:
        return GeneTable.from_joinids(var_joinids, n_columns)
    place = find_in(var_joinids, columns)
    table = np.where(place < 0, 0xFFFFFFFF, place).astype(np.uint32)
    return GeneTable(len(var_joinids), n_columns, GenePlaces(table, 0))


class MatrixShape(NamedTuple):
    """The number of columns of a matrix, the type of its values, and the values per chunk."""

    n_columns: int
    dtype: np.dtype[Any]
    chunk_size: int


def geometry_of(parts: Sequence[Part], shape: MatrixShape) -> ArrayGeometry:
    """Return the geometry of rows that are read in blocks of some chunks."""
    n_rows, nnz = sum(part.n_rows for part in parts), sum(part.nnz for part in parts)
    per_row = max(nnz / max(n_rows, 1), 1.0)
    values = min(CHUNKS_PER_BLOCK * shape.chunk_size, MAX_BLOCK_VALUES)
    extent = 1 << max(0, math.ceil(math.log2(values / per_row)))
    return ArrayGeometry(
        row_extent=min(max(extent, MIN_BLOCK_ROWS), MAX_BLOCK_ROWS),
        column_extent=max(shape.n_columns, 1),
        capacity=shape.chunk_size,
        n_rows=n_rows,
        n_columns=shape.n_columns,
        nnz=nnz,
        dtype=shape.dtype.name,
    )
