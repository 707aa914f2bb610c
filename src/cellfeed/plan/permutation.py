"""Random orders that are functions of a key.

An order is computed from (seed, purpose, epoch, ...) alone: no generator is carried along, so any part
of it can be had without the parts before. NumPy promises the stream of bits of :class:`numpy.random.Philox`
and of :class:`numpy.random.SeedSequence` for good (NEP 19), but not the result of
``Generator.permutation``; therefore the bits are sorted here, and one golden order is pinned in the tests.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from cellfeed._checks import is_integer
from cellfeed.errors import PlanError


class Purpose(IntEnum):
    """What an order is for; two purposes never share random bits."""

    CHUNKS = 0
    WINDOW = 1
    SPLIT = 2
    SLICES = 3


def check_seed(seed: object) -> int:
    """Return the seed as an int, or say why it is none."""
    if not is_integer(seed) or seed < 0:
        raise PlanError(f"seed={seed!r} must be an integer of at least 0 (or None for a fresh one)")
    return int(seed)


def new_seed() -> int:
    """Draw a seed from the operating system; small enough for JSON readers that hold numbers as doubles."""
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
        Numbers that tell this order from all others of the same seed. Keys of different lengths never
        give the same stream, which sums and bare lists of seeds do.

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
    """Rearrange a random order so that every stretch of it has nearly its share of the weight.

    Items are divided by weight into strata of equal size. The result is made of groups of one item from each stratum:
    within a stratum, and within a group, items keep the order that they had, so it is as random as that. Sums over
    stretches then vary with the spread inside strata only.

    Parameters
    ----------
    order
        int64, shape (n,): a random order of ``range(n)``.
    weights
        shape (n,): the weight of each item.
    n_strata
        Items of a group.

    Returns
    -------
    int64, shape (n,).

    Examples
    --------
    >>> interleave_by_weight(np.array([0, 1, 2, 3]), np.array([1.0, 1.0, 9.0, 9.0]), 2).tolist()
    [0, 2, 1, 3]
    """
    n = len(order)
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    by_weight = order[np.argsort(weights[order], kind="stable")]
    stratum = np.arange(n) * n_strata // max(n, 1)
    by_stratum = by_weight[np.lexsort((place[by_weight], stratum))]
    group = np.arange(n) - np.searchsorted(stratum, np.arange(n_strata))[stratum]
    return by_stratum[np.lexsort((place[by_stratum], group))]
