"""Highly variable genes, found by reading all cells once."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cellfeed._checks import is_integer
from cellfeed.errors import PlanError, SelectionError
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.plan.settings import IN_ORDER
from cellfeed.select.gene_names import name_columns
from cellfeed.transforms import NormalizeTotal

N_BINS = 20
"""Bins of mean expression inside which genes are compared."""


def highly_variable_genes(
    dataset: ExperimentDataset, n_top_genes: int = 2000, *, target_sum: float = 1e4, var_column: str | None = None
) -> list[str]:
    """Return the names of the genes with the largest dispersion among genes of similar mean expression.

    The method is the first one of Seurat, scanpy's default (``flavor="seurat"``, Satija et al. 2015): counts are
    scaled to ``target_sum`` per cell, and the logarithm of variance over mean is standardised within 20 bins of the
    logarithm of the mean. All cells are read once; memory is that of reading, and two numbers per gene.

    Parameters
    ----------
    dataset
        A dataset of counts. Its ``transform`` is not applied.
    n_top_genes
        Number of genes to return, at least 1.
    target_sum
        Sum to which the counts of each cell are scaled.
    var_column
        The column of var that names genes; see :meth:`cellfeed.ExperimentDataset.gene_names`.

    Returns
    -------
    Names, the most variable gene first; fewer than ``n_top_genes`` if fewer genes are expressed and vary. They can be
    passed to :meth:`cellfeed.ExperimentDataset.select_genes`, or ``SCVIDataModule(genes=...)``.

    Raises
    ------
    PlanError
        If ``n_top_genes`` is below 1 or there are fewer than 2 cells.
    SelectionError
        If X holds negative values, which are not counts.

    Examples
    --------
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=0)
    >>> genes = cellfeed.highly_variable_genes(dataset, 50)
    >>> dataset.select_genes(genes).shape
    (700, 50)
    """
    if not is_integer(n_top_genes) or n_top_genes < 1 or dataset.shape[0] < 2:
        raise PlanError(
            f"n_top_genes={n_top_genes!r} must be an integer of at least 1, and the dataset have two cells or more"
        )
    mean, variance = moments(dataset, NormalizeTotal(target_sum))
    dispersion = normalized_dispersion(mean, variance)
    order = np.argsort(-np.nan_to_num(dispersion, nan=-np.inf), kind="stable")
    varying = order[: min(n_top_genes, int(np.isfinite(dispersion).sum()))]
    return [str(name) for name in name_columns(dataset._engine.selection, var_column)[varying]]


def moments(dataset: ExperimentDataset, transform: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the mean and the variance of each column of X over all cells, after a transform."""
    engine = dataset._engine.derive(
        **IN_ORDER, rank_remainder="uneven", rank=0, world_size=1,
        return_sparse_X=True, X_dtype="float32", transform=None, batch_size=1024,
    )  # fmt: skip
    n_obs, n_vars = engine.shape
    sums = torch.zeros(2, n_vars, dtype=torch.float64, device="cpu")  # of values and of squares
    for minibatch in engine.minibatches():
        _check_counts(minibatch.X.values(), engine.selection.X_name)
        X = transform(minibatch.X)
        values, columns = X.values().double(), X.col_indices().long()
        sums[0].index_add_(0, columns, values)
        sums[1].index_add_(0, columns, values * values)
    mean, square = (sums / n_obs).numpy()
    return mean, np.maximum(square - mean**2, 0) * (n_obs / (n_obs - 1))


def _check_counts(values: torch.Tensor, X_name: str) -> None:
    """Refuse negative values."""
    if len(values) and (smallest := float(values.min())) < 0:
        raise SelectionError(
            f"X_name={X_name!r} holds negative values, such as {smallest:.4g}: these are not counts, but may be scaled "
            f"values; give a dataset with the layer that holds counts, ExperimentDataset(..., X_name=...)"
        )


def normalized_dispersion(mean: npt.NDArray[np.float64], variance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the z-score of each gene's log dispersion among the genes of its bin; NaN for genes that do not vary."""
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")
        dispersion = pd.Series(np.where(variance > 0, np.log(variance / mean), np.nan))
    bins = pd.cut(pd.Series(np.log1p(mean)), bins=N_BINS)
    grouped = dispersion.groupby(bins, observed=True)
    centre, spread = grouped.transform("mean"), grouped.transform("std")
    alone = spread.isna()  # the only gene of a bin gets a z-score of 1
    centre[alone], spread[alone] = 0.0, dispersion[alone]
    return np.asarray((dispersion - centre) / spread, dtype=np.float64)
