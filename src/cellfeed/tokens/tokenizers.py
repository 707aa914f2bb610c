"""Tokens by rank, by bin and by value, or drawn at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfeed._checks import abbreviate, is_integer
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError, SelectionError
from cellfeed.tokens.tokenizer import Tokenizer
from cellfeed.tokens.vocabulary import Vocabulary


class TopKTokens(Tokenizer):
    """Take the genes with the largest values of a cell, the largest first.

    Of equal values, the gene that comes first in var is first. ``values`` are the values, in float32.

    Parameters
    ----------
    vocabulary, max_length, padding
        As for :class:`Tokenizer`.

    Raises
    ------
    PlanError
        If an argument is not valid.

    Examples
    --------
    >>> vocabulary = cellfeed.tokens.Vocabulary({"<pad>": 0, "LYZ": 1, "CD3D": 2, "CST3": 3})
    >>> transform = cellfeed.tokens.TopKTokens(vocabulary, max_length=2)
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), transform=transform, batch_size=2, seed=0)
    >>> next(iter(dataset)).X.values.shape
    torch.Size([2, 2])
    """

    def _write(self, rows: Any, widths: Any, random_keys: npt.NDArray[np.uint64], out: Any) -> None:
        """Write the tokens of rows."""
        from cellfeed.tokens.token_kernels import rank_rows

        rank_rows(rows, widths, out)


class RankTokens(TopKTokens):
    """Rank the genes of a cell by value over the median of the gene, the largest first, as Geneformer does.

    The total of a cell does not change the ranks, so that counts need no normalisation. Values are divided in float32.
    Of equal results, the gene that comes first in var is first. ``values`` are the results.

    Parameters
    ----------
    vocabulary, max_length, padding
        As for :class:`Tokenizer`.
    medians
        Median of the values of each gene over a corpus, by name: a mapping or a ``pandas.Series``, such as
        :func:`cellfeed.gene_medians` returns. A gene without a positive median is not read.

    Raises
    ------
    PlanError, SelectionError
        If an argument is not valid, or the dataset has no gene with a token and a median.

    References
    ----------
    Theodoris et al., "Transfer learning enables predictions in network biology", Nature 2023.

    Examples
    --------
    >>> uri = cellfeed.datasets.pbmc700()
    >>> medians = cellfeed.gene_medians(cellfeed.ExperimentDataset(uri, seed=0))
    >>> vocabulary = cellfeed.tokens.Vocabulary({"<pad>": 0} | {gene: k for k, gene in enumerate(medians.index, 1)})
    >>> tokens = cellfeed.tokens.RankTokens(vocabulary, medians, max_length=256)
    >>> minibatch = next(iter(cellfeed.ExperimentDataset(uri, transform=tokens, batch_size=64, seed=0)))
    >>> minibatch.X.input_ids.shape, minibatch.X.attention_mask.dtype
    (torch.Size([64, 256]), torch.bool)
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        medians: Mapping[str, float] | pd.Series[Any],
        *,
        max_length: int = 2048,
        padding: str | None = "max_length",
    ) -> None:
        super().__init__(vocabulary, max_length=max_length, padding=padding)
        if not isinstance(medians, (Mapping, pd.Series)):
            raise PlanError(
                f"medians must be a mapping of names to numbers or a Series, not a {type(medians).__name__}"
            )
        items = {str(name): float(median) for name, median in medians.items()}
        self._medians = {name: median for name, median in items.items() if 0 < median < float("inf")}

    def _find(self, names: npt.NDArray[Any]) -> IntArray:
        """Return the indices of the genes that have a token and a median."""
        found = self.vocabulary._find(names)
        known = np.array([name in self._medians for name in names[found]], bool)
        if not known.any():
            raise SelectionError(
                f"medians has none of the {len(found)} genes of the dataset that are in the vocabulary, such as "
                f"{abbreviate(names[found[:3]].tolist())}; name the medians as the vocabulary names the genes"
            )
        having: IntArray = found[known]
        return having

    def _scales_of(self, names: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return np.array([self._medians[name] for name in names], np.float32)


class BinnedTokens(Tokenizer):
    """Take genes in the order of var, with the bin of each value among the values of its cell, as scGPT does.

    The values above 0 of a cell are divided at ``n_bins - 1`` of their quantiles, from the smallest value to the
    largest, and a value that equals a quantile is above it: ``values`` are 1 to ``n_bins - 1``. scGPT chooses at random
    between the bins of a value that equals several quantiles; here it gets the last of them. Bins do not change if all
    values of a cell are scaled or logarithms are taken, so that counts need no normalisation.

    Parameters
    ----------
    vocabulary, max_length, padding
        As for :class:`Tokenizer`.
    n_bins
        Number of bins, with that of zeros.
    choice
        The genes of a cell that has more than ``max_length`` allows: ``"highest"`` takes the largest values, of equal
        ones those that come first in var, and ``"random"`` takes any, chosen by (seed, epoch, joinid).

    Raises
    ------
    PlanError
        If an argument is not valid.

    References
    ----------
    Cui et al., "scGPT: toward building a foundation model for single-cell multi-omics using generative AI", Nature
    Methods 2024.

    Examples
    --------
    >>> vocabulary = cellfeed.tokens.Vocabulary({"<pad>": 0, "LYZ": 1, "CD3D": 2, "CST3": 3})
    >>> transform = cellfeed.tokens.BinnedTokens(vocabulary, n_bins=3, max_length=3)
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), transform=transform, batch_size=2, seed=0)
    >>> next(iter(dataset)).X.values.max() <= 2
    tensor(True)
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        n_bins: int = 51,
        max_length: int = 1200,
        choice: str = "highest",
        padding: str | None = "max_length",
    ) -> None:
        super().__init__(vocabulary, max_length=max_length, padding=padding)
        if not is_integer(n_bins) or n_bins < 3:
            raise PlanError(f"n_bins={n_bins!r} must be an integer of at least 3: one bin for zeros, and two others")
        if choice not in ("highest", "random"):
            raise PlanError(f'choice={choice!r} must be "highest" or "random"')
        self._n_bins, self._choice = int(n_bins), choice
        self._quantiles = np.linspace(0, 1, n_bins - 1)

    @property
    def _is_random(self) -> bool:  # type: ignore[override]
        """Whether genes are chosen at random."""
        return self._choice == "random"

    def _write(self, rows: Any, widths: Any, random_keys: npt.NDArray[np.uint64], out: Any) -> None:
        """Write the tokens of rows."""
        from cellfeed.tokens.token_kernels import bin_rows

        bin_rows(rows, widths, self._quantiles, random_keys, out)

    def _described(self) -> str:
        return f"n_bins={self._n_bins}, choice={self._choice!r}, "


class SampledTokens(Tokenizer):
    """Draw genes with replacement, in proportion to the logarithm of 1 + value, as UCE does.

    Each cell has ``max_length`` tokens, special ones included; a cell without values has no genes. Draws are a function
    of (seed, epoch, joinid): workers, ranks and a restore do not change them. ``values`` are the values, in float32.

    Parameters
    ----------
    vocabulary, max_length, padding
        As for :class:`Tokenizer`.

    Raises
    ------
    PlanError
        If an argument is not valid.

    References
    ----------
    Rosen et al., "Universal Cell Embeddings: A Foundation Model for Cell Biology", bioRxiv 2023.

    Examples
    --------
    >>> vocabulary = cellfeed.tokens.Vocabulary({"<pad>": 0, "LYZ": 1, "CD3D": 2, "CST3": 3})
    >>> transform = cellfeed.tokens.SampledTokens(vocabulary, max_length=8)
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), transform=transform, batch_size=2, seed=0)
    >>> next(iter(dataset)).X.input_ids.shape
    torch.Size([2, 8])
    """

    _is_random = True

    def __init__(self, vocabulary: Vocabulary, *, max_length: int = 1024, padding: str | None = "max_length") -> None:
        super().__init__(vocabulary, max_length=max_length, padding=padding)

    def _n_tokens(self, sizes: IntArray) -> IntArray:
        """Return for how many tokens a cell needs room."""
        return np.where(sizes > 0, self.max_length, self._n_special)

    def _write(self, rows: Any, widths: Any, random_keys: npt.NDArray[np.uint64], out: Any) -> None:
        """Write the tokens of rows."""
        from cellfeed.tokens.token_kernels import sample_rows

        sample_rows(rows, widths, random_keys, out)
