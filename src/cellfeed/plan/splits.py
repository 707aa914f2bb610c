"""Split the cells of a selection into disjoint parts that together hold all cells: pure functions of the seed.

Each function returns one int64 array of ascending positions per weight.
"""

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

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.integer[Any]]


def check_weights(weights: Weights) -> Floats:
    """Return the weights as an array that sums to 1, or raise a PlanError."""
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
    shares: Floats = array / array.sum()
    return shares


def part_sizes(n: int, weights: Floats) -> IntArray:
    """Divide ``n`` cells in proportion to the weights, by largest remainders.

    Each part gets ``n * weight`` rounded down. The cells that remain go to the parts with the largest fractions, one
    each.

    Examples
    --------
    Of 5 cells the parts get 3.5 and 1.5 rounded down, and the first of equal fractions gets the cell that remains.

    >>> part_sizes(5, np.array([0.7, 0.3])).tolist()
    [4, 1]
    """
    exact = n * weights  # (n_parts,)
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    by_fraction = np.argsort(-(exact - sizes), kind="stable")
    sizes[by_fraction[: n - sizes.sum()]] += 1
    return sizes


def split_cells(n: int, weights: Floats, seed: int) -> list[IntArray]:
    """Split positions 0..n-1 at random."""
    order = permutation(n, seed, Purpose.SPLIT)
    bounds = np.cumsum(part_sizes(n, weights))[:-1]
    return [np.sort(part) for part in np.split(order, bounds)]


