"""Loaders for training, validation, testing and prediction: the common base of the Lightning data modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from cellfeed._checks import suggest
from cellfeed._tabular import Tabular
from cellfeed.errors import PlanError
from cellfeed.loader.dataloader import ExperimentDataLoader, experiment_dataloader
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.loader.inference import InferenceDataLoader, inference_dataloader
from cellfeed.loader.provenance import IN_ASCENDING_ORDER, check_classes, check_record, describe
from cellfeed.plan.settings import IN_ORDER
from cellfeed.select.gene_names import identify_columns
from cellfeed.sources.opening import is_axis_query

PARTS = ("train", "validation", "test")
"""The parts of a split, in the order of a sequence of fractions."""

Split = Mapping[str, Any] | Sequence[float]


def open_dataset(experiment: Any, parameters: Mapping[str, Any]) -> ExperimentDataset:
    """Make the dataset of an experiment, its URI, or a query; a dataset is returned unchanged."""
    if isinstance(experiment, ExperimentDataset):
        if parameters:
            raise PlanError(f"{next(iter(parameters))}= is decided by the dataset that was given as experiment=")
        return experiment
    if is_axis_query(experiment):
        return ExperimentDataset.from_query(experiment, **parameters)
    return ExperimentDataset(experiment, **parameters)


def divide(
    dataset: ExperimentDataset, split: Split, seed: int, stratify: str | None, group: str | None
) -> dict[str, ExperimentDataset]:
    """Return the parts of a dataset by name, without parts of fraction 0."""
    parts: dict[str, Any] = dict(split if isinstance(split, Mapping) else zip(PARTS, split, strict=False))
    unknown = [name for name in parts if name not in PARTS]
    if unknown or len(parts) < (0 if isinstance(split, Mapping) else len(split)) or "train" not in parts:
        what = suggest(unknown[0], PARTS) if unknown else f"there must be a train part, and at most {len(PARTS)} parts"
        raise PlanError(f"split={split!r} must name parts: {what}")
    if any(isinstance(part, ExperimentDataset) for part in parts.values()):
        _check_datasets(parts, stratify, group)
        return parts
    fractions = {name: fraction for name, fraction in parts.items() if fraction != 0}
    return dict(zip(fractions, dataset.random_split(fractions, seed, stratify=stratify, group=group), strict=True))


def _check_datasets(parts: Mapping[str, Any], stratify: str | None, group: str | None) -> None:
    """Check the parts of a split that are datasets already."""
    if stratify is not None or group is not None:
        raise PlanError(
            f"stratify={stratify!r} and group={group!r} have no effect on parts that are given; leave them out"
        )
    for name, part in parts.items():
        if not isinstance(part, ExperimentDataset):
            raise PlanError(f"split: {name}={part!r} must be an ExperimentDataset, as other parts are")
    genes = {name: part.var_joinids.tobytes() for name, part in parts.items()}
    differing = [name for name in genes if genes[name] != genes["train"]]
    if differing:
        raise PlanError(f"split: {differing[0]} has other genes than train; make them with the same var_query")


class Loaders(Tabular):
    """Mixin that gives a Lightning data module its loaders; Lightning's own class has one of two import paths.

    Attributes
    ----------
    dataset
        All cells.
    parts
        The datasets of the split, by name: train, and validation and test if they exist.
    """

    dataset: ExperimentDataset
    parts: dict[str, ExperimentDataset]
    _var_column: str | None = None
    _to_resume: dict[str, Any] | None = None

    def _set_up_loaders(
        self,
        dataset: ExperimentDataset,
        parts: dict[str, ExperimentDataset],
        predict: str,
        num_workers: int,
        dataloader_kwargs: Mapping[str, Any] | None,
    ) -> None:
        self.dataset = dataset
        self.parts = parts
        self._predict = predict
        self._num_workers = num_workers
        self._options = dict(dataloader_kwargs or {})
        if predict != "all" and predict not in parts:
            raise PlanError(f"predict={predict!r} must be 'all' or a part of the split; {suggest(predict, parts)}")

    @property
    def n_obs(self) -> int:
        """Number of cells of all parts."""
        return self.dataset.shape[0]

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return self.dataset.shape[1]

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={part.shape[0]:,} cells" for name, part in self.parts.items())
        cells = describe(self.dataset._engine.selection, self.dataset._engine.settings)
        return f"{type(self).__name__}({cells}, {parts})"

    def _table(self) -> dict[str, str]:
        table = self.dataset._table()
        orders = {**dict.fromkeys(self.parts, IN_ASCENDING_ORDER), "train": self._training_cells()._table()["order"]}
        del table["order"]
        for name, part in self.parts.items():
            table[name] = f"{part.shape[0]:,} cells, {orders[name]}"
        return {**table, "predict": f"{self._part(self._predict).shape[0]:,} cells, {IN_ASCENDING_ORDER}"}

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """Description of the data for checkpoints: read once, as checkpoints are written often."""
        genes = identify_columns(self.dataset._engine.selection, self._var_column)
        classes = {name: getattr(encoder, "classes_", None) for name, encoder in self.dataset.obs_encoders.items()}
        return {
            "provenance": self.parts["train"].provenance(self._var_column),
            "genes": genes,
            "classes": {name: np.asarray(known).tolist() for name, known in classes.items() if known is not None},
        }

    def provenance(self) -> dict[str, Any]:
        """Describe the training cells; see :meth:`cellfeed.ExperimentDataset.provenance`."""
        return dict(self._identity["provenance"])

    def state_dict(self) -> dict[str, Any]:
        """Describe the data and the position of training in an epoch, for a checkpoint; Lightning calls it."""
        epochs = self._training_cells()._engine.epochs
        return {**self._identity, "training": None if epochs.is_at_end else epochs.save()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of a model that was trained on data of another meaning; Lightning calls it.

        Raises
        ------
        StateError
            If the genes, their order, the transform, or the codes of labels differ; the message names them.
        """
        own = self._identity
        check_record(state["provenance"], state["genes"], own["provenance"], own["genes"])
        check_classes(state["classes"], own["classes"])
        trainer = getattr(self, "trainer", None)
        if trainer is None or trainer.state.fn == "fit":  # prediction from a checkpoint does not change training
            self._to_resume = state.get("training")

    @property
    def _device(self) -> Any:
        """The CUDA device on which this rank trains; ``None`` elsewhere, where Lightning moves minibatches."""
        trainer = getattr(self, "trainer", None)
        device = torch.device("cpu") if trainer is None else trainer.strategy.root_device
        return device if device.type == "cuda" else None

    def _loader(self, dataset: ExperimentDataset) -> ExperimentDataLoader:
        return experiment_dataloader(dataset, self._num_workers, **{"device": self._device, **self._options})

    def _training_cells(self) -> ExperimentDataset:
        """Return the dataset that training reads."""
        return self.parts["train"]

    def train_dataloader(self) -> ExperimentDataLoader:
        """Make the loader of the training cells; each iteration over it is one epoch with its own order."""
        dataset = self._training_cells()
        # Lightning restores the loader too, but not if the model reads ``trainer.estimated_stepping_batches``.
        if self._to_resume is not None:
            dataset.load_state_dict(self._to_resume)
            self._to_resume = None
        return self._loader(dataset)

    def val_dataloader(self) -> ExperimentDataLoader | list[Any]:
        """Make the loader of the validation cells, in ascending order of their joinids."""
        return self._evaluating("validation")

    def test_dataloader(self) -> ExperimentDataLoader | list[Any]:
        """Make the loader of the test cells, in ascending order of their joinids."""
        return self._evaluating("test")

    def predict_dataloader(self) -> InferenceDataLoader:
        """Make the loader of ``(X, obs, joinids)`` of the cells to predict, in ascending order of their joinids."""
        return self._ordered(self._part(self._predict))

    def _ordered(self, dataset: ExperimentDataset, batch_size: int | None = None) -> InferenceDataLoader:
        options = {name: value for name, value in self._options.items() if name not in _WORKER_OPTIONS}
        return inference_dataloader(dataset, batch_size, **{"device": self._device, **options})

    def _part(self, name: str) -> ExperimentDataset:
        return self.dataset if name == "all" else self.parts[name]

    def _evaluating(self, name: str) -> ExperimentDataLoader | list[Any]:
        """Make the loader of a part in ascending order of the joinids.

        All ranks yield equally many minibatches, as a model that synchronises its buffers would hang otherwise.
        """
        if name not in self.parts:
            return []
        ordered = self.parts[name]._with(**IN_ORDER, rank_remainder="drop")
        return self._loader(ordered)


_WORKER_OPTIONS = {"multiprocessing_context", "persistent_workers", "prefetch_factor", "timeout", "worker_init_fn"}
"""Arguments of a loader that require worker processes."""
