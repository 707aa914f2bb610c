"""The parts of an AnnData source: one matrix each, which is opened here."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from cellfeed._joinids import IntArray
from cellfeed.errors import ReadError, SelectionError
from cellfeed.sources.anndata.chunks.chunk_layout import layout_of
from cellfeed.sources.anndata.chunks.elements import Elements, PackedElements, SlicedElements
from cellfeed.sources.anndata.chunks.h5_chunks import inflated
from cellfeed.sources.anndata.chunks.matrices import CsrMatrix, DenseMatrix, Matrix
from cellfeed.sources.anndata.chunks.packed_chunks import find_library
from cellfeed.sources.anndata.chunks.store_files import LocalStoreFiles, RemoteStoreFiles, StoreFiles
from cellfeed.sources.anndata.files import AnnDataFile, is_group, var_of_layer
from cellfeed.sources.anndata.provenance import read_provenance
from cellfeed.sources.anndata.sealing import check_stored, is_sealed
from cellfeed.sources.redact import reraise_as

Axis = Literal["obs", "var"]


@dataclass(frozen=True, eq=False)
class Part:
    """One AnnData of a source.

    Attributes
    ----------
    file
        Where it is.
    layer
        Name of its matrix, such as ``"X"`` or ``"layers/counts"``.
    n_rows, nnz
        Rows and stored values of the matrix.
    stamp
        When the matrix was written; see :meth:`AnnDataFile.stamp`.
    record
        What cellfeed recorded of a copy; empty for other AnnData.
    columns
        int64, shape (n_columns,): the gene of the source that each column of the matrix is, -1 for a column that is
        left out; ``None`` if columns are genes.
    """

    file: AnnDataFile
    layer: str
    n_rows: int
    nnz: int
    stamp: int
    record: Mapping[str, Any]
    columns: IntArray | None = None

    @classmethod
    def of(cls, file: AnnDataFile, layer: str, matrix: Matrix) -> Self:
        """Return the part with a matrix that is open."""
        return cls(file, layer, matrix.n_rows, matrix.nnz, file.stamp(layer), read_provenance(file))

    def open(self) -> Matrix:
        """Open the matrix; the caller closes it."""
        self.check()
        try:
            matrix = open_matrix(self.file, self.layer)
        except (SelectionError, KeyError) as cause:
            raise ReadError(f"{self.layer} of {str(self.file)!r} cannot be read any more: {cause}") from cause
        if (matrix.n_rows, matrix.nnz) != (self.n_rows, self.nnz):
            matrix.close()
            raise self._changed()
        return matrix

    def check(self) -> None:
        """Raise an error if the matrix was deleted or written again since the cells were selected.

        Chunks of a deleted array would be taken for chunks of zeros, which zarr does not store.
        """
        if self.file.stamp(self.layer) != self.stamp:
            raise self._changed()

    def _changed(self) -> ReadError:
        return ReadError(
            f"{self.layer} of {str(self.file)!r} is not the one from which cells were selected: it was deleted or "
            f"written again; make the dataset again"
        )

    def table(self, axis: Axis) -> str:
        """Return the name of a data frame: the genes of the layer ``raw/X`` are in ``raw/var``."""
        return var_of_layer(self.layer) if axis == "var" else axis


def open_matrix(file: AnnDataFile, layer: str) -> Matrix:
    """Open a matrix of an AnnData; the caller closes it."""
    with contextlib.ExitStack() as stack, reraise_as(ReadError, f"{str(file)!r} cannot be read", file.secrets):
        root = stack.enter_context(file.open())
        element = root[layer]
        if not is_group(element):
            return DenseMatrix(element, stack.pop_all().close)
        n_rows, n_columns = map(int, element.attrs["shape"])
        nnz = int(element["data"].shape[0])
        _check_bounds(element, n_rows, nnz, f"{layer}/indptr of {str(file)!r}")
        arrays = [element[name] for name in ("indptr", "indices", "data")]
        indptr, indices, data = (_elements(file, array, is_complete=is_sealed(root)) for array in arrays)
        return CsrMatrix(indptr, indices, data, (n_rows, n_columns), nnz, stack.pop_all().close)


def _check_bounds(element: Any, n_rows: int, nnz: int, name: str) -> None:
    """Raise a ReadError unless ``indptr`` covers all values."""
    indptr, n_columns = element["indptr"], int(element["indices"].shape[0])
    n_bounds = int(indptr.shape[0])
    first, last = (int(indptr[0]), int(indptr[n_bounds - 1])) if n_bounds else (0, 0)
    if n_bounds != n_rows + 1 or first != 0 or last != nnz or n_columns != nnz:
        raise ReadError(
            f"{name} has {n_bounds:,} bounds for {n_rows:,} rows, begins with {first:,} and ends with {last:,}, and "
            f"there are {nnz:,} values of {n_columns:,} columns: the file is damaged"
        )


def _elements(file: AnnDataFile, array: Any, *, is_complete: bool) -> Elements:
    """Return a reader of an array: of cellfeed if it knows the layout of the chunks, else of zarr or h5py."""
    if file.kind == "h5ad":
        return SlicedElements(inflated(array))
    layout, library = layout_of(array), find_library()
    if layout is None or library is None:
        if is_complete:
            check_stored(array)
        return SlicedElements(array)
    files: StoreFiles = LocalStoreFiles(file.path) if "://" not in file.path else RemoteStoreFiles(array.store)
    return PackedElements(replace(layout, is_complete=is_complete), files, library)
