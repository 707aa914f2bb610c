"""The shortest way to a data module: the keys that a model takes are checked, and its genes are selected."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import scvi

from cellfeed.errors import PlanError
from cellfeed.loader.datamodule import open_dataset
from cellfeed.loader.highly_variable import highly_variable_genes
from cellfeed.scvi.datamodule import SCVIDataModule

KEYS = (
    "batch_key",
    "labels_key",
    "unlabeled_category",
    "sample_key",
    "size_factor_key",
    "categorical_covariate_keys",
    "continuous_covariate_keys",
)
"""Parameters of :class:`SCVIDataModule` that the ``setup_anndata`` of a model may lack."""

NOT_COUNTS = {"SysVI"}
"""Models of normalised values."""


def setup(
    model_class: Any,
    experiment: Any,
    *,
    batch_key: Any = None,
    n_top_genes: int | None = None,
    flavor: str = "seurat_v3",
    span: float = 0.3,
    **parameters: Any,
) -> SCVIDataModule:
    """Make the data module for a model of scvi-tools from a path, as ``model_class.setup_annbatch`` does.

    The cells stay where they are; nothing is converted. Before X is read, the keys are compared with those that the
    model takes.

    Parameters
    ----------
    model_class
        The class of the model, such as ``scvi.model.SCVI``.
    experiment
        An open ``tiledbsoma.Experiment``, the URI of one, a ``tiledbsoma.ExperimentAxisQuery``, or the path of an
        AnnData, ``.zarr`` or ``.h5ad``.
    batch_key
        A column of obs, a list of columns whose combinations are the batches, or ``None`` for one batch.
    n_top_genes
        Genes to select by :func:`cellfeed.highly_variable_genes`, within the batches of ``batch_key``, which reads the
        cells once. ``None`` takes all genes, or those of ``genes``.
    flavor, span
        As for :func:`cellfeed.highly_variable_genes`.
    parameters
        As for :class:`SCVIDataModule`. For a model of normalised values, SysVI, ``counts`` is ``False`` by default.

    Raises
    ------
    PlanError
        If the model takes no data module or lacks one of the keys, or a key is missing that it needs.

    Examples
    --------
    >>> import scvi, cellfeed.scvi
    >>> uri = cellfeed.datasets.pbmc700()
    >>> datamodule = cellfeed.scvi.setup(scvi.model.SCVI, uri, batch_key="phase", n_top_genes=200, seed=0)
    >>> model = scvi.model.SCVI(registry=datamodule.registry)  # model.train(datamodule=datamodule)
    >>> datamodule.n_vars, datamodule.batch_labels
    (200, ['G1', 'G2M', 'S'])
    """
    keys = {"batch_key": batch_key, **parameters}
    _check_model(model_class, keys)
    parameters = {"counts": model_class.__name__ not in NOT_COUNTS, **parameters}
    if n_top_genes is not None:
        if parameters.get("genes") is not None:
            raise PlanError(f"n_top_genes={n_top_genes!r} and genes= exclude each other; give one of them")
        dataset = open_dataset(experiment, _dataset_parameters(parameters))
        parameters["genes"] = highly_variable_genes(
            dataset,
            n_top_genes,
            flavor=flavor,
            batch_key=None if flavor == "seurat" else batch_key or None,
            span=span,
            var_column=parameters.get("var_column"),
        )
    return SCVIDataModule(experiment, batch_key=batch_key, **parameters)


def _check_model(model_class: Any, keys: Mapping[str, Any]) -> None:
    """Check that a model takes data modules, these keys, and no others that are not given."""
    name = getattr(model_class, "__name__", repr(model_class))
    if not hasattr(model_class, "setup_anndata"):
        raise PlanError(f"model_class={name} is not a model of scvi-tools; give its class, such as scvi.model.SCVI")
    if "registry" not in inspect.signature(model_class).parameters:
        raise PlanError(
            f"model_class={name} of scvi-tools {scvi.__version__} takes an AnnData only; scvi.model.SCVI takes a data "
            f"module in all versions, and more models do so since 1.5"
        )
    taken = inspect.signature(model_class.setup_anndata).parameters
    given = [key for key in KEYS if keys.get(key) not in (None, (), [])]
    for key in given:
        if key not in taken:
            accepted = ", ".join(known for known in KEYS if known in taken)
            raise PlanError(f"{key}={keys[key]!r}: {name} does not take it; it takes {accepted}")
    for key in KEYS:
        needed = key in taken and (key == "sample_key" or taken[key].default is inspect.Parameter.empty)
        if needed and key not in given:
            example = "'unknown'" if key == "unlabeled_category" else "'a column of obs'"
            raise PlanError(f"{key}=None: {name} needs it; give setup({name}, ..., {key}={example})")


def _dataset_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the dataset among those of a data module."""
    own = inspect.signature(SCVIDataModule.__init__).parameters
    return {name: value for name, value in parameters.items() if name not in own}
