"""Random orders that are functions of a key.

An order is computed from (seed, purpose, epoch, ...) alone. No generator is kept, so each order can be computed without
those before it. NumPy guarantees the bits of :class:`numpy.random.Philox` and :class:`numpy.random.SeedSequence`
(NEP 19), but not the result of ``Generator.permutation``. Therefore an order is made here by sorting random bits, and
the tests fix one golden order.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from cellfeed._checks import is_integer
from cellfeed.errors import PlanError


class Purpose(IntEnum):
    """Purpose of an order; two purposes never share random bits."""

    CHUNKS = 0
    WINDOW = 1
    SPLIT = 2
    SLICES = 3
    RESAMPLING = 4
    SETS = 5


def check_seed(seed: object) -> int:
    """Return the seed as an int, or raise a PlanError."""
    if not is_integer(seed) or seed < 0:
        raise PlanError(f"seed={seed!r} must be an integer of at least 0 (or None for a fresh one)")
    return int(seed)


def new_seed() -> int:
    """Return a seed from the operating system, below 2**53: some JSON readers store numbers as doubles."""
    return int(np.random.SeedSequence().generate_state(1, np.uint64)[0]) >> 11


def random_bits(n: int, seed: int, *key: int) -> npt.NDArray[np.uint64]:
    """Return ``n`` random 64-bit words that depend on ``seed`` and ``key`` only."""
    sequence = np.random.SeedSequence(seed, spawn_key=tuple(int(k) for k in key))
    return np.random.Philox(sequence).random_raw(n)  # type: ignore[no-any-return,unused-ignore]


def permutation(n: int, seed: int, *key: int) -> npt.NDArray[np.int64]:
    """Return a random order of ``range(n)`` that depends on ``seed`` and ``key`` only.

    Parameters
    ----------
    n
        Number of items; 0 gives an empty order.
    seed
        At least 0.
    key
        Integers that distinguish the orders of one seed. Keys of different lengths give different orders.

    Returns
    -------
    int64, shape (n,).

    Examples
    --------
    >>> permutation(5, 0, 1).tolist() == permutation(5, 0, 1).tolist()
    True
    """
    return np.argsort(random_bits(n, seed, *key), kind="stable").astype(np.int64, copy=False)


def interleave_by_weight(
    order: npt.NDArray[np.int64], weights: npt.NDArray[np.float64], n_strata: int
) -> npt.NDArray[np.int64]:
    """Rearrange a random order so that any run of consecutive items has nearly its share of the total weight.

    Items are divided by weight into ``n_strata`` strata of equal size. The result is a sequence of groups: group ``k``
    has the ``k``-th item of each stratum, in the random order. Within a group, items keep the random order, too. Sums
    of weights over runs of items then vary only with the spread of weights within strata.

    Parameters
    ----------
    order
        int64, shape (n,): a random order of ``range(n)``.
    weights
        float64, shape (n,): the weight of each item.
    n_strata
        Number of strata, and of items in a group.

    Returns
    -------
    int64, shape (n,).

    Examples
    --------
    Items 0 to 2 are light and 3 to 5 heavy; the random order begins with the light ones. In this order the strata are
    (2, 0, 1) and (5, 4, 3), so the groups are (2, 5), (0, 4) and (1, 3).

    >>> order, weights = np.array([2, 0, 1, 5, 4, 3]), np.array([1.0, 1.0, 1.0, 9.0, 9.0, 9.0])
    >>> interleave_by_weight(order, weights, 2).tolist()
    [2, 5, 0, 4, 1, 3]
    """
    n = len(order)
    rank = np.empty(n, np.int64)  # (n,): place of each item in the random order
    rank[order] = np.arange(n)
    by_weight = order[np.argsort(weights[order], kind="stable")]  # (n,): items, the lightest first
    stratum = np.arange(n) * n_strata // max(n, 1)  # (n,): ascending
    by_stratum = by_weight[np.lexsort((rank[by_weight], stratum))]  # (n,): items by stratum, then by rank
    group = np.arange(n) - np.searchsorted(stratum, np.arange(n_strata))[stratum]  # (n,): number within the stratum
    return by_stratum[np.lexsort((rank[by_stratum], group))]
