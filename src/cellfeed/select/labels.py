"""Labels of cells: columns of obs, and warnings about missing labels and about numbers as labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfeed._checks import check_name, suggest, warn_user
from cellfeed._joinids import JOINID, IntArray
from cellfeed.errors import SelectionError
from cellfeed.select.encoders import Encoder, LabelEncoder
from cellfeed.select.selection import Selection
from cellfeed.select.vocabulary import Vocabulary


def warn_of_labels(encoders: Sequence[Encoder | None], obs: pd.DataFrame, *, plain: bool) -> None:
    """Warn if missing values became a class, or if numbers became codes.

    Parameters
    ----------
    encoders
        Encoders that were fitted on ``obs``.
    plain
        Whether the user gave names of columns only. An explicit :class:`LabelEncoder` means that numbers are labels.
    """
    for encoder in encoders:
        if not isinstance(encoder, LabelEncoder):
            continue
        name, column, classes = encoder.col, obs[encoder.col], encoder.classes_
        in_filter = name if name.isidentifier() else f"attr({name!r})"
        if encoder.learns_missing and (n_missing := int(column.isna().sum())):
            warn_user(
                f"column {name!r} has no value for {n_missing} of {len(column)} cells: they are a class of their own, "
                f'the last, which decodes to None. Exclude them by obs_query="{in_filter} != None", or use a code '
                f"that PyTorch's losses ignore: "
                f'encoders=[LabelEncoder({name!r}, handle_unknown="use_encoded_value", unknown_value=-100)]'
            )
        if plain and _codes_are_not_values(classes):
            warn_user(
                f"column {name!r} holds numbers, and obs has the codes 0 to {len(classes) - 1} of their order, "
                f"ascending. obs_encoders[{encoder.name!r}].inverse_transform(codes) returns the numbers; if they are "
                f"labels, give encoders=[LabelEncoder({name!r})]"
            )


def _codes_are_not_values(classes: npt.NDArray[Any]) -> bool:
    """Whether classes are numbers other than 0, 1, 2 and so on."""
    numbers = [value for value in classes.tolist() if value is not None]
    if not numbers or not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in numbers):
        return False
    return numbers != list(range(len(numbers))) or any(isinstance(value, float) for value in numbers)


def known_columns(read: Callable[[IntArray, str, Callable[[Sequence[str]], Sequence[str]]], object]) -> list[str]:
    """Return the columns of obs or var but the joinids.

    Parameters
    ----------
    read
        The method ``read_obs`` or ``read_var`` of a source. No value is read.
    """
    known: list[str] = []

    def note(names: Sequence[str]) -> list[str]:
        known.extend(name for name in names if name != JOINID)
        return []

    read(np.empty(0, np.int64), "names of columns", note)
    return known


def read_obs_column(selection: Selection, column: str) -> pd.Series[Any]:
    """Read one column of obs for the cells of a selection, in the order of their joinids."""
    check_name("a column of obs", column)

    def choose(known: Sequence[str]) -> list[str]:
        if column not in known:
            raise SelectionError(f"obs has no column {column!r}; {suggest(column, known)}")
        return [column]

    values: pd.Series[Any] = selection.source.read_obs(selection.joinids[:], f"column {column!r}", choose)[column]
    return values


def read_labels(selection: Selection, column: str) -> tuple[Vocabulary, npt.NDArray[Any]]:
    """Read one column of obs, and return its distinct values and the code of each cell: shape (n_obs,)."""
    values = read_obs_column(selection, column)
    vocabulary = Vocabulary(values)
    return vocabulary, vocabulary.codes(values)
