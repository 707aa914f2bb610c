"""A data module for scvi-tools' models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import scvi
import torch
from lightning.pytorch import LightningDataModule

from cellfeed._checks import ordered
from cellfeed.errors import EncodeError, SelectionError
from cellfeed.loader.datamodule import Loaders, Split, divide, open_dataset
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.loader.inference import inference_dataloader, with_joinids
from cellfeed.loader.world import find_ranks
from cellfeed.rows.densify import densified
from cellfeed.scvi.covariates import Categories, read_numbers
from cellfeed.scvi.registry import (
    Known,
    compare,
    find_registry,
    keys_of,
    make_registry,
    name_model,
)

LEAST_CELLS = 3
"""Cells that a last training minibatch must have: batch normalisation needs several; scvi-tools has the same rule."""


class SCVIDataModule(Loaders, LightningDataModule):  # type: ignore[misc]
    """Train scvi-tools' models (SCVI, SCANVI and others that take data modules) on a SOMA experiment.

    X must hold counts, unless ``counts=False``. Genes are known by their names, categories by their text: codes mean
    the same in every module that is made from one reference, whatever cells it has.

    Parameters
    ----------
    experiment
        An open ``tiledbsoma.Experiment``, the URI of one, or a ``tiledbsoma.ExperimentAxisQuery``.
    batch_key
        A column of obs; several, whose combinations are the batches; or ``None`` for one batch. scvi-tools knows
        several by their names joined by ``"//"``: ``model.differential_expression(groupby="donor//site", ...)``.
    labels_key
        A column of obs, or ``None``.
    unlabeled_category
        For SCANVI: the label of cells without one. Missing labels, and those that the reference lacks, count as it.
    categorical_covariate_keys, continuous_covariate_keys
        Columns of obs, each a covariate of its own. Continuous ones must be finite.
    genes
        Names of the genes to take, in this order; ``None`` takes all that are selected.
    var_column
        The column of var that names genes; see :meth:`cellfeed.ExperimentDataset.gene_names`.
    missing_genes
        What to do about ``genes`` that the store lacks: ``"error"``, or ``"zeros"``, which warns once.
    reference
        A model, the folder in which one was saved, or its registry: genes and categories are taken from it. See
        :meth:`from_reference`, which takes the keys as well.
    unseen
        What to do about batches and covariates that the reference lacks: ``"error"``, or ``"extend"``, for
        :func:`load_query_data`.
    counts
        Whether X must hold counts, integers of at least 0: the first minibatch of training or inference is looked at.
        ``False`` takes any values, for a model with a likelihood that fits them.
    batch_size, seed
        As for :class:`cellfeed.ExperimentDataset`.
    split, split_seed, stratify, group, num_workers, dataloader_kwargs
        As for :class:`cellfeed.lightning.ExperimentDataModule`. A last training minibatch of less than 3 cells is left
        out.
    parameters
        Others of :class:`cellfeed.ExperimentDataset`. With ``return_sparse_X=True`` X crosses to the device as CSR and
        becomes dense there.

    Raises
    ------
    MissingDependencyError
        When the module is imported and scvi-tools is not installed.
    SelectionError, EncodeError, PlanError
        If columns, genes or categories are missing, or the split is none; while minibatches are made, if X holds no
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
        categorical_covariate_keys: Sequence[str] = (),
        continuous_covariate_keys: Sequence[str] = (),
        genes: Sequence[str] | None = None,
        var_column: str | None = None,
        missing_genes: str = "error",
        reference: Any = None,
        unseen: str = "error",
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
            "categorical_covariate_keys": ordered("categorical_covariate_keys", categorical_covariate_keys),
            "continuous_covariate_keys": ordered("continuous_covariate_keys", continuous_covariate_keys),
            "var_column": var_column,
        }
        known = None if reference is None else Known.of(find_registry(reference))
        self._encoders = _make_encoders(self._keys, known, unseen)
        dataset = open_dataset(
            experiment, {"encoders": self._encoders, "batch_size": batch_size, "seed": seed, **parameters}
        )
        if known is not None or genes is not None:
            chosen = (genes if known is None else known.genes) or []
            dataset = dataset.select_genes(chosen, var_column=var_column, missing=missing_genes)
        dataset = with_joinids(dataset)
        self.genes = [str(name) for name in dataset.gene_names(None if genes or known else var_column)]
        self._var_column = None if genes or known else var_column
        continuous = self._keys["continuous_covariate_keys"]
        self._numbers = read_numbers(dataset._selection, continuous)
        self._joinids = dataset.obs_joinids if continuous else None
        self._trimmed: ExperimentDataset | None = None
        self._must_look = counts
        self._set_up_loaders(
            dataset, divide(dataset, split, split_seed, stratify, group), "all", num_workers, dataloader_kwargs
        )

    @classmethod
    def from_reference(cls, reference: Any, experiment: Any, **parameters: Any) -> SCVIDataModule:
        """Make a module whose tensors mean to a model what those mean that it was trained on.

        Genes come in the model's order, by name; categories have the model's codes.

        Parameters
        ----------
        reference
            A model, the folder in which one was saved, or its registry. It may have been trained on an AnnData.
        experiment
            As for the class.
        parameters
            Those of the class; the keys of batches, labels and covariates are the reference's unless given. Cells
            without labels need ``labels_key=None``.

        Returns
        -------
        The module, all cells in its train part unless ``split`` is given.
        """
        registry = find_registry(reference)
        return cls(experiment, reference=registry, **{"split": {"train": 1.0}, **keys_of(registry), **parameters})

    # ------------------------------------------------------------------ loaders

    def _training_cells(self) -> ExperimentDataset:
        """Return the dataset that training reads, without a last minibatch that is too small to normalise."""
        dataset = self.parts["train"]
        settings = dataset._settings
        share = dataset.shape[0] // find_ranks(settings.rank, settings.world_size)[1]
        if 0 < share % settings.batch_size < LEAST_CELLS and share > settings.batch_size:
            self._trimmed = self._trimmed or dataset._with(drop_last=True)  # one, which counts its epochs
            return self._trimmed
        return dataset

    def inference_dataloader(self, part: str = "all", batch_size: int | None = None) -> InferenceTensors:
        """Make a new loader of the tensors of all cells, or of a part, in the order of their joinids.

        Parameters
        ----------
        part
            ``"all"``, ``"train"``, ``"validation"`` or ``"test"``; the joinids of the rows are
            ``datamodule.dataset.obs_joinids`` and ``datamodule.parts[part].obs_joinids``.
        batch_size
            That of the module by default.
        """
        return InferenceTensors(self, self._part(part), batch_size)

    def setup(self, stage: str | None = None) -> None:
        """Check that a model under training has the genes and categories of this module; called by Lightning.

        The registry of the model gets the name of its class, as scvi-tools' own data modules give it.
        """
        model = getattr(self.trainer, "_model", None) if self.trainer is not None else None
        if model is not None and hasattr(model, "registry_"):
            self.check(model)
            name_model(model)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the tensors of a minibatch; for SCANVI and its kind in a pair with those of its labelled cells."""
        if isinstance(batch, dict):
            return batch
        tensors = self.tensors(batch[0], batch[1])
        plan = getattr(self.trainer, "lightning_module", None)
        if not isinstance(plan, scvi.train.SemiSupervisedTrainingPlan):
            return tensors
        labelled = tensors["labels"][:, 0] < self.n_labels
        if int(labelled.sum()) < 2:  # batch normalisation needs two
            return tensors
        return tensors, {name: densified(tensor)[labelled] for name, tensor in tensors.items()}

    def _check_counts(self, X: torch.Tensor) -> None:
        """Refuse a first minibatch that holds no counts, unless the module takes any values."""
        values = X.values() if X.layout == torch.sparse_csr else X
        odd = values[(values < 0) | (values != values.round())]
        if len(odd):
            raise SelectionError(
                f"X_name={self.dataset._selection.X_name!r} holds values that are no counts, such as {odd[0]:.4g}; the "
                f"models of scvi-tools expect counts: choose another layer, and no transform; or give counts=False if "
                f"the likelihood of the model fits such values"
            )
        self._must_look = False

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make CSR dense, on the device."""
        if isinstance(batch, tuple):
            return tuple(self.on_after_batch_transfer(part, dataloader_idx) for part in batch)
        return {name: densified(tensor) for name, tensor in batch.items()}

    def tensors(self, X: torch.Tensor, obs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what a model's module takes, by scvi-tools' names; ``obs`` as this module's dataset yields it."""
        if obs.ndim == 1:  # batch_size=1
            X, obs = X.reshape(1, -1) if X.ndim == 1 else X, obs[None]
        if self._must_look:
            self._check_counts(X)
        tensors = {"X": X if X.is_floating_point() else X.float(), "batch": obs[:, :1], "labels": obs[:, 1:2]}
        # Continuous before categorical: scvi-tools takes five keys in its own order for cells that are all labelled.
        if self._joinids is not None:
            places = np.searchsorted(self._joinids, obs[:, -1].numpy())
            tensors["extra_continuous_covs"] = torch.from_numpy(self._numbers[places])
        if len(self._encoders) > 2:
            tensors["extra_categorical_covs"] = obs[:, 2:-1]
        return tensors

    # ------------------------------------------------------------------ what scvi-tools asks for

    @property
    def n_batch(self) -> int:
        """Batches."""
        return len(self._encoders[0].categories)

    @property
    def n_labels(self) -> int:
        """Labels, without that of unlabelled cells."""
        return len(self._encoders[1].categories) - (self.unlabeled_category is not None)

    @property
    def n_continuous_cov(self) -> int:
        """Continuous covariates."""
        return int(self._numbers.shape[1])

    @property
    def n_cats_per_cov(self) -> list[int] | None:
        """Categories of each categorical covariate; ``None`` if there is none."""
        return [len(encoder.categories) for encoder in self._encoders[2:]] or None

    @property
    def n_samples(self) -> int:
        """Samples of MrVI: none."""
        return 0

    @property
    def batch_labels(self) -> list[str]:
        """The batches, by code."""
        return self._encoders[0].categories

    @property
    def label_keys(self) -> list[str] | None:
        """The column of labels, in a list."""
        return None if self._keys["labels_key"] is None else [self._keys["labels_key"]]

    @property
    def unlabeled_category(self) -> str | None:
        """The label of cells without one."""
        category: str | None = self._keys["unlabeled_category"]
        return category

    @property
    def labels_(self) -> Any:
        """The label of each cell, as text: shape (n_obs,).

        Where an ``unlabeled_category`` was given and all cells are labelled, one more entry names it: SCANVI counts it
        among the labels unless it meets it.
        """
        codes: Any = self.dataset._selection.codes[1]
        labels = self._encoders[1].inverse_transform(codes)
        if self.unlabeled_category is None or self.unlabeled_category in labels:
            return labels
        return np.append(labels, [self.unlabeled_category])

    @cached_property
    def registry(self) -> dict[str, Any]:
        """What a model keeps of its data: names of genes, categories by code, keys; and where they are from."""
        return make_registry(
            version=scvi.__version__,
            n_obs=self.n_obs,
            genes=self.genes,
            keys=self._keys,
            batches=self.batch_labels,
            labels=self._encoders[1].categories,
            covariates={encoder.name: encoder.categories for encoder in self._encoders[2:]},
            provenance=self.provenance(),
        )

    def check(self, model: Any) -> None:
        """Refuse a model, or its registry, whose genes or categories are not those of this module.

        Raises
        ------
        StateError
            It names genes and categories that differ.
        """
        compare(find_registry(model), self.registry)


class InferenceTensors:
    """What :meth:`SCVIDataModule.inference_dataloader` returns: dicts of tensors, in the order of the joinids.

    Attributes
    ----------
    joinids
        A tensor for each minibatch yielded so far: the ``soma_joinid`` of its rows. Under several ranks,
        :func:`cellfeed.gather_ordered` takes them with what the model made of the minibatches.

    Examples
    --------
    >>> from cellfeed.scvi import SCVIDataModule
    >>> datamodule = SCVIDataModule(cellfeed.datasets.pbmc700(), batch_key=None, batch_size=4, seed=0)
    >>> loader = datamodule.inference_dataloader()
    >>> sorted(next(iter(loader)))
    ['X', 'batch', 'labels']
    >>> loader.joinids
    [tensor([0, 1, 2, 3])]
    """

    def __init__(self, datamodule: SCVIDataModule, dataset: ExperimentDataset, batch_size: int | None) -> None:
        self._datamodule = datamodule
        self._loader = inference_dataloader(dataset, batch_size)
        self.joinids: list[torch.Tensor] = []

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self.joinids = []
        for X, obs, joinids in self._loader:
            self.joinids.append(joinids)
            yield self._datamodule.tensors(densified(X), obs)
            del X

    def __len__(self) -> int:
        """Minibatches."""
        return len(self._loader)


def _make_encoders(keys: Mapping[str, Any], known: Known | None, unseen: str) -> list[Categories]:
    labels = [] if keys["labels_key"] is None else [keys["labels_key"]]
    covariates = keys["categorical_covariate_keys"]
    if known is None:
        known = Known(None, None, None, dict.fromkeys(covariates))
    elif not keys["batch_key"] and len(known.batches or ()) > 1:
        raise EncodeError(
            f"batch_key=None, but the reference knows {len(known.batches or ())} batches; name the column"
        )
    return [
        Categories(keys["batch_key"], "_scvi_batch", known=known.batches, unseen=unseen),
        Categories(labels, "_scvi_labels", known=known.labels, unseen=unseen, other=keys["unlabeled_category"]),
        *(Categories([key], key, known=known.covariates.get(key), unseen=unseen) for key in covariates),
    ]
