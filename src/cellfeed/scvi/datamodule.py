"""A data module for the models of scvi-tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import scvi
from lightning.pytorch import LightningDataModule

from cellfeed._checks import ordered
from cellfeed.loader.datamodule import Loaders, Split, divide, open_dataset
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.loader.inference import with_joinids
from cellfeed.loader.world import find_ranks
from cellfeed.rows.minibatch import densified
from cellfeed.scvi.attributes import ModelAttributes
from cellfeed.scvi.covariates import check_numbers, make_encoders, naming_keys
from cellfeed.scvi.registry import Schema, compare, find_registry, keys_of, make_registry, name_model
from cellfeed.scvi.tensors import InferenceTensors, Tensors, check_counts

LEAST_CELLS = 3
"""Cells that a last training minibatch must have, as in scvi-tools: batch normalisation needs several."""


class SCVIDataModule(ModelAttributes, Loaders, LightningDataModule):  # type: ignore[misc]
    """Train models of scvi-tools (SCVI, SCANVI, MRVI and others that take data modules) on an experiment or AnnData.

    X must hold counts, unless ``counts=False``. Genes are identified by name and categories by text, so that codes
    have the same meaning in all modules of one reference.

    Parameters
    ----------
    experiment
        An open ``tiledbsoma.Experiment``, the URI of one, a ``tiledbsoma.ExperimentAxisQuery``, or the path of an
        AnnData, ``.zarr`` or ``.h5ad``.
    batch_key
        A column of obs, a list of columns whose combinations are the batches, or ``None`` for one batch. scvi-tools
        joins several names by ``"//"``: ``model.differential_expression(groupby="donor//site", ...)``.
    labels_key
        A column of obs, or ``None``.
    unlabeled_category
        For SCANVI: the label of cells without a label, and of cells whose label the reference lacks.
    sample_key
        For MRVI: the column of obs that names samples, such as donors.
    size_factor_key
        A numeric column of obs, by which a model scales the expected counts of a cell instead of by their sum. It must
        be finite and above 0.
    categorical_covariate_keys, continuous_covariate_keys
        Columns of obs, one covariate each. Continuous covariates must be finite.
    genes
        Names of the genes to read, in this order; ``None`` reads all selected genes.
    var_column
        The column of var that names genes; see :meth:`cellfeed.ExperimentDataset.gene_names`.
    missing_genes
        If the store lacks some of ``genes``, ``"error"`` raises an error, and ``"zeros"`` warns and fills them with
        zeros.
    reference
        A model, the folder of a saved model, or its registry: the module has its genes and categories.
        :meth:`from_reference` takes the keys from it as well.
    extend_categories
        Whether batches and covariates may have categories that the reference lacks, for :func:`load_query_data`.
        Otherwise they raise an error.
    counts
        Whether X must hold counts, integers of at least 0; the first minibatch is checked. ``False`` permits any
        values, for a model with a suitable likelihood.
    batch_size, seed
        As for :class:`cellfeed.ExperimentDataset`.
    split, split_seed, stratify, group, num_workers, dataloader_kwargs
        As for :class:`cellfeed.lightning.ExperimentDataModule`. Training leaves out a last minibatch of less than 3
        cells.
    parameters
        Further parameters of :class:`cellfeed.ExperimentDataset`. X is dense for the model, also with
        ``return_sparse_X=True``.

    Raises
    ------
    SelectionError, EncodeError, PlanError
        If columns, genes or categories are missing, or the split is invalid; during iteration, if X does not hold
        counts.

    Examples
    --------
    >>> from cellfeed.scvi import SCVIDataModule
    >>> datamodule = SCVIDataModule(cellfeed.datasets.pbmc700(), batch_key="phase", batch_size=64, seed=0)
    >>> datamodule.batch_labels
    ['G1', 'G2M', 'S']
    >>> tensors = next(iter(datamodule.inference_dataloader()))
    >>> tensors["X"].shape, tensors["batch"].shape
    (torch.Size([64, 765]), torch.Size([64, 1]))
    """

    def __init__(
        self,
        experiment: Any,
        *,
        batch_key: str | Sequence[str] | None,
        labels_key: str | None = None,
        unlabeled_category: str | None = None,
        sample_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] = (),
        continuous_covariate_keys: Sequence[str] = (),
        genes: Sequence[str] | None = None,
        var_column: str | None = None,
        missing_genes: str = "error",
        reference: Any = None,
        extend_categories: bool = False,
        counts: bool = True,
        batch_size: int = 128,
        seed: int | None = None,
        split: Split = (0.9, 0.1),
        split_seed: int = 0,
        stratify: str | None = None,
        group: str | None = None,
        num_workers: int = 0,
        dataloader_kwargs: Mapping[str, Any] | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__()
        self._keys: dict[str, Any] = {
            "batch_key": [batch_key] if isinstance(batch_key, str) else ordered("batch_key", batch_key or ()),
            "labels_key": labels_key,
            "unlabeled_category": unlabeled_category,
            "sample_key": sample_key,
            "size_factor_key": size_factor_key,
            "categorical_covariate_keys": ordered("categorical_covariate_keys", categorical_covariate_keys),
            "continuous_covariate_keys": ordered("continuous_covariate_keys", continuous_covariate_keys),
            "var_column": var_column,
        }
        schema = Schema() if reference is None else Schema.of(find_registry(reference))
        self._encoders = make_encoders(self._keys, schema, extend_categories)
        numbers = [*self._keys["continuous_covariate_keys"], *([] if size_factor_key is None else [size_factor_key])]
        self._numbers = list(dict.fromkeys([*numbers, *ordered("obs_values", parameters.get("obs_values", ()))]))
        parameters = {**parameters, "encoders": self._encoders, "obs_values": self._numbers}
        with naming_keys(self._keys):
            dataset = open_dataset(experiment, {"batch_size": batch_size, "seed": seed, **parameters})
        check_numbers(dataset._engine.selection, self._numbers, self._keys)
        genes = genes if schema.genes is None else schema.genes
        if genes is not None:
            dataset = dataset.select_genes(genes, var_column=var_column, missing=missing_genes)
        self._var_column = var_column if genes is None else None  # a dataset of named genes knows their names
        self.genes = [str(name) for name in dataset.gene_names(self._var_column)]
        self._trimmed: ExperimentDataset | None = None
        self._must_check_counts = counts
        dataset = with_joinids(dataset)
        parts = divide(dataset, split, split_seed, stratify, group)
        self._set_up_loaders(dataset, parts, "all", num_workers, dataloader_kwargs)

    @classmethod
    def from_reference(cls, reference: Any, experiment: Any, **parameters: Any) -> SCVIDataModule:
        """Make a module with the genes, in their order, and the category codes of a reference model.

        All cells are in the train part unless ``split`` is given.

        Parameters
        ----------
        reference
            A model, the folder of a saved model, or its registry. The model may have been trained on an AnnData.
        experiment
            As for the class.
        parameters
            As for the class; the keys of batches, labels and covariates are those of the reference unless given. For
            cells without labels, give ``labels_key=None``.
        """
        registry = find_registry(reference)
        return cls(experiment, reference=registry, **{"split": {"train": 1.0}, **keys_of(registry), **parameters})

    # ------------------------------------------------------------------ loaders

    def _training_cells(self) -> ExperimentDataset:
        """Return the dataset for training, without a last minibatch that is too small for batch normalisation."""
        dataset = self.parts["train"]
        settings = dataset._engine.settings
        n_cells = dataset.shape[0] // find_ranks(settings.rank, settings.world_size)[1]
        if 0 < n_cells % settings.batch_size < LEAST_CELLS and n_cells > settings.batch_size:
            self._trimmed = self._trimmed or dataset._with(drop_last=True)  # always the same, as it counts epochs
            return self._trimmed
        return dataset

    def inference_dataloader(self, part: str = "all", batch_size: int | None = None) -> InferenceTensors:
        """Make a loader of the tensors of all cells, or of a part, in the order of their joinids.

        Parameters
        ----------
        part
            ``"all"``, ``"train"``, ``"validation"`` or ``"test"``. The joinids of the rows are
            ``datamodule.dataset.obs_joinids`` and ``datamodule.parts[part].obs_joinids``.
        batch_size
            Cells per minibatch; by default that of the module.
        """
        return InferenceTensors(self._ordered(self._part(part), batch_size), self.tensors)

    def setup(self, stage: str | None = None) -> None:
        """Check that the model of the trainer has the genes and categories of this module; called by Lightning.

        The registry of the model gets the name of its class, as from the data modules of scvi-tools.
        """
        model = getattr(self.trainer, "_model", None) if self.trainer is not None else None
        if model is not None and hasattr(model, "registry_"):
            self.check(model)
            name_model(model)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the tensors of a minibatch; for SCANVI, a pair with the tensors of its labelled cells."""
        if isinstance(batch, dict):
            return batch
        tensors = self.tensors(batch)
        plan = getattr(self.trainer, "lightning_module", None)
        if not isinstance(plan, scvi.train.SemiSupervisedTrainingPlan):
            return tensors
        labelled = tensors["labels"][:, 0] < self.n_labels
        if int(labelled.sum()) < 2:  # batch normalisation needs two
            return tensors
        return tensors, {name: densified(tensor)[labelled] for name, tensor in tensors.items()}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make CSR dense, on the device."""
        if isinstance(batch, tuple):
            return tuple(self.on_after_batch_transfer(part, dataloader_idx) for part in batch)
        return {name: densified(tensor) for name, tensor in batch.items()}

    def tensors(self, minibatch: Any) -> Tensors:
        """Return the input of a model's module by scvi-tools' names, from a minibatch of this module's dataset."""
        X, obs = minibatch.X, minibatch.obs
        if self._must_check_counts:
            check_counts(X, self.dataset._engine.selection.X_name)
            self._must_check_counts = False
        tensors = {"X": X if X.is_floating_point() else X.float(), "batch": obs[:, :1], "labels": obs[:, 1:2]}
        # Continuous before categorical: if all cells are labelled, scvi-tools reads the five keys in this order.
        if self.n_continuous_cov:
            tensors["extra_continuous_covs"] = minibatch.obs_values[:, : self.n_continuous_cov]
        if self.n_cats_per_cov:
            tensors["extra_categorical_covs"] = obs[:, -len(self.n_cats_per_cov) :]
        if self._keys["sample_key"] is not None:
            tensors["sample"] = obs[:, 2:3]
        if (size_factor_key := self._keys["size_factor_key"]) is not None:
            column = self._numbers.index(size_factor_key)
            tensors["size_factor"] = minibatch.obs_values[:, column : column + 1]
        return tensors

    @cached_property
    def registry(self) -> dict[str, Any]:
        """The description of the data that a model keeps: genes, categories by code, keys, and provenance."""
        covariates = {encoder.name: encoder.categories for encoder in self._covariates}
        schema = Schema(self.genes, self.batch_labels, self._encoders[1].categories, self.sample_labels, covariates)
        return make_registry(scvi.__version__, self.n_obs, self.n_obs_per_sample, schema, self._keys, self.provenance())

    def check(self, model: Any) -> None:
        """Raise a StateError, which lists the differences, if a model or registry has other genes or categories."""
        compare(find_registry(model), self.registry)
