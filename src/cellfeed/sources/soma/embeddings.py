"""Reads embeddings of cells from the ``obsm`` of a measurement: dense or sparse arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from cellfeed._checks import suggest
from cellfeed._joinids import IntArray, find_in, merge_runs, runs_of
from cellfeed.errors import SelectionError
from cellfeed.select.content import Content
from cellfeed.select.embeddings import EmbeddingShape, Rows, read_dense, read_embeddings
from cellfeed.sources.soma import tiledb_private
from cellfeed.sources.soma.address import ArrayAddress

BUFFER_BYTES = 8 << 20
"""Bytes of each buffer of a query of a sparse array."""

MAX_GAP = 64


def find_obsm(measurement: Any, content: Content) -> dict[str, EmbeddingShape]:
    """Return the shapes of the embeddings of a content; raise a SelectionError if one does not exist."""
    shapes = {}
    for name in content.obsm:
        array = _find(measurement, name)
        dtype = np.dtype(array.schema.field("soma_data").type.to_pandas_dtype())
        shapes[name] = EmbeddingShape(array.shape[1], dtype)
    return shapes


def read_obsm(
    measurement: Any,
    content: Content,
    shapes: Mapping[str, EmbeddingShape],
    joinids: IntArray,
    address_of: Callable[[Any], ArrayAddress],
) -> Mapping[str, Rows]:
    """Read the embeddings of cells by their ascending joinids.

    Parameters
    ----------
    measurement
        The open measurement.
    shapes
        The result of :func:`find_obsm`.
    address_of
        Returns the address of an open array.
    """

    def read(name: str) -> Rows:
        import tiledbsoma as soma

        array = _find(measurement, name)
        if isinstance(array, soma.DenseNDArray):
            return read_dense(joinids, array.shape[1], partial(_read_range, array))
        return _read_sparse(address_of(array), joinids, array.shape[1])

    return read_embeddings(shapes, len(joinids), content.memory_budget, read)


def _find(measurement: Any, name: str) -> Any:
    import tiledbsoma as soma

    known = measurement.obsm if "obsm" in measurement else {}
    if name not in known:
        raise SelectionError(f"obsm: {name!r} is not in obsm; {suggest(name, known)}")
    array = known[name]
    if not isinstance(array, (soma.SparseNDArray, soma.DenseNDArray)) or len(array.shape) != 2:
        raise SelectionError(f"obsm: {name!r} is a {type(array).__name__}, and must be an array of two dimensions")
    return array


def _read_range(array: Any, start: int, stop: int) -> Any:
    return array.read((slice(start, stop - 1), slice(0, array.shape[1] - 1))).to_numpy()


def _read_sparse(address: ArrayAddress, joinids: IntArray, n_dims: int) -> Rows:
    """Return rows of a sparse array: NaN for cells without a value, and 0 for values that a row lacks."""
    out = np.zeros((len(joinids), n_dims), np.float32)
    is_stored = np.zeros(len(joinids), bool)

    def take(page: Any) -> None:
        rows, columns, values = (page.column(name).to_numpy() for name in tiledb_private.COLUMNS)
        places = find_in(joinids, rows)
        wanted = places >= 0
        out[places[wanted], columns[wanted]] = values[wanted]
        is_stored[places[wanted]] = True

    if len(joinids):
        with contextlib.closing(address.open(BUFFER_BYTES)) as array:
            tiledb_private.read_pages(array, merge_runs(runs_of(joinids), max_gap=MAX_GAP), None, take)
    out[~is_stored] = np.nan
    return out
