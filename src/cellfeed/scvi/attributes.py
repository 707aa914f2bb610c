"""What models of scvi-tools read of a data module: numbers and names of categories and cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.scvi.covariates import Categories


class ModelAttributes:
    """Mixin that gives a data module the attributes that scvi-tools reads."""

    dataset: ExperimentDataset
    parts: dict[str, ExperimentDataset]
    _keys: dict[str, Any]
    _encoders: list[Categories]  # of batches, labels, samples (with a key of samples), and each categorical covariate

    @property
    def n_batch(self) -> int:
        """Number of batches."""
        return len(self._encoders[0].categories)

    @property
    def n_labels(self) -> int:
        """Number of labels, without the unlabeled category."""
        return len(self._encoders[1].categories) - (self.unlabeled_category is not None)

    @property
    def n_continuous_cov(self) -> int:
        """Number of continuous covariates."""
        return len(self._keys["continuous_covariate_keys"])

    @property
    def n_cats_per_cov(self) -> list[int] | None:
        """Number of categories of each categorical covariate; ``None`` without covariates."""
        return [len(encoder.categories) for encoder in self._covariates] or None

    @property
    def _covariates(self) -> list[Categories]:
        """The encoders of the categorical covariates."""
        return self._encoders[len(self._encoders) - len(self._keys["categorical_covariate_keys"]) :]

    @property
    def n_samples(self) -> int:
        """Number of samples; 0 without ``sample_key``."""
        return len(self.sample_labels)

    @property
    def sample_labels(self) -> list[str]:
        """The samples, by code."""
        return [] if self._keys["sample_key"] is None else self._encoders[2].categories

    @property
    def n_obs_per_sample(self) -> torch.Tensor:
        """Cells of each sample by code, float32; empty without ``sample_key``."""
        if self._keys["sample_key"] is None:
            return torch.tensor([])
        codes: Any = self.dataset._engine.selection.codes[self._encoders[2].name]
        return torch.from_numpy(np.bincount(codes, minlength=self.n_samples).astype(np.float32))

    @property
    def n_train(self) -> int:
        """Number of training cells, by which models weight losses that are not of single cells."""
        return self.parts["train"].shape[0]

    @property
    def n_val(self) -> int:
        """Number of validation cells."""
        return self.parts["validation"].shape[0] if "validation" in self.parts else 0

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
        """The label of cells without a label."""
        return self._keys["unlabeled_category"]  # type: ignore[no-any-return]

    @property
    def labels_(self) -> Any:
        """The label of each cell, as text: shape (n_obs,).

        If there is an ``unlabeled_category`` and all cells are labelled, one more entry names it, because SCANVI
        expects it here.
        """
        codes: Any = self.dataset._engine.selection.codes[self._encoders[1].name]
        labels = self._encoders[1].inverse_transform(codes)
        if self.unlabeled_category is None or self.unlabeled_category in labels:
            return labels
        return np.append(labels, [self.unlabeled_category])
