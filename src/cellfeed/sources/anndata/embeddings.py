"""Reads embeddings of cells from the ``obsm`` of AnnData: dense arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cellfeed._checks import suggest
from cellfeed._joinids import IntArray
from cellfeed.errors import SelectionError
from cellfeed.select.content import Content
from cellfeed.select.embeddings import EmbeddingShape, Rows, read_dense, read_embeddings
from cellfeed.sources.anndata.files import AnnDataFile, encoding_of
from cellfeed.sources.anndata.parts import Part
from cellfeed.sources.anndata.sealing import check_stored, is_sealed
from cellfeed.sources.redact import reraise_as


def find_obsm(parts: Sequence[Part], content: Content) -> dict[str, EmbeddingShape]:
    """Return the shapes of the embeddings of a content; raise a SelectionError if a part lacks one."""
    found = {}
    for name in content.obsm:
        shapes = [_shape_of(part.file, name) for part in parts]
        if len(widths := sorted({shape.n_dims for shape in shapes})) > 1:
            raise SelectionError(f"obsm: {name!r} has {' and '.join(map(str, widths))} columns in different parts")
        found[name] = shapes[0]
    return found


def read_obsm(
    parts: Sequence[Part], content: Content, shapes: Mapping[str, EmbeddingShape], rows: IntArray
) -> Mapping[str, Rows]:
    """Read the embeddings of ascending rows, which are counted over the parts."""
    bounds = np.cumsum([0, *(part.n_rows for part in parts)])

    def read(name: str) -> Rows:
        found = []
        for part, low, high in zip(parts, bounds[:-1], bounds[1:], strict=True):
            own = rows[np.searchsorted(rows, low) : np.searchsorted(rows, high)] - low
            found.append(_read(part.file, name, own))
        return np.concatenate(found)

    return read_embeddings(shapes, len(rows), content.memory_budget, read)


def _shape_of(file: AnnDataFile, name: str) -> EmbeddingShape:
    with file.open() as root:
        known = root.get("obsm", {})
        if name not in known:
            raise SelectionError(f"obsm: {name!r} is not in obsm of {str(file)!r}; {suggest(name, known)}")
        encoding, _ = encoding_of(known[name])
        if encoding != "array":
            raise SelectionError(
                f"obsm: {name!r} of {str(file)!r} is a {encoding}, and must be a dense array: rewrite it, "
                f"adata.obsm[{name!r}] = {_AS_ARRAY.get(encoding, 'numpy.asarray(adata.obsm[{!r}])').format(name)}"
            )
        shape = known[name].shape
        if len(shape) != 2:
            raise SelectionError(f"obsm: {name!r} of {str(file)!r} has the shape {shape}, and must have two dimensions")
        return EmbeddingShape(int(shape[1]), np.dtype(known[name].dtype))


_AS_ARRAY = {
    "csr_matrix": "adata.obsm[{!r}].toarray()",
    "csc_matrix": "adata.obsm[{!r}].toarray()",
    "dataframe": "adata.obsm[{!r}].to_numpy()",
}
"""Code that makes an array of an element, by its encoding."""


def _read(file: AnnDataFile, name: str, rows: IntArray) -> Rows:
    with file.open() as root, reraise_as(SelectionError, f"obsm of {str(file)!r} cannot be read", file.secrets):
        array = root["obsm"][name]
        if is_sealed(root):
            check_stored(array)
        return read_dense(rows, array.shape[1], lambda start, stop: np.asarray(array[start:stop]))
