"""Highly variable genes, found by reading the cells."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np
import pandas as pd
import torch

from cellfeed._checks import is_integer, is_number, ordered, suggest
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError, SelectionError
from cellfeed.loader.count_tally import CountTally, FloatArray
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.loader.standardized_variance import check_loess, rank, standardized_variances
from cellfeed.plan.settings import IN_ORDER
from cellfeed.select.batch_encoder import BatchEncoder
from cellfeed.select.gene_names import name_columns
from cellfeed.select.labels import read_obs_column
from cellfeed.transforms import NormalizeTotal

N_BINS = 20
"""Bins of mean expression inside which genes are compared."""

FLAVORS = ("seurat", "seurat_v3", "seurat_v3_paper")
"""The methods, by scanpy's names."""


@overload
def highly_variable_genes(
    dataset: ExperimentDataset, n_top_genes: int = ..., *, flavor: str = ...,
    batch_key: str | Sequence[str] | None = ..., span: float = ..., target_sum: float = ...,
    var_column: str | None = ..., as_frame: Literal[False] = ...,
) -> list[str]: ...  # fmt: skip


@overload
def highly_variable_genes(
    dataset: ExperimentDataset, n_top_genes: int = ..., *, flavor: str = ...,
    batch_key: str | Sequence[str] | None = ..., span: float = ..., target_sum: float = ...,
    var_column: str | None = ..., as_frame: Literal[True],
) -> pd.DataFrame: ...  # fmt: skip


def highly_variable_genes(
    dataset: ExperimentDataset,
    n_top_genes: int = 2000,
    *,
    flavor: str = "seurat",
    batch_key: str | Sequence[str] | None = None,
    span: float = 0.3,
    target_sum: float = 1e4,
    var_column: str | None = None,
    as_frame: bool = False,
) -> list[str] | pd.DataFrame:
    """Return the names of the genes that vary most among genes of similar mean expression, as scanpy does.

    ``flavor="seurat"``, the default of scanpy (Satija et al. 2015), scales counts to ``target_sum`` per cell and
    standardises the logarithm of variance over mean within 20 bins of the logarithm of the mean. Memory is that of
    reading, and two numbers per gene.

    ``flavor="seurat_v3"`` (Stuart et al. 2019), usual for scVI, takes counts as they are, divides each variance by
    that of a LOESS curve at the mean of the gene, and clips large counts, in each batch. It needs scikit-misc, which
    ``cellfeed[scvi]`` installs. Where counts are clipped is known only after all cells are read; the cells are still
    read once, because the largest counts of each gene are held in memory. Memory is three numbers per batch and
    gene, and 16 million counts (0.3 GB) or four per batch and gene. The cells are read a second time if that is
    too few for a gene, so that the result is always exact.

    Parameters
    ----------
    dataset
        A dataset of counts. Its ``transform`` is not applied.
    n_top_genes
        Number of genes to return, at least 1.
    flavor
        ``"seurat"``, ``"seurat_v3"``, or ``"seurat_v3_paper"``, which orders genes first by the number of batches in
        which they are among the ``n_top_genes``, and then by the median of their ranks there.
    batch_key
        A column of obs, or several, whose combinations are the batches of ``"seurat_v3"``.
    span
        The share of the genes that the LOESS curve takes into account at each point, in (0, 1].
    target_sum
        Sum to which ``"seurat"`` scales the counts of each cell.
    var_column
        The column of var that names genes; see :meth:`cellfeed.ExperimentDataset.gene_names`.
    as_frame
        Whether to return the statistics of all genes in the order of the dataset, with the columns of
        ``scanpy.pp.highly_variable_genes(..., inplace=False)``.

    Returns
    -------
    Names, the most variable gene first; with ``"seurat"``, fewer than ``n_top_genes`` if fewer genes are expressed
    and vary. They can be passed to :meth:`cellfeed.ExperimentDataset.select_genes`, or ``SCVIDataModule(genes=...)``.
    With ``as_frame=True``, a DataFrame.

    Raises
    ------
    PlanError
        If an argument is invalid, a batch has fewer than 2 cells, or no LOESS curve fits.
    SelectionError
        If obs lacks a column, or X holds negative values or, with ``"seurat_v3"``, other values that are not counts.
    MissingDependencyError
        If ``"seurat_v3"`` lacks scikit-misc.

    Examples
    --------
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=0)
    >>> genes = cellfeed.highly_variable_genes(dataset, 50)
    >>> dataset.select_genes(genes).shape
    (700, 50)
    >>> frame = cellfeed.highly_variable_genes(dataset, 50, flavor="seurat_v3", as_frame=True)
    >>> frame.loc[["MZB1", "IGJ"], "variances_norm"].round(2).tolist()
    [12.35, 11.67]
    """
    _check_arguments(dataset, n_top_genes, flavor, batch_key, span)
    if flavor == "seurat":
        frame = _by_dispersion(dataset, n_top_genes, target_sum)
    else:
        frame = _by_standardized_variance(dataset, n_top_genes, flavor, batch_key, span)
    names = name_columns(dataset._engine.selection, var_column)
    if as_frame:
        return frame.sort_index().set_axis(pd.Index(names, dtype=object), axis=0)
    return [str(name) for name in names[frame.index[frame["highly_variable"]]]]


