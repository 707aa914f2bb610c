"""Categories and numbers of obs as scvi-tools takes them: codes in a mapping that stays the same, and floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfeed._checks import abbreviate, missing_from
from cellfeed.errors import EncodeError
from cellfeed.select.batch_encoder import BatchEncoder
from cellfeed.select.encoders import NamedEncoder
from cellfeed.select.labels import read_obs_column
from cellfeed.select.selection import Selection

UNSEEN = ("error", "extend")
"""What to do about a category that the reference lacks."""

SEPARATOR = "//"
"""Stands between the values of a category that is made of several columns."""


ONLY = "0"
"""The category of all cells where there is no column."""


class Categories(NamedEncoder):
    """Codes 0..K-1 for the values of a column, or the combinations of several, as text.

    Parameters
    ----------
    columns
        One or more columns of obs; none puts all cells in one category.
    name
        The name of the encoder.
    known
        Categories that have the first codes, in this order; ``None`` takes those that are met, ascending.
    unseen
        What to do about others: ``"error"``, or ``"extend"`` puts them behind.
    other
        Where given: the category, last of all, of missing values, and of those that are not known.
    """

    def __init__(
        self,
        columns: Sequence[str],
        name: str,
        *,
        known: Sequence[str] | None = None,
        unseen: str = "error",
        other: str | None = None,
    ) -> None:
        if unseen not in UNSEEN:
            raise EncodeError(f"unseen={unseen!r} must be one of {', '.join(map(repr, UNSEEN))}")
        super().__init__(name, columns)
        self._known, self._unseen, self._other = known, unseen, other
        self._inner = BatchEncoder(self._columns, separator=SEPARATOR) if self._columns else None
        self._table: npt.NDArray[np.int64] = np.zeros(1, np.int64)
        self.categories: list[str] = []

    def fit(self, obs: pd.DataFrame) -> None:
        """Learn the categories, unless they are known."""
        known = [text for text in self._known or () if text != self._other]
        if self._inner is None:
            self.categories = known or ([] if self._other else [ONLY])
            met = self.categories[:1] if self._other is None else [self._other]
        else:
            self._inner.fit(obs)
            # A missing value is known by its code: a label may have any text.
            classes = zip(self._inner.classes_, self._inner.is_missing, strict=True)
            met = [self._other if gone and self._other is not None else str(text) for text, gone in classes]
            self.categories = self._extended(known, met)
        if self._other is not None:
            self.categories.append(self._other)
        place = {text: code for code, text in enumerate(self.categories)}
        self._table = np.array([place.get(text, len(self.categories) - 1) for text in met], np.int64)

    def _extended(self, known: list[str], met: list[str]) -> list[str]:
        """Return the known categories, and behind them those that are new where there may be such."""
        own = [text for text in met if text != self._other]
        if self._known is None:
            return own
        unknown = missing_from(own, known)
        if not unknown or self._other is not None:
            return known
        if self._unseen == "error":
            raise EncodeError(
                f"{self._name}: {len(unknown)} categories are not among the {len(known)} of the reference: "
                f'{abbreviate(unknown)}; leave their cells out by obs_query, or give unseen="extend" and '
                f"go on training with load_query_data"
            )
        return known + unknown

    def transform(self, obs: pd.DataFrame) -> npt.NDArray[np.int64]:
        """Return one code per row."""
        if self._inner is None:
            return np.full(len(obs), self._table[0])
        codes: npt.NDArray[np.int64] = self._table[self._inner.transform(obs)]
        return codes

    def inverse_transform(self, codes: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the categories, as text."""
        return np.array(self.categories, dtype=object)[np.asarray(codes)]  # type: ignore[no-any-return,unused-ignore]


def read_numbers(selection: Selection, columns: Sequence[str]) -> npt.NDArray[np.float32]:
    """Read columns of numbers for all cells of a selection: float32, shape (n_obs, n_columns)."""
    out = np.empty((selection.n_obs, len(columns)), np.float32)
    for k, column in enumerate(columns):
        numbers = pd.to_numeric(read_obs_column(selection, column), errors="coerce")
        values = numbers.astype("Float64").to_numpy(dtype=np.float32, na_value=np.nan)
        n_bad = int((~np.isfinite(values)).sum())
        if n_bad:
            raise EncodeError(
                f"continuous_covariate_keys: column {column!r} is no finite number for {n_bad} of {len(values)} cells; "
                f"leave these cells out by obs_query"
            )
        out[:, k] = values
    return out
