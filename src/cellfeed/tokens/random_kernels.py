"""Random numbers for kernels, computed from a key and a number: SplitMix64 (Steele, Lea and Flood 2014)."""

from __future__ import annotations

import numpy as np

from cellfeed.rows.compiled import compiled

_STEP, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_ONE, _11, _27, _30, _31 = (np.uint64(n) for n in (1, 11, 27, 30, 31))


@compiled
def random_keys(seed, epoch, joinids, keys):
    """Write a key per cell, uint64, that depends on the seed, the epoch and the joinid alone."""
    of_epoch = _scrambled(_scrambled(np.uint64(seed) + _STEP) + np.uint64(epoch))
    for k in range(len(joinids)):
        keys[k] = _scrambled(of_epoch ^ _scrambled(np.uint64(joinids[k]) + _STEP))


@compiled(inline="always")
def uniform(key, n):
    """Return the ``n``-th number of a key: float64 in [0, 1)."""
    return np.float64(_scrambled(key + (np.uint64(n) + _ONE) * _STEP) >> _11) * 2.0**-53


@compiled(inline="always")
def _scrambled(number):
    number = (number ^ (number >> _30)) * _FIRST
    number = (number ^ (number >> _27)) * _SECOND
    return number ^ (number >> _31)
