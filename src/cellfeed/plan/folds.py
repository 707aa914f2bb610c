"""Parts of a selection by the values of a column, and the test parts of folds: pure functions.

Positions are int64 and ascending.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cellfeed._checks import abbreviate, is_integer, missing_from, shortened, suggest
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError
from cellfeed.plan.splits import Codes, split


def fold_cells(
    n: int, k: object, seed: int, *, strata: Codes | None = None, groups: Codes | None = None
) -> list[IntArray]:
    """Divide ``n`` cells into the test parts of ``k`` folds, of nearly equal size.

    They are the parts of :func:`~cellfeed.plan.splits.split` with ``k`` equal weights.

    Raises
    ------
    PlanError
        If ``k`` is not an integer from 2 to the number of cells, or of groups.

    Examples
    --------
    >>> [len(part) for part in fold_cells(10, 4, seed=0)]
    [3, 3, 2, 2]
    """
    unit = "cells" if groups is None else "groups"
    most = n if groups is None else len(np.unique(groups))
    if not is_integer(k) or not 2 <= k <= most:
        raise PlanError(f"k={k!r} must be an integer of at least 2, and at most {most}, the number of {unit}")
    return split(n, np.full(k, 1 / k), seed, strata=strata, groups=groups)


def all_but(part: IntArray, n: int) -> IntArray:
    """Return the positions from 0 to ``n - 1`` that are not in a part.

    Examples
    --------
    >>> all_but(np.array([1, 2]), 4).tolist()
    [0, 3]
    """
    return np.delete(np.arange(n), part)


def cells_of_labels(codes: Codes, n_labels: int) -> list[IntArray]:
    """Return the positions of the cells of each label.

    Parameters
    ----------
    codes
        Shape (n_cells,): the label of each cell, from 0 to ``n_labels - 1``.

    Examples
    --------
    >>> [part.tolist() for part in cells_of_labels(np.array([1, 0, 1]), 2)]
    [[1], [0, 2]]
    """
    by_label = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[by_label], np.arange(1, n_labels))
    return np.split(by_label, bounds)


def parts_of_labels(labels: Sequence[Any], parts: Mapping[Any, Sequence[Any] | None], column: str) -> IntArray:
    """Return the index of the part that lists each label: shape (n_labels,).

    Parameters
    ----------
    labels
        The distinct values of a column, ``None`` for the missing value.
    parts
        The values of each part, by its name; ``None`` instead of a list stands for all values that no part lists.
    column
        The name of the column, for errors.

    Raises
    ------
    PlanError
        If a value is in two parts, in no part, or not in the column, or if a part has no value.

    Examples
    --------
    >>> parts_of_labels(["A", "B", "C"], {"train": None, "test": ["B"]}, "gene").tolist()
    [0, 1, 0]
    """
    listed: dict[Any, int] = {}
    rest = [k for k, values in enumerate(parts.values()) if values is None]
    if len(rest) > 1:
        raise PlanError(f"parts={parts!r}: only one part can be None, which stands for all other values")
    for k, (name, values) in enumerate(parts.items()):
        for value in values or ():
            if listed.setdefault(value, k) != k:
                raise PlanError(f"parts: {value!r} is in the parts {list(parts)[listed[value]]!r} and {name!r}")
    if unknown := missing_from(list(listed), labels):
        similar = shortened(suggest(unknown[0], map(str, labels)))
        raise PlanError(f"parts: no cell of the dataset has {abbreviate(unknown)} in {column!r}; {similar}")
    others = [label for label in labels if label not in listed]
    if others and not rest:
        raise PlanError(
            f"parts: {len(others)} of {len(labels)} values of {column!r} are in no part: {abbreviate(others)}; list "
            f'them, or add a part of all other values, such as "others": None'
        )
    part_of = np.array([listed[label] if label in listed else rest[0] for label in labels], np.int64)
    if empty := [name for k, name in enumerate(parts) if k not in part_of]:
        raise PlanError(f"parts[{empty[0]!r}]={parts[empty[0]]!r} has none of the values of {column!r}; leave it out")
    return part_of
