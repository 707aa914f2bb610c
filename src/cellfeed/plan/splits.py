"""Divide the cells of a selection into disjoint, complete parts: pure functions of the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._checks import ordered
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError
from cellfeed.plan.permutation import Purpose, permutation

Weights = Mapping[str, float] | Sequence[float]


def check_weights(weights: Weights) -> npt.NDArray[np.float64]:
    """Return the weights as an array, or say what is wrong with them."""
    if isinstance(weights, (set, frozenset)):
        ordered("weights", weights, PlanError)
    try:
        values = list(weights.values()) if isinstance(weights, Mapping) else list(weights)
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.array([np.nan])
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all() or (array < 0).any():
        raise PlanError(f"weights={weights!r} must be one or more numbers of at least 0, one per part")
    if abs(array.sum() - 1) > 1e-6:
        raise PlanError(f"weights={weights!r} sum to {array.sum():.6g}; they must sum to 1")
    shares: npt.NDArray[np.float64] = array / array.sum()
    return shares


def part_sizes(n: int, weights: npt.NDArray[np.float64]) -> IntArray:
    """Divide ``n`` cells in proportion, by largest remainders: each part is within one of its share.

    Examples
    --------
    >>> part_sizes(10, np.array([0.7, 0.3])).tolist()
    [7, 3]
    """
    exact = n * weights
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    rest = np.argsort(-(exact - sizes), kind="stable")[: n - sizes.sum()]
    sizes[rest] += 1
    return sizes


def split_cells(n: int, weights: npt.NDArray[np.float64], seed: int) -> list[IntArray]:
    """Split positions 0..n-1 at random.

    Returns
    -------
    One int64 array of ascending positions per weight.
    """
    order = permutation(n, seed, Purpose.SPLIT)
    bounds = np.cumsum(part_sizes(n, weights))[:-1]
    return [np.sort(part) for part in np.split(order, bounds)]


def split_stratified(
    strata: npt.NDArray[np.integer[Any]], weights: npt.NDArray[np.float64], seed: int
) -> list[IntArray]:
    """Split so that each part has its share of every stratum.

    Parameters
    ----------
    strata
        One code of at least 0 per cell.

    Returns
    -------
    One int64 array of ascending positions per weight. The parts have the sizes of :func:`part_sizes`;
    a stratum's cells in a part are its exact share, rounded up or down where the sizes permit.
    """
    n = len(strata)
    shuffled = permutation(n, seed, Purpose.SPLIT)
    line = shuffled[np.argsort(strata[shuffled], kind="stable")]
    counts = np.bincount(strata) if n else np.zeros(0, np.int64)
    quota = _stratum_quotas(counts, part_sizes(n, weights), weights)  # (n_strata, n_parts)
    part_of = np.repeat(np.tile(np.arange(len(weights)), len(counts)), quota.ravel())
    return [np.sort(line[part_of == part]) for part in range(len(weights))]


def _stratum_quotas(counts: IntArray, sizes: IntArray, weights: npt.NDArray[np.float64]) -> IntArray:
    """Cells of each stratum for each part: floors first, then what is left where most is missing."""
    exact = np.outer(counts, weights)
    quota = np.floor(exact + 1e-9).astype(np.int64)
    missing = sizes - quota.sum(axis=0)
    for stratum in np.flatnonzero(counts - quota.sum(axis=1)):
        for _ in range(int(counts[stratum] - quota[stratum].sum())):
            wish = np.where(missing > 0, exact[stratum] - quota[stratum], -np.inf)
            part = int(np.argmax(wish))
            quota[stratum, part] += 1
            missing[part] -= 1
    return quota


def split_groups(
    groups: npt.NDArray[np.integer[Any]],
    weights: npt.NDArray[np.float64],
    seed: int,
    strata: npt.NDArray[np.integer[Any]] | None = None,
) -> list[IntArray]:
    """Split so that no group falls on two parts.

    Groups come in random order; each goes to the part that lacks most of its cells, stratum by
    stratum where ``strata`` are given. If this leaves a part with a weight empty, or further from its size than the
    largest group, sizes bound what a part may take; if that is not enough, the strata are left out.

    Returns
    -------
    One int64 array of ascending positions per weight.
    """
    largest = np.unique(groups, return_counts=True)[1].max(initial=0)
    parts: list[IntArray] = []
    for guide, bounded in ((strata, False), (strata, True), (None, True)):
        parts = _deal_groups(groups, weights, seed, guide, bounded=bounded)
        sizes = np.array([len(part) for part in parts])
        if (sizes[weights > 0] > 0).all() and (np.abs(sizes - len(groups) * weights) <= largest).all():
            break
    return parts


def _deal_groups(
    groups: npt.NDArray[np.integer[Any]],
    weights: npt.NDArray[np.float64],
    seed: int,
    strata: npt.NDArray[np.integer[Any]] | None,
    *,
    bounded: bool,
) -> list[IntArray]:
    """Give each group to a part; ``bounded`` lets only those parts take it that :func:`_may_take` names."""
    _, group = np.unique(groups, return_inverse=True)
    n_groups = int(group.max()) + 1 if len(group) else 0
    stratum = np.zeros(len(group), np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
    n_strata = int(stratum.max()) + 1 if len(group) else 1
    cells = np.bincount(group * n_strata + stratum, minlength=n_groups * n_strata)
    cells = cells.reshape(n_groups, n_strata).astype(np.float64)
    lacking = np.outer(weights, cells.sum(axis=0))  # (n_parts, n_strata)
    scale = 1 / np.maximum(cells.sum(axis=0), 1)
    part_of = np.empty(n_groups, np.int64)
    empty = weights > 0
    for n_left, g in zip(range(n_groups, 0, -1), permutation(n_groups, seed, Purpose.SPLIT), strict=True):
        may = _may_take(lacking.sum(axis=1), cells[g].sum(), empty, n_left) if bounded else weights > 0
        wish = np.where(may, (lacking * scale) @ cells[g], -np.inf)
        part_of[g] = np.argmax(wish)
        lacking[part_of[g]] -= cells[g]
        empty[part_of[g]] = False
    return [np.flatnonzero(part_of[group] == part) for part in range(len(weights))]


def _may_take(
    lacking: npt.NDArray[np.float64], n_cells: float, empty: npt.NDArray[np.bool_], n_left: int
) -> npt.NDArray[np.bool_]:
    """Return which parts may take a group of ``n_cells``, whatever its strata, so that parts have their sizes.

    If only as many groups are left as parts are empty, each of these parts gets one. Otherwise a part may take the
    group if its size comes nearer to its weight; if this is true of no part, the part that lacks most takes it.
    """
    if n_left <= empty.sum():
        return empty
    nearer: npt.NDArray[np.bool_] = lacking > n_cells / 2
    return nearer if nearer.any() else lacking == lacking.max()


def split(
    n: int,
    weights: npt.NDArray[np.float64],
    seed: int,
    *,
    strata: npt.NDArray[np.integer[Any]] | None = None,
    groups: npt.NDArray[np.integer[Any]] | None = None,
) -> list[IntArray]:
    """Split ``n`` cells by the rule that the given codes ask for; see the functions above.

    Raises
    ------
    PlanError
        If there are fewer groups than parts, or a part would have no cell: training over it would do nothing.
    """
    parts = _split(n, weights, seed, strata=strata, groups=groups)
    empty = [k for k, part in enumerate(parts) if n and weights[k] > 0 and len(part) == 0]
    if empty:
        raise PlanError(
            f"weights: part {empty[0]} of {weights.tolist()} would have none of {n} cells; give it a larger weight"
        )
    return parts


def _split(
    n: int,
    weights: npt.NDArray[np.float64],
    seed: int,
    *,
    strata: npt.NDArray[np.integer[Any]] | None,
    groups: npt.NDArray[np.integer[Any]] | None,
) -> list[IntArray]:
    if groups is not None:
        n_groups, n_parts = len(np.unique(groups)), int((weights > 0).sum())
        if n_groups < n_parts:
            raise PlanError(
                f"group= names a column of {n_groups} distinct values; {n_parts} parts need one each at least"
            )
        return split_groups(groups, weights, seed, strata)
    if strata is not None:
        return split_stratified(strata, weights, seed)
    return split_cells(n, weights, seed)