def _check_arguments(dataset: ExperimentDataset, n_top_genes: Any, flavor: str, batch_key: Any, span: Any) -> None:
    """Check what can be checked before cells are read."""
    if not is_integer(n_top_genes) or n_top_genes < 1 or dataset.shape[0] < 2:
        raise PlanError(
            f"n_top_genes={n_top_genes!r} must be an integer of at least 1, and the dataset have two cells or more"
        )
    if flavor not in FLAVORS:
        raise PlanError(f"flavor={flavor!r} is unknown; {suggest(flavor, FLAVORS)}")
    if not is_number(span) or not 0 < span <= 1:
        raise PlanError(f"span={span!r} must be a number above 0 and at most 1, such as 0.3")
    if flavor != "seurat":
        check_loess()
    elif batch_key is not None:
        raise PlanError(f'batch_key={batch_key!r} has no effect with flavor="seurat"; give flavor="seurat_v3"')


def _by_dispersion(dataset: ExperimentDataset, n_top_genes: int, target_sum: float) -> pd.DataFrame:
    """Return the statistics of the first method of Seurat, the most variable gene first."""
    scale = NormalizeTotal(target_sum)
    tally = CountTally(1, dataset.shape[1], floor=np.full((1, dataset.shape[1]), np.inf))
    for X in read_counts(dataset):
        tally.add(np.zeros(len(X), np.int64), scale(X))
    mean, variance = tally.mean[0], np.maximum(tally.variance[0], 0)
    dispersion, normalized = normalized_dispersion(mean, variance)
    order = np.argsort(-np.nan_to_num(normalized, nan=-np.inf), kind="stable")
    frame = pd.DataFrame({"means": np.log1p(mean), "dispersions": dispersion, "dispersions_norm": normalized})
    n_varying = int(np.isfinite(normalized).sum())
    frame["highly_variable"] = frame.index.isin(order[: min(n_top_genes, n_varying)])
    return frame.loc[order]


def _by_standardized_variance(
    dataset: ExperimentDataset, n_top_genes: int, flavor: str, batch_key: str | Sequence[str] | None, span: float
) -> pd.DataFrame:
    """Return the statistics of Seurat v3, the first gene of the ranking first."""
    names, codes = _find_batches(dataset, batch_key)

    def read(floor: FloatArray | None) -> CountTally:
        tally, n_read = CountTally(len(names), dataset.shape[1], floor), 0
        for X in read_counts(dataset, integers=True):
            tally.add(codes[n_read : n_read + len(X)], X)
            n_read += len(X)
        return tally

    whole, standardized = standardized_variances(read, names, span)
    frame = rank(standardized, n_top_genes, by_batches=flavor == "seurat_v3_paper")
    frame.insert(0, "means", whole.mean[0][frame.index])
    frame.insert(1, "variances", whole.variance[0][frame.index])
    return frame if batch_key is not None else frame.drop(columns="highly_variable_nbatches")


def _find_batches(dataset: ExperimentDataset, batch_key: str | Sequence[str] | None) -> tuple[list[str], IntArray]:
    """Return the batches, and the code of each cell in the order of the joinids."""
    if batch_key is None:
        return ["all"], np.zeros(dataset.shape[0], np.int64)
    columns = [batch_key] if isinstance(batch_key, str) else ordered("batch_key", batch_key)
    obs = pd.DataFrame({column: read_obs_column(dataset._engine.selection, column) for column in columns})
    encoder = BatchEncoder(columns, separator="//")
    encoder.fit(obs)
    codes = encoder.transform(obs).astype(np.int64)
    n_cells = np.bincount(codes)
    if (n_cells < 2).any():
        single = encoder.classes_[int(n_cells.argmin())]
        raise PlanError(
            f"batch_key={batch_key!r}: batch {single!r} has 1 cell, which has no variance; exclude it by obs_query, or "
            f"give a batch_key with larger batches"
        )
    return list(encoder.classes_), codes


def read_counts(dataset: ExperimentDataset, *, integers: bool = False) -> Iterator[torch.Tensor]:
    """Yield X of all cells in the order of their joinids, in CSR, without the transform of the dataset."""
    engine = dataset._engine.derive(
        **IN_ORDER, rank_remainder="uneven", rank=0, world_size=1,
        return_sparse_X=True, X_dtype="float32", transform=None, batch_size=1024,
    )  # fmt: skip
    for minibatch in engine.minibatches():
        _check_counts(minibatch.X.values(), engine.selection.X_name, integers)
        yield minibatch.X


def _check_counts(values: torch.Tensor, X_name: str, integers: bool) -> None:
    """Refuse negative values, and values that are not integers if ``integers``."""
    if len(values) and (smallest := float(values.min())) < 0:
        raise SelectionError(
            f"X_name={X_name!r} holds negative values, such as {smallest:.4g}: these are not counts, but may be scaled "
            f"values; give a dataset with the layer that holds counts, ExperimentDataset(..., X_name=...)"
        )
    if integers and len(odd := values[values != values.round()]):
        raise SelectionError(
            f"X_name={X_name!r} holds values that are not integers, such as {odd[0]:.4g}; this flavor expects counts: "
            f"give a dataset with the layer that holds them, ExperimentDataset(..., X_name=...), or flavor='seurat'"
        )


def normalized_dispersion(mean: FloatArray, variance: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return each gene's log dispersion, and its z-score in the genes of its bin; NaN for genes that do not vary."""
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")
        dispersion = pd.Series(np.where(variance > 0, np.log(variance / mean), np.nan))
    bins = pd.cut(pd.Series(np.log1p(mean)), bins=N_BINS)
    grouped = dispersion.groupby(bins, observed=True)
    centre, spread = grouped.transform("mean"), grouped.transform("std")
    alone = spread.isna()  # the only gene of a bin gets a z-score of 1
    centre[alone], spread[alone] = 0.0, dispersion[alone]
    return np.asarray(dispersion), np.asarray((dispersion - centre) / spread, dtype=np.float64)
