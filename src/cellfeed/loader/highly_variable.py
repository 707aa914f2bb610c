"""Genes that vary more than others of their expression, found in one pass over the cells."""

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
    """Name the genes whose dispersion stands out among genes of like expression.

    As in Seurat's first method, which is scanpy's default (``flavor="seurat"``, Satija et al. 2015): of counts scaled
    to ``target_sum``, the logarithm of variance over mean, standardised within 20 bins of the logarithm of the mean.
    One pass over the cells, whatever their number; memory is that of reading, and two numbers a gene.

    Parameters
    ----------
    dataset
        Of counts. Its ``transform`` is left out.
    n_top_genes
        How many to name, at least 1.
    target_sum
        What each cell is scaled to.
    var_column
        The column of var that names genes; see :meth:`cellfeed.ExperimentDataset.gene_names`.

    Returns
    -------
    Names, the most variable gene first: fewer than ``n_top_genes`` if no more are expressed and vary. For
    :meth:`cellfeed.ExperimentDataset.select_genes`, or ``SCVIDataModule(genes=...)``.

    Raises
    ------
    PlanError
        If ``n_top_genes`` is below 1 or there are less than 2 cells.
    SelectionError
        If X holds negative values, which are no counts.

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
    dispersion = normalised_dispersion(mean, variance)
    order = np.argsort(-np.nan_to_num(dispersion, nan=-np.inf), kind="stable")
    varying = order[: min(n_top_genes, int(np.isfinite(dispersion).sum()))]
    return [str(name) for name in name_columns(dataset._selection, var_column)[varying]]


def moments(dataset: ExperimentDataset, transform: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the mean and the variance of each column of X over all cells, after a transform."""
    ordered = dataset._with(
        **IN_ORDER, rank_remainder="uneven", rank=0, world_size=1,
        return_sparse_X=True, X_dtype="float32", transform=None, batch_size=1024,
    )  # fmt: skip
    n_obs, n_vars = ordered.shape
    sums = torch.zeros(2, n_vars, dtype=torch.float64, device="cpu")
    for minibatch in ordered:
        _refuse_negative(minibatch.X.values(), dataset._selection.X_name)
        X = transform(minibatch.X)
        values, columns = X.values().double(), X.col_indices().long()
        sums[0].index_add_(0, columns, values)
        sums[1].index_add_(0, columns, values * values)
    mean, square = (sums / n_obs).numpy()
    return mean, np.maximum(square - mean**2, 0) * (n_obs / (n_obs - 1))


def _refuse_negative(values: torch.Tensor, X_name: str) -> None:
    if len(values) and (least := float(values.min())) < 0:
        raise SelectionError(
            f"X_name={X_name!r} holds negative values, such as {least:.4g}: these are no counts, maybe scaled values; "
            f"give a dataset with the layer that holds counts, ExperimentDataset(..., X_name=...)"
        )


def normalised_dispersion(mean: npt.NDArray[np.float64], variance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return how many standard deviations a gene's log dispersion is above those of its bin; NaN where it has none."""
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")
        dispersion = pd.Series(np.where(variance > 0, np.log(variance / mean), np.nan))
    bins = pd.cut(pd.Series(np.log1p(mean)), bins=N_BINS)
    grouped = dispersion.groupby(bins, observed=True)
    centre, spread = grouped.transform("mean"), grouped.transform("std")
    alone = spread.isna()  # a gene alone in its bin counts as one deviation above it
    centre[alone], spread[alone] = 0.0, dispersion[alone]
    return np.asarray((dispersion - centre) / spread, dtype=np.float64)
