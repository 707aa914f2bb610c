"""Registries, in which models of scvi-tools describe their data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellfeed._checks import abbreviate, missing_from
from cellfeed.errors import StateError

SEPARATOR = "//"
"""Separates the values of a category, and the names of a key, that combine several columns."""

OWN = "cellfeed"
"""Key of a registry with the keys and the provenance of a data module."""

MODEL_NAME = "model_name"
"""Key of a registry with the class of the model, which scvi-hub and the views of a saved model need."""

MODEL_FILE = "model.pt"
"""The file of a saved model in its folder."""


@dataclass(frozen=True)
class Schema:
    """Genes and categories of a model or of data, as text, by code; ``None`` if they are not fixed."""

    genes: list[str] | None = None
    batches: list[str] | None = None
    labels: list[str] | None = None
    samples: list[str] | None = None
    covariates: Mapping[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, registry: Mapping[str, Any]) -> Schema:
        """Read the registry of a data module or of an AnnData."""
        states = {name: one.get("state_registry", {}) for name, one in registry["field_registries"].items()}
        categories = {name: state.get("categorical_mapping") for name, state in states.items()}
        covariates = states.get("extra_categorical_covs", {}).get("mapping", {})
        return cls(
            genes=_text(states["X"]["column_names"]),
            batches=_text(categories.get("batch")),
            labels=_text(categories.get("labels")),
            samples=_text(categories.get("sample")),
            covariates={key: _text(mapping) or [] for key, mapping in covariates.items()},
        )


def _text(values: Any) -> list[str] | None:
    return None if values is None else [str(value) for value in values]


def keys_of(registry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of obs and var of a model's training, as arguments of a data module."""
    if OWN in registry:
        return dict(registry[OWN]["keys"])
    arguments = registry["setup_args"]
    labels = registry["field_registries"].get("labels", {}).get("state_registry", {})
    return {
        "batch_key": arguments.get("batch_key"),
        "labels_key": arguments.get("labels_key"),
        "sample_key": arguments.get("sample_key"),
        "size_factor_key": arguments.get("size_factor_key"),
        "unlabeled_category": labels.get("unlabeled_category"),
        "categorical_covariate_keys": arguments.get("categorical_covariate_keys") or [],
        "continuous_covariate_keys": arguments.get("continuous_covariate_keys") or [],
    }


def read_model(path: str | Path) -> dict[str, Any]:
    """Read the file of a saved model. It is unpickled: do not read a file of untrusted origin."""
    file = Path(path) / MODEL_FILE
    if not file.is_file():
        raise StateError(f"{str(path)!r} has no {MODEL_FILE}; give the folder in which model.save wrote a model")
    return torch.load(file, map_location="cpu", weights_only=False)  # type: ignore[no-any-return]


def find_registry(reference: Any) -> dict[str, Any]:
    """Return the registry of a model, of the folder of a saved model, or of a data module; or the given registry."""
    if isinstance(reference, (str, Path)):
        return read_model(reference)["attr_dict"]["registry_"]  # type: ignore[no-any-return]
    for name in ("registry_", "registry"):
        reference = getattr(reference, name, reference)
    if not isinstance(reference, dict) or "field_registries" not in reference:
        raise StateError(
            f"reference is a {type(reference).__name__}; give a model, the folder of a saved model, or a registry"
        )
    return reference


def compare(model_registry: Mapping[str, Any], registry: Mapping[str, Any], *, extended: bool = False) -> None:
    """Raise a StateError if data have other genes or categories than a model; ``extended`` permits more categories."""
    model, data = Schema.of(model_registry), Schema.of(registry)
    _compare("genes", model.genes or [], data.genes or [])
    _compare("batches", model.batches or [], data.batches or [], extended=extended)
    _compare("samples", model.samples or [], data.samples or [], extended=extended)
    for key, categories in model.covariates.items():
        _compare(f"categories of {key!r}", categories, data.covariates.get(key, []), extended=extended)


def _compare(what: str, model: Sequence[str], data: Sequence[str], *, extended: bool = False) -> None:
    if list(data[: len(model)] if extended else data) == list(model):
        return
    lacks = {"the data lack": missing_from(model, data), "the model lacks": missing_from(data, model)}
    differences = [f"{text} {abbreviate(names)}" for text, names in lacks.items() if names]
    raise StateError(
        f"{what} of the data are not those of the model: {', '.join(differences) or 'their order differs'}; make the "
        f"data module with SCVIDataModule.from_reference(model, experiment)"
    )


