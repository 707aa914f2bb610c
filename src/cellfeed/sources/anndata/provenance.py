"""The record in an AnnData of cellfeed: from where its cells come, in ``uns/cellfeed``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cellfeed._digests import digest, digest_of_names
from cellfeed._versions import versions_of
from cellfeed.errors import ReadError
from cellfeed.select.gene_names import identify_columns
from cellfeed.select.selection import FurtherMatrix, Selection
from cellfeed.sources.anndata.files import AnnDataFile
from cellfeed.sources.anndata.sealing import is_sealed
from cellfeed.sources.redact import public_uri

KEY = "cellfeed"
"""Name in ``uns`` of the record, a text of JSON."""


def read_provenance(file: AnnDataFile) -> dict[str, Any]:
    """Return the record of a copy; empty if the AnnData is not from cellfeed."""
    with file.open() as root:
        if "uns" not in root or KEY not in root["uns"]:
            return {}
        try:
            text = root["uns"][KEY][()]
            record = json.loads(str(text.item() if hasattr(text, "item") else text))
        except (AttributeError, TypeError, ValueError) as cause:
            if is_sealed(root):
                raise ReadError(f"'uns/{KEY}' of {str(file)!r} is damaged ({cause}); write the copy again") from cause
            return {}
    return record if isinstance(record, dict) else {}


def identity_of(selection: Selection) -> dict[str, Any]:
    """Return what makes a copy of a selection another copy than one of another selection."""
    return {
        "source": public_uri(selection.experiment_uri),
        "measurement_name": selection.measurement_name,
        "X_name": selection.X_name,
        "X_dtype": selection.geometry.dtype,
        "X_nnz": selection.geometry.nnz,
        "X_identity": selection.source.identity,
        "n_obs": selection.n_obs,
        "obs_joinids": digest(selection.joinid_column[:]),
        "n_vars": selection.n_vars,
        "var_joinids": digest(selection.var_joinids),
    }


def record_of(selection: Selection, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a copy, of plain values: where its cells come from."""
    return {
        "identity": dict(identity),
        "timestamp_ms": selection.source.timestamp_ms,
        "queries": [repr(query) if query else None for query in selection.queries],
        "splits": [dict(split) for split in selection.splits],
        "genes": digest_of_names(identify_columns(replace(selection, column_transform=None))),
        "X_dtype": selection.geometry.dtype,
        "layers": {written_name(matrix): matrix.source.geometry.dtype for matrix in selection.matrices},
        "figures": "X",
        "versions": versions_of("cellfeed", "zarr", "anndata"),
    }


def written_name(matrix: FurtherMatrix) -> str:
    """Return the name of a layer in a copy; AnnData names those of others ``layers/counts``, for example."""
    return matrix.X_name.removeprefix("layers/").replace("/", "_")


def recorded_dtype(record: Mapping[str, Any], layer: str) -> str | None:
    """Return the type that a copy records for a layer, whose values may be stored in a smaller one."""
    dtypes = {f"layers/{name}": dtype for name, dtype in record.get("layers", {}).items()}
    return {**dtypes, "X": record.get("X_dtype")}.get(layer)
