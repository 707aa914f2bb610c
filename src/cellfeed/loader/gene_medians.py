"""The median of the values of each gene, found by reading all cells once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cellfeed._checks import warn_user
from cellfeed._joinids import IntArray
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.loader.highly_variable import read_counts
from cellfeed.select.gene_names import name_columns
from cellfeed.transforms import NormalizeTotal

BYTES_PER_VALUE = 32
"""Memory that pandas takes to find exact medians, per value above 0."""

GAMMA = 1.02
"""Ratio of the limits of a bin: their middle is within 1 % of each value in it."""

N_BINS = 1024
"""Bins of a gene: their limits span a factor of 6e8."""


def gene_medians(
    dataset: ExperimentDataset, *, target_sum: float = 1e4, var_column: str | None = None
) -> pd.Series[float]:
    """Return the median of the values above 0 of each gene, after each cell is scaled to the same total.

    :class:`cellfeed.tokens.RankTokens` takes these medians. All cells are read once. Medians are exact if the values
    fit in ``memory_budget`` of the dataset, at 32 bytes each. Otherwise values are counted in bins whose limits have a
    ratio of 1.02, which takes 4 KiB per gene: a warning says so, and a median is within 1 % of a value in the middle.

    Parameters
    ----------
    dataset
        A dataset of counts. Its ``transform`` is not applied.
    target_sum
        Sum to which the counts of each cell are scaled.
    var_column
        The column of var that names genes; see :meth:`cellfeed.ExperimentDataset.gene_names`.

    Returns
    -------
    float64, shape (n_vars,), by the name of the gene; NaN for a gene without values.

    Raises
    ------
    SelectionError
        If X holds negative values, which are not counts.

    References
    ----------
    The bins are those of DDSketch: Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch with
    relative-error guarantees", VLDB 2019.

    Examples
    --------
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=0)
    >>> medians = cellfeed.gene_medians(dataset)
    >>> bool(medians["LYZ"] > medians["CD3D"])
    True
    """
    scale, budget = NormalizeTotal(target_sum), dataset._engine.settings.memory_budget
    names = name_columns(dataset._engine.selection, var_column)
    medians = _Medians(len(names), budget // BYTES_PER_VALUE, target_sum)
    for X in read_counts(dataset):
        X = scale(X)
        medians.add(X.col_indices().numpy(), X.values().numpy())
    return pd.Series(medians.result(), index=pd.Index(names))


class _Medians:
    """Finds medians of values by gene: of all values as long as they fit, and of their bins otherwise."""

    def __init__(self, n_vars: int, max_values: int, highest: float) -> None:
        self._n_vars, self._max_values = n_vars, max_values
        self._first = np.log(highest) / np.log(GAMMA) - N_BINS + 1  # the number of the lowest bin
        self._parts: list[tuple[IntArray, npt.NDArray[np.float32]]] = [(np.empty(0, np.int64), np.empty(0, np.float32))]
        self._n_values = 0
        self._counts: torch.Tensor | None = None  # (n_vars * N_BINS,)

    def add(self, genes: IntArray, values: npt.NDArray[np.float32]) -> None:
        """Add the values of some cells."""
        is_positive = values > 0
        self._parts.append((genes[is_positive], values[is_positive]))
        self._n_values += len(self._parts[-1][0])
        if self._n_values > self._max_values:
            self._count()

    def _count(self) -> None:
        """Count the values that were kept, and those that follow."""
        if self._counts is None:
            self._counts = torch.zeros(self._n_vars * N_BINS, dtype=torch.int32, device="cpu")
            self._max_values = 0
            warn_user(
                "gene_medians: the values do not fit in memory_budget, so that medians are within 1 % of a value in "
                "the middle; for exact medians, give the dataset more memory_budget, or take a part of its cells"
            )
        for genes, values in self._parts:
            bins = np.ceil(np.log(values.astype(np.float64)) / np.log(GAMMA) - self._first).astype(np.int64)
            places = torch.from_numpy(genes.astype(np.int64) * N_BINS + np.clip(bins, 0, N_BINS - 1))
            self._counts.index_add_(0, places, torch.ones(len(places), dtype=torch.int32, device="cpu"))
        self._parts.clear()

    def result(self) -> npt.NDArray[np.float64]:
        """Return the medians: shape (n_vars,)."""
        if self._counts is None:
            genes, values = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
            exact = pd.Series(values.astype(np.float64)).groupby(genes).median()
            return np.asarray(exact.reindex(range(self._n_vars)), np.float64)
        totals = self._counts.numpy().reshape(self._n_vars, N_BINS).cumsum(axis=1)
        middle = (totals >= (totals[:, -1:] + 1) // 2).argmax(axis=1)
        limits = GAMMA ** (middle + self._first)
        medians = np.where(totals[:, -1] > 0, 2 * limits / (GAMMA + 1), np.nan)
        return np.asarray(medians, np.float64)