def make_registry(
    version: str,
    n_obs: int,
    n_obs_per_sample: Any,
    schema: Schema,
    keys: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the registry of a data module, without the class of the model, as several models may use the module.

    Several columns of batches have one key, their names joined by :data:`SEPARATOR`: scvi-tools uses it as the name of
    a column.
    """
    batch_key = SEPARATOR.join(keys["batch_key"]) or None
    return {
        "scvi_version": version,
        "setup_method_name": "setup_datamodule",
        "setup_args": {
            "layer": None,
            "batch_key": batch_key,
            "labels_key": keys["labels_key"],
            "size_factor_key": keys["size_factor_key"],
            "sample_key": keys["sample_key"],
            "categorical_covariate_keys": list(schema.covariates) or None,
            "continuous_covariate_keys": list(keys["continuous_covariate_keys"]) or None,
        },
        "field_registries": {
            **_fields(n_obs, schema, keys, batch_key),
            "sample": _sample_field(schema.samples or [], keys["sample_key"], n_obs_per_sample),
        },
        OWN: {"keys": dict(keys), "provenance": dict(provenance)},
    }


def _fields(n_obs: int, schema: Schema, keys: Mapping[str, Any], batch_key: str | None) -> dict[str, Any]:
    genes, batches, labels = schema.genes or [], schema.batches or [], schema.labels or []
    continuous = keys["continuous_covariate_keys"]
    return {
        "X": _field("X", None, {"n_obs": n_obs, "n_vars": len(genes), "column_names": list(genes)},
                    {"n_vars": len(genes), "n_cells": n_obs}),
        "batch": _field("obs", "_scvi_batch", _categories(batches, batch_key), {"n_batch": len(batches)}),
        "labels": _field(
            "obs", "_scvi_labels",
            {**_categories(labels, keys["labels_key"]), "unlabeled_category": keys["unlabeled_category"]},
            {"n_labels": len(labels)},
        ),
        "ind_x": _field("obs", "_indices", {}, {}),
        "size_factor": _field("obs" if keys["size_factor_key"] else None, "_scvi_size_factor", {}, {}),
        "extra_categorical_covs": _field(
            "obsm", "_scvi_extra_categorical_covs", _covariates(schema.covariates),
            {"n_extra_categorical_covs": len(schema.covariates)},
        ),
        "extra_continuous_covs": _field(
            "obsm", "_scvi_extra_continuous_covs",
            {"columns": np.array(continuous, dtype=object)} if continuous else {},
            {"n_extra_continuous_covs": len(continuous)},
        ),
    }  # fmt: skip


def _sample_field(samples: Sequence[str], key: str | None, n_obs_per_sample: Any) -> dict[str, Any]:
    """Return the field of samples, with the numbers of their cells where MRVI reads them."""
    state = _categories(samples, key) if samples else {}
    field = _field("obs", "_scvi_sample", state, {"n_sample": len(samples)})
    return {**field, "n_obs_per_sample": {"n_obs_per_sample": n_obs_per_sample}}


def _field(
    attribute: str | None, key: str | None, state: Mapping[str, Any], stats: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    data = {} if attribute is None else {"attr_name": attribute, "attr_key": key}
    return {"data_registry": data, "state_registry": dict(state), "summary_stats": dict(stats)}


def _categories(categories: Sequence[str], key: Any) -> dict[str, Any]:
    return {"categorical_mapping": np.array(categories, dtype=object), "original_key": key}


def _covariates(covariates: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    if not covariates:
        return {}
    return {
        "field_keys": list(covariates),
        "mapping": {key: np.array(categories, dtype=object) for key, categories in covariates.items()},
        "n_cats_per_key": [len(categories) for categories in covariates.values()],
    }


def name_model(model: Any, registry: Mapping[str, Any] | None = None) -> None:
    """Add the class of a model to its registry, or replace that by another registry with the class."""
    model.registry_ = {**(model.registry_ if registry is None else registry), MODEL_NAME: type(model).__name__}
