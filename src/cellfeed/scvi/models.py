"""Models of scvi-tools that were trained with a data module: loaded, and extended by new cells."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from cellfeed.errors import StateError
from cellfeed.scvi.registry import MODEL_NAME, compare, find_registry, name_model, read_model


def load(model_class: Any, path: str | Path, datamodule: Any = None) -> Any:
    """Load a model that was trained with a :class:`~cellfeed.scvi.SCVIDataModule`.

    Use it instead of ``model_class.load(path, adata=False)``, in which scvi-tools (1.4) loses further arguments of the
    module, such as ``encode_covariates``, and all categorical covariates but one. Both unpickle the file: do not load a
    model of untrusted origin.

    Parameters
    ----------
    model_class
        The class of the model, such as ``scvi.model.SCVI``.
    path
        The folder given to ``model.save``.
    datamodule
        The cells for the model, whose genes and categories are checked. SCANVI needs it.

    Returns
    -------
    The model, on the CPU.

    Raises
    ------
    StateError
        If the folder has no model, or if the model is of another class or has other genes or categories than
        ``datamodule``.

    Examples
    --------
    >>> import tempfile, scvi, cellfeed.scvi
    >>> uri, folder = cellfeed.datasets.pbmc700(), tempfile.mkdtemp()
    >>> datamodule = cellfeed.scvi.SCVIDataModule(uri, batch_key="phase", seed=0)
    >>> model = scvi.model.SCVI(adata=None, registry=datamodule.registry)  # and train it
    >>> model.save(folder, datamodule=datamodule, overwrite=True)
    >>> query = cellfeed.scvi.SCVIDataModule.from_reference(folder, uri)
    >>> cellfeed.scvi.load(scvi.model.SCVI, folder, query).summary_stats.n_batch
    3
    """
    saved = read_model(path)
    attributes = dict(saved["attr_dict"])
    registry, parameters = attributes.pop("registry_"), attributes.pop("init_params_")
    saved_class = registry.get(MODEL_NAME, model_class.__name__)
    if saved_class.removeprefix("Torch") != model_class.__name__.removeprefix("Torch"):  # MRVI makes TorchMRVI in 1.4
        raise StateError(
            f"{str(path)!r} holds a model of the class {saved_class}, not {model_class.__name__}: "
            f"load(scvi.model.{saved_class}, ...)"
        )
    if datamodule is not None:
        datamodule.check(registry)
    keywords = {name: value for group in parameters["kwargs"].values() for name, value in group.items()}
    arguments = {**parameters["non_kwargs"], **keywords}
    for name in ("datamodule", "unlabeled_category", "pretrained_model"):
        arguments.pop(name, None)
    if "datamodule" in inspect.signature(model_class).parameters:
        arguments["datamodule"] = datamodule
    model = model_class(None, registry=registry, **arguments)
    for name, value in attributes.items():
        setattr(model, name, value)
    weights = {name: value for name, value in saved["model_state_dict"].items() if name != "pyro_param_store"}
    model.module.load_state_dict(weights)
    model.module.eval()
    return model


def load_query_data(model_class: Any, reference: Any, datamodule: Any, **options: Any) -> Any:
    """Make a model that continues the training of a reference on the cells of a data module (scArches).

    For batches that the reference lacks, ``model_class.load_query_data`` takes only an AnnData.

    Parameters
    ----------
    model_class
        The class of the model, such as ``scvi.model.SCVI``.
    reference
        A trained model, or the folder of a saved model.
    datamodule
        ``SCVIDataModule.from_reference(reference, experiment, extend_categories=True)``.
    options
        The weights to freeze, as for ``model_class.load_query_data``.

    Returns
    -------
    The model; train it with ``train(datamodule=datamodule)``.

    Raises
    ------
    StateError
        If the data module has other genes than the reference, or if its categories do not begin with those of the
        reference.

    Examples
    --------
    >>> import scvi, tiledbsoma, cellfeed.scvi
    >>> uri = cellfeed.datasets.pbmc700()
    >>> two_phases = tiledbsoma.AxisQuery(value_filter="phase != 'G2M'")
    >>> reference = cellfeed.scvi.SCVIDataModule(uri, obs_query=two_phases, batch_key="phase", seed=0)
    >>> model = scvi.model.SCVI(adata=None, registry=reference.registry)  # and train it
    >>> query = cellfeed.scvi.SCVIDataModule.from_reference(model, uri, extend_categories=True)
    >>> extended = cellfeed.scvi.load_query_data(scvi.model.SCVI, model, query)
    >>> query.batch_labels
    ['G1', 'S', 'G2M']
    """
    compare(find_registry(reference), datamodule.registry, extended=True)
    if "datamodule" in inspect.signature(model_class).parameters:
        options["datamodule"] = datamodule
    # With the setup method of AnnData, scvi-tools extends the weights for new categories.
    registry = {**datamodule.registry, "setup_method_name": "setup_anndata"}
    reference = str(reference) if isinstance(reference, Path) else reference
    model = model_class.load_query_data(adata=None, reference_model=reference, registry=registry, **options)
    name_model(model, datamodule.registry)
    return model
