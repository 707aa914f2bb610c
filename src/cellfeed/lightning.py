"""A data module for Lightning: ``pip install "cellfeed[lightning]"``.

Lightning is installed under two names, ``lightning.pytorch`` and ``pytorch_lightning``, and a trainer of one does not
take a data module of the other. The one that has been imported already is used; ``lightning.pytorch`` if both or none.
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
    """Import Lightning under the name that is in use."""
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

    Checkpoints hold the state of the training loader, and training goes on from one in the middle of an epoch with the
    cells that had not come yet, in the order in which they would have come; from one of the end of an epoch, with the
    order of the next epoch. Under several ranks each cell of an epoch
    comes once, fewer than there are ranks being left out, others each epoch; predictions leave out none.

    A checkpoint also says what the model was trained on (:meth:`provenance`). Where it is loaded with other data, to go
    on or to predict, other genes, another order of them or of the labels, or another transform are an error.

    Parameters
    ----------
    experiment
        An open ``tiledbsoma.Experiment``, the URI of one, a ``tiledbsoma.ExperimentAxisQuery``, or an
        :class:`~cellfeed.ExperimentDataset`.
    split
        Fractions that sum to 1, by name (``"train"``, ``"validation"``, ``"test"``) or in this order; or datasets of
        your own by these names. Without validation or test, Lightning skips them.
    split_seed, stratify, group
        As for :meth:`cellfeed.ExperimentDataset.random_split`.
    var_column
        The column of var that names genes in checkpoints; see :meth:`cellfeed.ExperimentDataset.gene_names`.
    predict
        Cells that :meth:`predict_dataloader` serves: ``"all"``, or a part of the split.
    num_workers
        Worker processes of the loaders for training, validation and testing; 0 reads in threads, which is faster.
    dataloader_kwargs
        Further arguments of :func:`cellfeed.experiment_dataloader`, such as ``{"pin_memory": True}``.
    parameters
        Those of :class:`cellfeed.ExperimentDataset`: ``obs_column_names``, ``batch_size``, ``seed`` and so on. Several
        ranks need a ``seed``.

    Raises
    ------
    MissingDependencyError
        When the module is imported and Lightning is not installed.
    PlanError, SelectionError, EncodeError
        As for :class:`cellfeed.ExperimentDataset`, or if the split is none.

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
