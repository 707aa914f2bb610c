"""Labels of cells: columns of obs, and warnings about a class of cells without a label and about numbers as labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import pandas as pd

from cellfeed._checks import check_name, suggest, warn_user
from cellfeed.errors import SelectionError
from cellfeed.select.encoders import Encoder, LabelEncoder
from cellfeed.select.selection import Selection


def warn_of_labels(encoders: Sequence[Encoder | None], obs: pd.DataFrame, *, plain: bool) -> None:
    """Warn of a class that is made of cells without a label, and of numbers that became codes.

    Parameters
    ----------
    encoders
        Fitted on ``obs``.
    plain
        Whether the user named columns only. A :class:`LabelEncoder` says that the values are labels.
    """
    for encoder in encoders:
        if not isinstance(encoder, LabelEncoder):
            continue
        column, values = obs[encoder.col], encoder.classes_
        in_filter = encoder.col if encoder.col.isidentifier() else f"attr({encoder.col!r})"
        if encoder.learns_missing and (n_missing := int(column.isna().sum())):
            warn_user(
                f"column {encoder.col!r} has no value for {n_missing} of {len(column)} cells: they are "
                f"a class of their own, the last, which decodes to None. Leave them out by "
                f'obs_query="{in_filter} != None", or give encoders=[LabelEncoder({encoder.col!r}, unknown=-100)], '
                f"which PyTorch's losses ignore"
            )
        if plain and _codes_are_not_values(values):
            warn_user(
                f"column {encoder.col!r} holds numbers, and obs has the codes 0 to {len(values) - 1} of their order, "
                f"ascending. obs_encoders[{encoder.name!r}].inverse_transform(codes) returns the numbers; if they are "
                f"labels, say so: encoders=[LabelEncoder({encoder.col!r})]"
            )


def _codes_are_not_values(values: npt.NDArray[Any]) -> bool:
    """Whether classes are numbers other than 0, 1, 2 and so on."""
    numbers = [value for value in values.tolist() if value is not None]
    if not numbers or not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in numbers):
        return False
    return numbers != list(range(len(numbers))) or any(isinstance(value, float) for value in numbers)


def read_obs_column(selection: Selection, column: str) -> pd.Series[Any]:
    """Read one column of obs for the cells of a selection, in their order."""
    check_name("a column of obs", column)

    def choose(known: Sequence[str]) -> str:
        if column not in known:
            raise SelectionError(f"obs has no column {column!r}; {suggest(column, known)}")
        return column

    values: pd.Series[Any] = selection.source.read_obs(selection.joinids[:], f"column {column!r}", choose)
    return values
