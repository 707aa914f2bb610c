"""A transform from the rows of X to tokens: what all kinds of it share."""

from __future__ import annotations

import abc
import copy
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from cellfeed._checks import check_choice, is_integer
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError
from cellfeed.tokens.vocabulary import Vocabulary

PADDINGS = ("max_length", "longest", None)


class Tokenizer(abc.ABC):
    """Makes tokens of the genes of a cell whose values are above 0; give it as ``transform=`` of a dataset.

    A dataset reads the genes of the vocabulary only. ``minibatch.X`` is then a :class:`TokenBatch` or, with
    ``padding=None``, :class:`RaggedTokens`.

    Parameters
    ----------
    vocabulary
        The token of each gene. Its tokens ``cls_token`` and ``eos_token``, if any, are placed around those of genes.
    max_length
        Most tokens of a cell, with the special tokens.
    padding
        ``"max_length"`` gives each row ``max_length`` tokens, ``"longest"`` the number of the longest row of the
        minibatch, and ``None`` no padding.

    Raises
    ------
    PlanError
        If ``max_length`` has no room for a gene, or ``padding`` is another value.
    """

    _is_random: ClassVar[bool] = False
    """Whether tokens depend on the seed and the epoch."""

    def __init__(self, vocabulary: Vocabulary, *, max_length: int, padding: str | None = "max_length") -> None:
        if not isinstance(vocabulary, Vocabulary):
            raise PlanError(
                f"vocabulary must be a Vocabulary, not a {type(vocabulary).__name__}: "
                f"{type(self).__name__}(Vocabulary(ids), ...)"
            )
        least = 1 + (vocabulary.cls_id >= 0) + (vocabulary.eos_id >= 0)
        if not is_integer(max_length) or max_length < least:
            raise PlanError(
                f"max_length={max_length!r} must be an integer of at least {least}: special tokens and a gene"
            )
        check_choice("padding", padding, PADDINGS)
        self.vocabulary, self.max_length, self.padding = vocabulary, int(max_length), padding
        self._n_special = least - 1
        self._gene_ids: IntArray = np.empty(0, np.int64)  # of the genes of a dataset, as _scales are
        self._scales: npt.NDArray[np.float32] = np.empty(0, np.float32)
        self._n_genes_before = 0

    @property
    def n_vars(self) -> int:
        """Number of columns of the result."""
        return self.max_length

    def _find(self, names: npt.NDArray[Any]) -> IntArray:
        """Return the indices of the genes of a dataset that can be tokens, ascending."""
        return self.vocabulary._find(names)

    def _of_genes(self, names: npt.NDArray[Any], n_before: int) -> Self:
        """Return a transform of rows of the genes with these names, all known; there were ``n_before`` genes."""
        bound = copy.copy(self)
        bound._gene_ids = self.vocabulary.ids_of(names)
        bound._scales = self._scales_of(names)
        bound._n_genes_before = n_before
        return bound

    def _scales_of(self, names: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return by what the values of each gene are divided; an empty array if they are not."""
        return np.empty(0, np.float32)

    @abc.abstractmethod
    def _write(self, rows: Any, widths: Any, random_keys: npt.NDArray[np.uint64], out: Any) -> None:
        """Write the tokens of rows; arguments as for :mod:`cellfeed.tokens.token_kernels`."""

    def _n_tokens(self, sizes: IntArray) -> IntArray:
        """Return for how many tokens a cell needs room, with the special ones, by its nnz."""
        return np.minimum(sizes + self._n_special, self.max_length)

    def __call__(self, X: Any) -> Any:
        """Raise an error: tokens are made of rows, before there is an X."""
        raise PlanError(
            f"{type(self).__name__} makes tokens of the rows of a dataset, not of a tensor; give it as the transform: "
            f"ExperimentDataset(..., transform={type(self).__name__}(...))"
        )

    def __repr__(self) -> str:
        genes = "" if not len(self._gene_ids) else f"{len(self._gene_ids):,} of {self._n_genes_before:,} genes, "
        return (
            f"{type(self).__name__}({genes}{self._described()}max_length={self.max_length}, padding={self.padding!r})"
        )

    def _described(self) -> str:
        """Return the further arguments as text, each with a comma behind it."""
        return ""
