"""A dataset whose transform makes tokens: it reads the genes that have a token."""

from __future__ import annotations

from typing import Any

from cellfeed.errors import PlanError
from cellfeed.plan.settings import Settings
from cellfeed.rows.half_precision import HALF_DTYPES
from cellfeed.select.gene_names import read_genes
from cellfeed.select.selection import Selection
from cellfeed.tokens import Tokenizer
from cellfeed.transforms import steps_of


def with_tokens(selection: Selection, settings: Settings) -> tuple[Selection, Settings]:
    """Return the selection and settings of a dataset; if its transform makes tokens, those of the genes with a token.

    Raises
    ------
    PlanError
        If tokens are made of something else than the values of X.
    """
    transform = find_tokenizer(settings.transform, selection, settings)
    if transform is None:
        return selection, settings
    names = read_genes(selection, transform.vocabulary.var_column)
    found = transform._find(names)
    bound = transform._of_genes(names[found], len(names))
    # In memory, tokens take about what CSR does, and much less than a dense X.
    return selection.take_vars(found, None), settings.replace(transform=bound, return_sparse_X=True)


def find_tokenizer(transform: Any, selection: Selection, settings: Settings) -> Tokenizer | None:
    """Return a transform if it makes tokens, and ``None`` otherwise.

    Raises
    ------
    PlanError
        If tokens are made of something else than the values of X.
    """
    if not any(isinstance(step, Tokenizer) for step in steps_of(transform)):
        return None
    name = type(transform).__name__
    if not isinstance(transform, Tokenizer):
        raise PlanError(
            f"transform={transform!r} makes tokens of an X that other transforms changed; give the one that makes "
            f"tokens alone: ranks and bins do not change if the values of a cell are scaled"
        )
    if settings.X_dtype in HALF_DTYPES:
        raise PlanError(
            f'{name} with X_dtype={settings.X_dtype!r}: tokens are made of float32; leave X_dtype="float32"'
        )
    if selection.measured is not None:
        raise PlanError(f"{name} with measured=: the mask has a column per gene, and tokens have none; leave it out")
    return transform


def refuse_tokens(settings: Settings, method: str) -> None:
    """Raise an error if the columns of X are tokens."""
    if isinstance(settings.transform, Tokenizer):
        raise PlanError(
            f"{method}() of a dataset of tokens: its genes are those of the vocabulary; give it a smaller vocabulary"
        )
