"""Columns of obs as scvi-tools takes them: codes of categories in a fixed mapping, and floats."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfeed._checks import abbreviate, missing_from
from cellfeed.errors import EncodeError, SelectionError
from cellfeed.scvi.registry import SEPARATOR, Schema
from cellfeed.select.batch_encoder import BatchEncoder
from cellfeed.select.encoders import NamedEncoder
from cellfeed.select.selection import Selection

ONLY = "0"
"""The category of all cells if no column is given."""


class Categories(NamedEncoder):
    """Encodes a column, or the combinations of several, as 0..K-1; the categories are text.

    Parameters
    ----------
    columns
        Columns of obs; without columns, all cells are in one category.
    name
        The name of the encoder.
    known
        The first categories, by code; ``None`` takes the categories of the cells in ascending order.
    extend
        Whether categories that are not ``known`` get the next codes; otherwise they raise an EncodeError.
    other
        If given, the last category: that of missing values, and of categories that are not ``known``.
    """

    def __init__(
        self,
        columns: Sequence[str],
        name: str,
        *,
        known: Sequence[str] | None = None,
        extend: bool = False,
        other: str | None = None,
    ) -> None:
        super().__init__(name, columns)
        self._known, self._extend, self._other = known, extend, other
        self._inner = BatchEncoder(self._columns, separator=SEPARATOR) if self._columns else None
        self._table: npt.NDArray[np.int64] = np.zeros(1, np.int64)  # (n_inner_classes,): codes of categories
        self.categories: list[str] = []

    def fit(self, obs: pd.DataFrame) -> None:
        """Learn the categories of the cells, after those that are known."""
        known = [text for text in self._known or () if text != self._other]
        if self._inner is None:
            self.categories = known or ([] if self._other else [ONLY])
            texts = self.categories[:1] if self._other is None else [self._other]
        else:
            self._inner.fit(obs)
            # ``is_missing`` identifies missing values: a label may have any text.
            classes = zip(self._inner.classes_, self._inner.is_missing, strict=True)
            texts = [self._other if missing and self._other is not None else str(text) for text, missing in classes]
            self.categories = self._extended(known, [text for text in texts if text != self._other])
        if self._other is not None:
            self.categories.append(self._other)
        code_of = {text: code for code, text in enumerate(self.categories)}
        self._table = np.array([code_of.get(text, len(self.categories) - 1) for text in texts], np.int64)

    def _extended(self, known: list[str], texts: list[str]) -> list[str]:
        """Return the known categories and, if permitted, the new ones after them."""
        if self._known is None:
            return texts
        new = missing_from(texts, known)
        if not new or self._other is not None:
            return known
        if not self._extend:
            raise EncodeError(
                f"{self._name}: {len(new)} categories are not among the {len(known)} of the reference: "
                f"{abbreviate(new)}; exclude their cells by obs_query, or give extend_categories=True and continue "
                f"the training with load_query_data"
            )
        return known + new

    def transform(self, obs: pd.DataFrame) -> npt.NDArray[np.int64]:
        """Return one code per row."""
        if self._inner is None:
            return np.full(len(obs), self._table[0])
        codes: npt.NDArray[np.int64] = self._table[self._inner.transform(obs)]
        return codes

    def inverse_transform(self, codes: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the categories of codes, as text."""
        return np.array(self.categories, dtype=object)[np.asarray(codes)]  # type: ignore[no-any-return,unused-ignore]


def make_encoders(keys: Mapping[str, Any], reference: Schema, extend: bool) -> list[Categories]:
    """Return the encoders of batches, labels, samples (if there is a key of samples), and each categorical covariate.

    Parameters
    ----------
    keys
        The columns of obs, by the names of the arguments of :class:`SCVIDataModule`.
    reference
        The categories of a model, which keep their codes; an empty schema without a model.
    extend
        Whether batches and covariates may have further categories.
    """
    batch_key, covariates = keys["batch_key"], keys["categorical_covariate_keys"]
    labels, samples = ([] if keys[key] is None else [keys[key]] for key in ("labels_key", "sample_key"))
    if not isinstance(extend, bool):
        raise EncodeError(f"extend_categories={extend!r} must be True or False")
    if not batch_key and len(reference.batches or ()) > 1:
        raise EncodeError(
            f"batch_key=None, but the reference has {len(reference.batches or ())} batches; give the column"
        )
    return [
        Categories(batch_key, "_scvi_batch", known=reference.batches, extend=extend),
        Categories(labels, "_scvi_labels", known=reference.labels, extend=extend, other=keys["unlabeled_category"]),
        *(Categories([key], "_scvi_sample", known=reference.samples, extend=extend) for key in samples),
        *(Categories([key], key, known=reference.covariates.get(key), extend=extend) for key in covariates),
    ]


@contextlib.contextmanager
def naming_keys(keys: Mapping[str, Any]) -> Iterator[None]:
    """Add to an error of the argument ``obs_values`` which arguments its columns are from."""
    given = [f"{name}={keys[name]!r}" for name in ("continuous_covariate_keys", "size_factor_key") if keys[name]]
    try:
        yield
    except SelectionError as error:
        if given and "obs_values" in str(error):
            error.add_note(f"obs_values has the columns of {' and '.join(given)}")
        raise


def check_numbers(selection: Selection, columns: Sequence[str], keys: Mapping[str, Any]) -> None:
    """Raise an EncodeError if numbers of cells are not finite, or size factors not above 0.

    Parameters
    ----------
    columns
        The numeric columns of minibatches.
    keys
        The columns of obs, by the names of the arguments of :class:`SCVIDataModule`.
    """
    needed = [("continuous_covariate_keys", key, -np.inf) for key in keys["continuous_covariate_keys"]]
    if keys["size_factor_key"] is not None:
        needed.append(("size_factor_key", keys["size_factor_key"], 0.0))
    for argument, column, bound in needed:
        values: Any = selection.obs_values[:, columns.index(column)]  # type: ignore[index]
        n_bad = int((~np.isfinite(values) | (values <= bound)).sum())
        if n_bad:
            what = "a finite number" if bound < 0 else "a finite number above 0"
            raise EncodeError(
                f"{argument}: column {column!r} is not {what} for {n_bad} of {len(values)} cells; exclude these cells "
                f"by obs_query"
            )
