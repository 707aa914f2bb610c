"""Writes embeddings to the ``obsm`` of AnnData in zarr on a local disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray, find_in
from cellfeed.errors import SelectionError
from cellfeed.sources.anndata.axes import Tables
from cellfeed.sources.anndata.files import AnnDataFile, anndata_files, length_of
from cellfeed.sources.anndata.parts import Part
from cellfeed.sources.anndata.sealing import (
    STORES_ALL_CHUNKS,
    is_sealed,
    read_metadata,
    seal,
    verified_compressors,
    writing_quietly,
)
from cellfeed.sources.redact import reraise_as

VALUES_PER_CHUNK = 1 << 18

Rows = npt.NDArray[np.float32]


def write_to_anndata(path: Any, name: str, ids: IntArray, rows: Rows, *, overwrite: bool) -> str:
    """Write rows of ascending joinids to each part of an AnnData; see :func:`cellfeed.write_obsm`."""
    files = anndata_files(path, "experiment")
    for file in files:
        _check_file(file, name, overwrite)
    joinids = _joinids_of(files)
    lost = ids[~np.isin(ids, np.concatenate(joinids))]
    if len(lost):
        raise SelectionError(f"joinids: obs has no soma_joinid {lost[0]} ({len(lost)} of {len(ids)} are not in it)")
    for file, own in zip(files, joinids, strict=True):
        places = find_in(ids, own)
        values = np.full((len(own), rows.shape[1]), np.nan, np.float32)
        values[places >= 0] = rows[places[places >= 0]]
        with reraise_as(SelectionError, f"experiment={str(file)!r} cannot be written to"):
            _write(Path(file.path), name, values)
    return str(os.fspath(path))


def _check_file(file: AnnDataFile, name: str, overwrite: bool) -> None:
    if file.kind != "zarr" or "://" in file.path:
        raise SelectionError(
            f"experiment={str(file)!r} is not an AnnData in zarr on a local disk; make one by cellfeed copy, or write "
            f"the embedding by anndata: adata.obsm[{name!r}] = embeddings"
        )
    if "/" in name or name.startswith("."):
        raise SelectionError(f"name={name!r} must be the name of a folder, such as 'X_scVI'")
    with file.open() as root:
        if not overwrite and name in root.get("obsm", {}):
            raise SelectionError(
                f"name={name!r} is in obsm already; give another name, or overwrite=True to replace it"
            )


def _joinids_of(files: Sequence[AnnDataFile]) -> list[IntArray]:
    """Return the joinid of each row of each file, as datasets read them."""
    parts = []
    for file in files:
        with file.open() as root:
            parts.append(Part(file, "X", length_of(root, "obs"), nnz=0, stamp=0, record={}))
    _, joinids = Tables(parts).read("obs", [])
    return np.split(joinids, np.cumsum([part.n_rows for part in parts])[:-1])


def _write(store: Path, name: str, rows: Rows) -> None:
    """Write an array beside the others, which replaces one of the same name when it is complete."""
    import zarr

    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    zarr_format = root.metadata.zarr_format
    obsm = root.require_group("obsm")
    obsm.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
    unfinished, place = f".{name}.partial", store / "obsm" / name
    obsm.create_array(
        unfinished,
        data=rows,
        chunks=(max(1, min(len(rows), VALUES_PER_CHUNK // rows.shape[1])), rows.shape[1]),
        compressors=verified_compressors() if zarr_format == 3 else "auto",
        attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
        config=STORES_ALL_CHUNKS,
        overwrite=True,
    )
    if place.exists():
        rmtree(place)
    (store / "obsm" / unfinished).rename(place)
    was_sealed = is_sealed(root)
    if read_metadata(root).get("consolidated_metadata") or (store / ".zmetadata").exists():
        with writing_quietly():
            zarr.consolidate_metadata(store, zarr_format=zarr_format)
    if was_sealed:
        seal(store)
