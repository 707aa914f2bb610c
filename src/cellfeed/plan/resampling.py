"""How often each cell comes in an epoch of a resampled dataset: a pure function of the seed and the epoch number.

Weights determine how many copies of each cell an epoch is expected to have: ``e[i]``. The copies are these numbers,
rounded so that their sum is exact, by systematic sampling (Madow, Annals of Mathematical Statistics, 1949). With the
cells in a fixed random order and ``C[i] = e[0] + ... + e[i - 1]``::

    copies[i] = floor(C[i + 1] + u) - floor(C[i] + u)        for an offset u in [0, 1)

So the copies differ from ``e[i]`` by less than 1. The cells of one stratum are neighbours in this order: their copies
together differ from the sum of their ``e[i]`` by less than 1, too, and not at all if this sum is an integer.

The offset of an epoch is ``u = (u0 + epoch * g) mod 1`` with the golden ratio ``g`` (a sequence of Weyl): over a few
epochs the offsets are spread evenly, so a cell with ``e[i] < 1`` comes within about ``3 / e[i]`` epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._digests import digest
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError
from cellfeed.plan.permutation import Purpose, random_bits

FloatArray = npt.NDArray[np.float64]

UNIT_BITS = 30
"""Copies are summed in units of ``2**-30``: integers, whose sums are exact."""

GOLDEN_RATIO = 0x9E3779B97F4A7C15
"""The fractional part of the golden ratio, in units of ``2**-64``."""

MAX_ROUNDS = 100


@dataclass(frozen=True, eq=False)
class Resampling:
    """The expected copies of each cell.

    Attributes
    ----------
    expected
        float64, shape (n_cells,): expected copies in an epoch, at least 0. Their sum is ``n_obs``.
    strata
        int64, shape (n_cells,): the stratum of each cell.
    n_obs
        Copies in an epoch.
    record
        The parameters of the user, as plain values.
    """

    expected: FloatArray
    strata: IntArray
    n_obs: int
    record: Mapping[str, Any]

    def take(self, positions: IntArray) -> Resampling:
        """Return the resampling of the same cells in another order."""
        return replace(self, expected=self.expected[positions], strata=self.strata[positions])

    @property
    def digest(self) -> str | None:
        """A short hash of everything on which the copies depend, except the seed."""
        return digest(np.concatenate((self.expected, self.strata, [self.n_obs])))

    @property
    def effective_n_obs(self) -> float:
        """Kish's effective sample size: ``sum(e)**2 / sum(e**2)``, the number of cells if all come equally often."""
        return float(self.expected.sum() ** 2 / (self.expected**2).sum())

    @cached_property
    def _totals(self) -> tuple[IntArray, IntArray, IntArray]:
        """The strata that have copies: stratum, expected copies in units, and the same rounded down; (n_strata,)."""
        strata, inverse = np.unique(self.strata, return_inverse=True)
        totals = np.round(np.bincount(inverse, self.expected) * (1 << UNIT_BITS)).astype(np.int64)
        is_rounded = totals % (1 << UNIT_BITS) != 0
        if is_rounded.any():  # one of the others would lose its exact number
            totals[np.argmax(np.where(is_rounded, totals, -1))] += (self.n_obs << UNIT_BITS) - totals.sum()
        return strata, totals, inverse

    def _edges(self, seed: int) -> tuple[IntArray, IntArray]:
        """Return the order of the cells, and the expected copies up to each of them in units: (n_cells,) each."""
        _, totals, stratum = self._totals
        order = np.lexsort((random_bits(len(stratum), seed, Purpose.RESAMPLING), stratum))
        sizes = np.bincount(stratum)
        ends = np.cumsum(sizes)
        summed = np.cumsum(self.expected[order])
        before = np.concatenate(([0.0], summed[ends[:-1] - 1]))  # (n_strata,)
        within = (summed - np.repeat(before, sizes)) * (1 << UNIT_BITS)
        edges = np.minimum(within.astype(np.int64), np.repeat(totals, sizes))
        edges[ends - 1] = totals
        return order, edges + np.repeat(np.cumsum(totals) - totals, sizes)

    def copies(self, seed: int, epoch: int) -> IntArray:
        """Return the number of copies of each cell in an epoch: int64, shape (n_cells,).

        Examples
        --------
        >>> resampling = Resampling(np.array([0.5, 0.5, 2.0]), np.array([0, 0, 1]), 3, {})
        >>> [resampling.copies(seed=0, epoch=epoch).tolist() for epoch in range(3)]
        [[1, 0, 2], [0, 1, 2], [0, 1, 2]]
        """
        order, edges = self._edges(seed)
        first = int(random_bits(1, seed, Purpose.RESAMPLING, 0)[0])
        offset = (first + epoch * GOLDEN_RATIO) % (1 << 64) >> (64 - UNIT_BITS)
        copies = np.empty(len(order), np.int64)
        copies[order] = np.diff((edges + offset) >> UNIT_BITS, prepend=0)
        return copies


def shares(sizes: FloatArray, temperature: float) -> FloatArray:
    """Return the share of each label: proportional to ``sizes**temperature``, 0 for a label without cells.

    Examples
    --------
    >>> shares(np.array([1.0, 100.0]), 0.5).round(3).tolist()
    [0.091, 0.909]
    """
    powers = np.where(sizes > 0, sizes, 1.0) ** temperature * (sizes > 0)
    total: FloatArray = powers / powers.sum()
    return total


def expected_copies(weights: FloatArray, labels: IntArray | None, temperature: float, n_obs: float) -> FloatArray:
    """Return the expected copies of cells with weights, whose labels have the shares of a temperature.

    Within a label, copies are proportional to the weights.
    """
    if labels is None:
        labels = np.zeros(len(weights), np.int64)
    sizes = np.bincount(labels, weights).astype(np.float64)
    factors = np.divide(shares(sizes, temperature) * n_obs, sizes, out=np.zeros(len(sizes)), where=sizes > 0)
    expected: FloatArray = weights * factors[labels]
    return expected


def capped(expected: FloatArray, labels: IntArray, cap: int, n_obs: int | None) -> FloatArray:
    """Return expected copies of which no label has more than ``cap``.

    If ``n_obs`` is given, the other labels get the copies that labels lose, in proportion to their own.

    Examples
    --------
    >>> capped(np.array([6.0, 3.0, 1.0]), np.array([0, 1, 2]), 4, 10).tolist()
    [4.0, 4.0, 2.0]
    """
    totals = np.bincount(labels, expected).astype(np.float64)
    if n_obs is not None and cap * np.count_nonzero(totals) < n_obs:
        raise PlanError(
            f"n_obs={n_obs:,} is more than max_per_label={cap:,} permits: {np.count_nonzero(totals):,} labels have at "
            f"most {cap * np.count_nonzero(totals):,} cells; give a smaller n_obs or a larger max_per_label"
        )
    wanted = np.minimum(totals, cap)
    for _ in range(MAX_ROUNDS):  # each round caps another label, or is the last
        is_free = (wanted < cap) & (totals > 0)
        lacking = 0.0 if n_obs is None else n_obs - wanted.sum()
        if lacking <= 0 or not is_free.any():
            break
        wanted[is_free] = np.minimum(wanted[is_free] * (1 + lacking / wanted[is_free].sum()), cap)
    factors = np.divide(wanted, totals, out=np.zeros(len(totals)), where=totals > 0)
    limited: FloatArray = expected * factors[labels]
    return limited