def split_stratified(strata: Codes, weights: Floats, seed: int) -> list[IntArray]:
    """Split so that each part has its share of every stratum.

    The parts have the sizes of :func:`part_sizes`. The cells of a stratum in a part are the exact share, rounded up or
    down if the weights are equal; otherwise they rarely differ from it by more than one.

    Parameters
    ----------
    strata
        One code of at least 0 per cell.

    Examples
    --------
    >>> strata = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    >>> [strata[part].tolist() for part in split_stratified(strata, np.array([0.5, 0.5]), seed=0)]
    [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    n = len(strata)
    shuffled = permutation(n, seed, Purpose.SPLIT)
    by_stratum = shuffled[np.argsort(strata[shuffled], kind="stable")]  # (n,): positions, stratum after stratum
    counts = np.bincount(strata) if n else np.zeros(0, np.int64)  # (n_strata,)
    quotas = _stratum_quotas(counts, part_sizes(n, weights), weights)  # (n_strata, n_parts)
    part_of = np.repeat(np.tile(np.arange(len(weights)), len(counts)), quotas.ravel())  # (n,)
    return [np.sort(by_stratum[part_of == part]) for part in range(len(weights))]


def _stratum_quotas(counts: IntArray, sizes: IntArray, weights: Floats) -> IntArray:
    """Return the number of cells of each stratum in each part.

    Shares are rounded down first. Each cell that remains of a stratum goes to the part with the largest sum of the
    fraction of its share and of the cells by which the part is behind: it lacks them beyond the fractions of this and
    of later strata. Without the second term the last stratum would fill one part with what earlier ones have left.

    Examples
    --------
    Shares are 1.5 and 1.5 of the first stratum, 0.5 and 0.5 of the second.

    >>> _stratum_quotas(np.array([3, 1]), np.array([2, 2]), np.array([0.5, 0.5])).tolist()
    [[2, 1], [0, 1]]
    """
    exact = np.outer(counts, weights)  # (n_strata, n_parts)
    quotas = np.floor(exact + 1e-9).astype(np.int64)  # (n_strata, n_parts)
    missing = sizes - quotas.sum(axis=0)  # (n_parts,)
    expected = (exact - quotas).sum(axis=0)  # (n_parts,)
    for stratum, n_remaining in enumerate(counts - quotas.sum(axis=1)):
        fractions = exact[stratum] - quotas[stratum]  # (n_parts,)
        for _ in range(n_remaining):
            lag = exact[stratum] - quotas[stratum] + missing - expected  # (n_parts,)
            part = int(np.argmax(np.where(missing > 0, lag, -np.inf)))
            quotas[stratum, part] += 1
            missing[part] -= 1
        expected -= fractions
    return quotas


def split_groups(groups: Codes, weights: Floats, seed: int, strata: Codes | None = None) -> list[IntArray]:
    """Split so that the cells of a group are all in one part.

    Groups are taken in random order. Each goes to the part that lacks most of its cells, per stratum if ``strata`` is
    given. If a part with a weight is then empty, or differs from its size by more than the largest group, the sizes
    limit which parts may take a group; if this does not help, strata are ignored.

    Examples
    --------
    >>> groups = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    >>> [np.unique(groups[part]).tolist() for part in split_groups(groups, np.array([0.75, 0.25]), seed=0)]
    [[1, 2, 3], [0]]
    """
    largest = np.unique(groups, return_counts=True)[1].max(initial=0)
    parts: list[IntArray] = []
    for balanced, limit_sizes in ((strata, False), (strata, True), (None, True)):
        parts = _assign_groups(groups, weights, seed, balanced, limit_sizes=limit_sizes)
        sizes = np.array([len(part) for part in parts])
        if (sizes[weights > 0] > 0).all() and (np.abs(sizes - len(groups) * weights) <= largest).all():
            break
    return parts


def _assign_groups(
    groups: Codes, weights: Floats, seed: int, strata: Codes | None, *, limit_sizes: bool
) -> list[IntArray]:
    """Assign each group to a part; with ``limit_sizes`` only to one that :func:`_may_take` permits."""
    _, group = np.unique(groups, return_inverse=True)  # (n_cells,)
    n_groups = int(group.max()) + 1 if len(group) else 0
    stratum = np.zeros(len(group), np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
    n_strata = int(stratum.max()) + 1 if len(group) else 1
    cells = np.bincount(group * n_strata + stratum, minlength=n_groups * n_strata)
    cells = cells.reshape(n_groups, n_strata).astype(np.float64)
    lacking = np.outer(weights, cells.sum(axis=0))  # (n_parts, n_strata): cells that each part still lacks
    scale = 1 / np.maximum(cells.sum(axis=0), 1)  # (n_strata,): a rare stratum counts like a frequent one
    part_of = np.empty(n_groups, np.int64)
    is_empty = weights > 0  # (n_parts,): parts that need a group and have none
    for n_left, g in zip(range(n_groups, 0, -1), permutation(n_groups, seed, Purpose.SPLIT), strict=True):
        allowed = _may_take(lacking.sum(axis=1), cells[g].sum(), is_empty, n_left) if limit_sizes else weights > 0
        part_of[g] = np.argmax(np.where(allowed, (lacking * scale) @ cells[g], -np.inf))
        lacking[part_of[g]] -= cells[g]
        is_empty[part_of[g]] = False
    return [np.flatnonzero(part_of[group] == part) for part in range(len(weights))]


def _may_take(lacking: Floats, n_cells: float, is_empty: npt.NDArray[np.bool_], n_left: int) -> npt.NDArray[np.bool_]:
    """Return which parts may take a group of ``n_cells``, so that parts reach their sizes.

    If ``n_left`` groups remain for the same number of empty parts, each empty part gets one. Otherwise a part may take
    the group if its size then comes nearer to its weight; if there is no such part, the part that lacks most takes it.
    """
    if n_left <= is_empty.sum():
        return is_empty
    comes_nearer: npt.NDArray[np.bool_] = lacking > n_cells / 2
    return comes_nearer if comes_nearer.any() else lacking == lacking.max()


def split(
    n: int, weights: Floats, seed: int, *, strata: Codes | None = None, groups: Codes | None = None
) -> list[IntArray]:
    """Split ``n`` cells by groups if given, else by strata if given, else at random.

    Raises
    ------
    PlanError
        If there are fewer groups than parts, or a part would have no cell, so that training over it would do nothing.
    """
    if groups is not None:
        n_groups, n_parts = len(np.unique(groups)), int((weights > 0).sum())
        if n_groups < n_parts:
            raise PlanError(
                f"group= names a column of {n_groups} distinct values; {n_parts} parts need at least one each"
            )
        parts = split_groups(groups, weights, seed, strata)
    elif strata is not None:
        parts = split_stratified(strata, weights, seed)
    else:
        parts = split_cells(n, weights, seed)
    empty = [k for k, part in enumerate(parts) if n and weights[k] > 0 and len(part) == 0]
    if empty:
        raise PlanError(
            f"weights: part {empty[0]} of {weights.tolist()} would have none of {n} cells; give it a larger weight"
        )
    return parts
