"""Describes AnnData from their metadata: sizes, columns, layers and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cellfeed.sources.anndata.files import AnnDataFile, encoding_of, is_group, length_of
from cellfeed.sources.anndata.layers import layer_names
from cellfeed.sources.anndata.tables import columns_of


def describe_files(files: Sequence[AnnDataFile]) -> dict[str, Any]:
    """Return the number of cells of all files; columns, layers and embeddings of the first, as plain values."""
    n_obs = 0
    for file in files:
        with file.open() as root:
            n_obs += length_of(root, "obs")
    with files[0].open() as root:
        described = {
            "n_vars": length_of(root, "var"),
            "var": _columns(root, "var"),
            "X": {name: _matrix(root[name]) for name in layer_names(root)},
            "obsm": sorted(root["obsm"]) if "obsm" in root else [],
        }
        return {"n_obs": n_obs, "obs": _columns(root, "obs"), "measurements": {"RNA": described}}


def _columns(root: Any, axis: str) -> dict[str, str]:
    """Return the encoding of each column, or the type of a plain array."""
    kinds = {}
    for name in columns_of(root, axis).names:
        column = root[axis][name]
        encoding = encoding_of(column)[0]
        kinds[name] = str(column.dtype) if encoding == "array" else encoding
    return kinds


def _matrix(element: Any) -> str:
    shape = element.attrs["shape"] if is_group(element) else element.shape
    return f"{encoding_of(element)[0]} {tuple(int(size) for size in shape)}"
