"""Provenance: a small record of plain values in a checkpoint that describes the training data of a model."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from cellfeed._checks import abbreviate, missing_from
from cellfeed._digests import digest, digest_of_names
from cellfeed._versions import versions_of
from cellfeed.errors import StateError
from cellfeed.plan.resampling import Resampling
from cellfeed.plan.settings import Settings
from cellfeed.select.selection import Selection
from cellfeed.sources.redact import public_uri
from cellfeed.transforms import name_of

IN_ASCENDING_ORDER = "ascending joinids"
"""The order of cells without shuffling, in tables."""


def make_record(
    selection: Selection, settings: Settings, genes: Sequence[str], resampling: Resampling | None = None
) -> dict[str, Any]:
    """Describe the cells, genes and parameters of a dataset."""
    return {
        "versions": versions_of("cellfeed", "tiledbsoma", "torch", "numpy"),
        "experiment_uri": public_uri(selection.experiment_uri),
        "timestamp_ms": selection.source.timestamp_ms,
        "measurement_name": selection.measurement_name,
        "X_name": selection.X_name,
        "obs_query": selection.queries[0],
        "var_query": selection.queries[1],
        "splits": [dict(split) for split in selection.splits],
        "resampling": None if resampling is None else dict(resampling.record),
        "n_obs": selection.n_obs,
        "obs_joinids": digest(selection.joinid_column[:]),
        "n_genes": len(genes),
        "genes": digest_of_names(genes),
        "transform": name_of(settings.transform),
        "batch_size": settings.batch_size,
        "seed": settings.seed,
    }


def describe(selection: Selection, settings: Settings) -> str:
    """Describe a dataset in one line."""
    return (
        f"{selection.n_obs:,} cells x {selection.n_vars:,} genes of {selection.measurement_name}/{selection.X_name}, "
        f"batch_size={settings.batch_size}, seed={settings.seed}"
    )


def summarize(selection: Selection, settings: Settings, resampling: Resampling | None = None) -> dict[str, str]:
    """Describe a dataset by short texts, for printing."""
    layout = "sparse" if settings.return_sparse_X else "dense"
    order = f"shuffled, seed={settings.seed}" if settings.shuffle else IN_ASCENDING_ORDER
    resampled = "" if resampling is None else f", resampled to {resampling.n_obs:,} cells per epoch"
    return {
        "cells x genes": f"{selection.n_obs:,} x {selection.n_vars:,}",
        **({"part": "; ".join(map(_name_part, selection.splits))} if selection.splits else {}),
        "X": f"{selection.measurement_name}/{selection.X_name}, {layout}, {settings.X_dtype}",
        "obs": ", ".join(selection.codes) or "no columns",
        **({"content": str(selection.content)} if selection.content else {}),
        "minibatches": f"{settings.batch_size:,} cells each",
        "order": f"{order}{resampled}",
        "transform": name_of(settings.transform) or "none",
    }


def _name_part(split: Mapping[str, Any]) -> str:
    """Name a part of the cells and the arguments that made it; long lists are abbreviated.

    Examples
    --------
    >>> _name_part({"weights": [0.8, 0.2], "seed": 1, "stratify": None, "part": "train"})
    'train (weights=[0.8, 0.2], seed=1)'
    """
    arguments = {name: value for name, value in split.items() if name != "part" and value is not None}
    return f"{split['part']} ({', '.join(f'{name}={reprlib.repr(value)}' for name, value in arguments.items())})"


def check_record(
    saved: Mapping[str, Any], saved_genes: Sequence[str], own: Mapping[str, Any], own_genes: Sequence[str]
) -> None:
    """Check that data have the genes, their order and the transform of the training data of a model.

    The cells may differ, as in inference.

    Raises
    ------
    StateError
        The message names the genes.
    """
    if list(saved_genes) != list(own_genes):
        missing, new = missing_from(saved_genes, own_genes), missing_from(own_genes, saved_genes)
        differences = [
            f"{len(names)} are {what} ({abbreviate(names)})"
            for what, names in (("missing", missing), ("new", new))
            if names
        ]
        changes = ", ".join(differences) or "their order differs"
        raise StateError(
            f"the genes are not those that the model was trained on: {changes}; select them by name, in the order of "
            f"the model, with dataset.select_genes(genes)"
        )
    if saved["transform"] != own["transform"]:
        raise StateError(
            f"the model was trained with transform={saved['transform']}, and these data have "
            f"transform={own['transform']}; give the same transform"
        )


def check_classes(saved: Mapping[str, Sequence[Any]], own: Mapping[str, Sequence[Any]]) -> None:
    """Check that the codes of labels have the same meaning as in the training data of a model.

    Raises
    ------
    StateError
        The message names the column and the values.
    """
    for name, known in saved.items():
        classes = own.get(name)
        if classes is None or list(classes) == list(known):
            continue
        differing = [value for value in [*known, *classes] if value not in known or value not in classes]
        raise StateError(
            f"codes of {name!r} differ from those of the model's training data: {abbreviate(differing)} "
            f"are on one side only; give encoders=[LabelEncoder({name!r}, classes=...)] with the model's values"
        )
