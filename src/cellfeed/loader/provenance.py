"""What a model was trained on, as a small record of plain values that goes into its checkpoint."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from cellfeed._checks import abbreviate, missing_from
from cellfeed.errors import StateError
from cellfeed.plan.settings import Settings
from cellfeed.plan.state import digest
from cellfeed.select.selection import Selection
from cellfeed.sources.redact import public_uri
from cellfeed.transforms import name_of

VERSIONS = ("cellfeed", "tiledbsoma", "torch", "numpy")
"""Packages whose versions are recorded."""


def make_record(selection: Selection, settings: Settings, genes: Sequence[str]) -> dict[str, Any]:
    """Describe the cells, genes and parameters of a dataset."""
    return {
        "versions": {name: _version(name) for name in VERSIONS},
        "experiment_uri": public_uri(selection.experiment_uri),
        "timestamp_ms": selection.source.timestamp_ms,
        "measurement_name": selection.measurement_name,
        "X_name": selection.X_name,
        "obs_query": selection.queries[0],
        "var_query": selection.queries[1],
        "splits": [dict(split) for split in selection.splits],
        "n_obs": selection.n_obs,
        "obs_joinids": digest(selection.joinids[:]),
        "n_genes": len(genes),
        "genes": digest_of_names(genes),
        "transform": name_of(settings.transform),
        "batch_size": settings.batch_size,
        "seed": settings.seed,
    }


def summarize(selection: Selection, settings: Settings) -> dict[str, str]:
    """Describe a dataset by a short text per name, for printing."""
    form = "sparse" if settings.return_sparse_X else "dense"
    return {
        "cells x genes": f"{selection.n_obs:,} x {selection.n_vars:,}",
        "X": f"{selection.measurement_name}/{selection.X_name}, {form}, {settings.X_dtype}",
        "obs": ", ".join(name or "soma_joinid" for name in selection.label_names) or "no columns",
        "minibatches": f"{settings.batch_size:,} cells each",
        "order": f"shuffled, seed={settings.seed}" if settings.shuffle else "ascending joinids",
        "transform": name_of(settings.transform) or "none",
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def digest_of_names(names: Sequence[str]) -> str:
    """Return a short name for a list of names in this order."""
    return hashlib.blake2b("\0".join(names).encode(), digest_size=8).hexdigest()


def check_record(
    saved: Mapping[str, Any], saved_genes: Sequence[str], own: Mapping[str, Any], own_genes: Sequence[str]
) -> None:
    """Refuse data that would mean something else to a model than those it was trained on.

    Other cells are what inference is for; other genes, another order of them, or another transform are not.

    Raises
    ------
    StateError
        It names the genes.
    """
    if list(saved_genes) != list(own_genes):
        missing, more = missing_from(saved_genes, own_genes), missing_from(own_genes, saved_genes)
        told = [f"{len(missing)} are missing ({abbreviate(missing)})"] * bool(missing)
        told += [f"{len(more)} are new ({abbreviate(more)})"] * bool(more)
        raise StateError(
            f"the genes are not those that the model was trained on: {', '.join(told) or 'their order differs'}; "
            f"take them by name, in its order, with dataset.select_genes(genes)"
        )
    if saved["transform"] != own["transform"]:
        raise StateError(
            f"the model was trained with transform={saved['transform']}, and these data have "
            f"transform={own['transform']}; give the same"
        )


def check_classes(saved: Mapping[str, Sequence[Any]], own: Mapping[str, Sequence[Any]]) -> None:
    """Refuse data whose codes stand for other values than those that a model was trained on.

    Raises
    ------
    StateError
        It names the column and the values.
    """
    for name, known in saved.items():
        met = own.get(name)
        if met is None or list(met) == list(known):
            continue
        differing = [value for value in [*known, *met] if value not in known or value not in met]
        raise StateError(
            f"codes of {name!r} differ from those of the model's training data: {abbreviate(differing)} "
            f"are on one side only; give encoders=[LabelEncoder({name!r}, classes=...)] with the model's values"
        )
