"""A data module for Lightning: ``pip install "cellfeed[lightning]"``.

Lightning has two import paths, ``lightning.pytorch`` and ``pytorch_lightning``, and a trainer of one does not accept a
data module of the other. The path that was imported already is used; ``lightning.pytorch`` if both or neither were.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from typing import Any

from cellfeed.errors import MissingDependencyError
from cellfeed.loader.datamodule import Loaders, Split, divide, open_dataset

NAMES = ("lightning.pytorch", "pytorch_lightning")


def find_lightning() -> Any:
    """Import Lightning by the path that is in use."""
    imported = [name for name in NAMES if name in sys.modules]
    for name in [*imported, *NAMES]:
        if importlib.util.find_spec(name.split(".")[0]) is not None:
            return importlib.import_module(name)
    raise MissingDependencyError(
        'cellfeed.lightning needs Lightning, which is not installed: pip install "cellfeed[lightning]"'
    )


lightning = find_lightning()
LightningDataModule: Any = lightning.LightningDataModule


class ExperimentDataModule(Loaders, LightningDataModule):  # type: ignore[misc]
    """Train, validate, test and predict on the cells of a SOMA experiment under Lightning.

    Checkpoints contain the state of the training loader. From a checkpoint in the middle of an epoch, training
    continues with the remaining cells in their order; from one at the end of an epoch, with the next epoch. Under
    several ranks each cell of an epoch is yielded once, except for fewer cells than there are ranks, different ones in
    each epoch; predictions include every cell.

    A checkpoint also describes the training data (:meth:`provenance`). If it is loaded with data that have other genes,
    another order of genes or labels, or another transform, an error is raised.

    Parameters
    ----------
    experiment
        An open ``tiledbsoma.Experiment``, the URI of one, a ``tiledbsoma.ExperimentAxisQuery``, or an
        :class:`~cellfeed.ExperimentDataset`.
    split
        Fractions that sum to 1, by name (``"train"``, ``"validation"``, ``"test"``) or in this order; or datasets by
        these names. Without validation or test, Lightning skips them.
    split_seed, stratify, group
        As for :meth:`cellfeed.ExperimentDataset.random_split`.
    var_column
        The column of var that names genes in checkpoints; see :meth:`cellfeed.ExperimentDataset.gene_names`.
    predict
        Cells of :meth:`predict_dataloader`: ``"all"``, or a part of the split.
    num_workers
        Worker processes of the loaders for training, validation and testing; 0 reads in threads, which is faster.
    dataloader_kwargs
        Further arguments of :func:`cellfeed.experiment_dataloader`. On GPUs, ``device`` is that of the rank by default;
        ``{"device": None}`` makes minibatches on the CPU, and Lightning moves them.
    parameters
        Parameters of :class:`cellfeed.ExperimentDataset`: ``obs_column_names``, ``batch_size``, ``seed`` and so on.
        Several ranks need a ``seed``.

    Raises
    ------
    MissingDependencyError
        When the module is imported and Lightning is not installed.
    PlanError, SelectionError, EncodeError
        As for :class:`cellfeed.ExperimentDataset`, or if the split is invalid.

    Examples
    --------
    >>> from cellfeed.lightning import ExperimentDataModule
    >>> datamodule = ExperimentDataModule(
    ...     cellfeed.datasets.pbmc700(), split={"train": 0.8, "validation": 0.2}, stratify="bulk_labels",
    ...     obs_column_names=["bulk_labels"], batch_size=64, seed=0,
    ... )
    >>> X, obs = next(iter(datamodule.train_dataloader()))  # trainer.fit(model, datamodule=datamodule)
    >>> X.shape
    torch.Size([64, 765])
    """

    def __init__(
        self,
        experiment: Any,
        *,
        split: Split = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        stratify: str | None = None,
        group: str | None = None,
        var_column: str | None = None,
        predict: str = "all",
        num_workers: int = 0,
        dataloader_kwargs: Mapping[str, Any] | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__()
        dataset = open_dataset(experiment, parameters)
        parts = divide(dataset, split, split_seed, stratify, group)
        self._var_column = var_column
        self._set_up_loaders(dataset, parts, predict, num_workers, dataloader_kwargs)

    @property
    def obs_encoders(self) -> Any:
        """The fitted encoders by name, in the order of the columns of ``obs``."""
        return self.dataset.obs_encoders
