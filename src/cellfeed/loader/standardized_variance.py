"""Variances of counts relative to those of genes of similar mean: the method of Seurat v3."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfeed.errors import MissingDependencyError, PlanError
from cellfeed.loader.count_tally import CountTally, FloatArray

Read = Callable[[FloatArray | None], CountTally]
"""Reads all cells and returns their tally, given the floors of the counts that it holds."""


def check_loess() -> None:
    """Raise a MissingDependencyError if the library of the LOESS curve is not installed."""
    if importlib.util.find_spec("skmisc") is None:
        raise MissingDependencyError(
            'flavor="seurat_v3" needs scikit-misc, which is not installed: pip install "cellfeed[scvi]"'
        )


def standardized_variances(read: Read, batches: Sequence[str], span: float) -> tuple[CountTally, FloatArray]:
    """Return the tally of all cells, and the standardised variances of each batch: shape (n_batches, n_vars).

    With the mean m and the variance expected of a gene of this mean, v, counts x of n cells are clipped at
    c = m + sqrt(n v), and the result is the sum of (min(x, c) - m)**2, divided by (n - 1) v.
    """
    tally = read(None)
    expected = np.array(
        [
            expected_variance(mean, variance, span, f"batch {name!r} of {n:.0f} cells" if len(batches) > 1 else "X")
            for mean, variance, name, n in zip(tally.mean, tally.variance, batches, tally.n_cells[:, 0], strict=True)
        ]
    )
    clip = np.sqrt(expected) * np.sqrt(tally.n_cells) + tally.mean
    if not tally.covers(clip):
        tally = read(clip)
    sums, squares = tally.clipped(clip)
    squared = tally.n_cells * tally.mean**2 + squares - 2 * sums * tally.mean
    return tally.whole(), squared / ((tally.n_cells - 1) * expected)


def expected_variance(mean: FloatArray, variance: FloatArray, span: float, what: str) -> FloatArray:
    """Return the variance of genes of each mean: a LOESS curve of the logarithms; 1 for genes that do not vary."""
    from skmisc.loess import loess

    logarithm = np.zeros(len(mean))
    varies = variance > 0
    if varies.any():
        try:
            if span * varies.sum() < 1:  # skmisc would end the process
                raise ValueError("no gene lies within the span")
            curve = loess(np.log10(mean[varies]), np.log10(variance[varies]), span=span, degree=2)
            curve.fit()
        except ValueError as error:  # its argument is bytes
            reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else error
            raise PlanError(
                f"span={span!r}: no LOESS curve fits the {varies.sum()} genes that vary in {what} ({reason}); give a "
                f"larger span, such as span={min(2 * span, 1.0):.2g}, or larger batches"
            ) from None
        logarithm[varies] = curve.outputs.fitted_values
    return np.asarray(10**logarithm)


def rank(standardized: FloatArray, n_top_genes: int, *, by_batches: bool) -> pd.DataFrame:
    """Rank genes by the median of their ranks in the batches in which they are among the first ``n_top_genes``.

    Ranks begin at 0. ``by_batches`` orders genes by the number of these batches first.
    """
    # Not a stable sort: genes with equal variances are to have the ranks that scanpy gives them.
    ranks: npt.NDArray[np.float32] = np.argsort(np.argsort(-standardized, axis=1), axis=1).astype(np.float32)
    top = ranks < n_top_genes
    median = np.ma.median(np.ma.masked_array(ranks, ~top), axis=0).filled(np.nan)  # type: ignore[no-untyped-call]
    frame = pd.DataFrame(
        {
            "variances_norm": standardized.mean(axis=0),
            "highly_variable_rank": median,
            "highly_variable_nbatches": top.sum(axis=0),
        }
    )
    columns = ["highly_variable_rank", "highly_variable_nbatches"]
    columns = columns[::-1] if by_batches else columns
    order = frame.sort_values(columns, ascending=[name == "highly_variable_rank" for name in columns]).index
    frame["highly_variable"] = frame.index.isin(order[:n_top_genes])
    return frame.loc[order]
