"""Bins of the values of a row, between quantiles of these values."""

from __future__ import annotations

import numpy as np

from cellfeed.rows.compiled import compiled

MAX_COUNTED = 1 << 12
"""Integers below this are counted, which is faster than sorting."""


@compiled(allocates=True, no_cpython_wrapper=True)
def find_bins(keys, quantiles, bins, n_wanted):
    """Write how many of the quantiles of the keys are at most each key; return the ``n_wanted``-th largest key.

    Parameters
    ----------
    keys
        float32, positive.
    quantiles
        float64, from 0 to 1, ascending, for quantiles that are interpolated linearly, as NumPy does by default.
    bins
        float32.
    n_wanted
        With fewer keys, 0 is returned.
    """
    highest, n_counts = np.int32(0), 0
    for i in range(len(keys)):
        count = np.int32(min(keys[i], np.float32(MAX_COUNTED)))
        highest = max(highest, count)
        n_counts += keys[i] == np.float32(count)
    if n_counts == len(keys) and highest < MAX_COUNTED:
        return _find_bins_of_counts(keys, highest, quantiles, bins, n_wanted)
    ordered, edges = np.sort(keys), np.empty(len(quantiles), np.float64)
    for q in range(len(quantiles)):
        place = quantiles[q] * (len(keys) - 1)
        low = int(place)
        edges[q] = _between(ordered[low], ordered[min(low + 1, len(keys) - 1)], place - low)
    for i in range(len(keys)):
        bins[i] = np.searchsorted(edges, np.float64(keys[i]), side="right")
    return ordered[len(keys) - n_wanted] if n_wanted <= len(keys) else np.float32(0)


@compiled(allocates=True, no_cpython_wrapper=True)
def _find_bins_of_counts(keys, highest, quantiles, bins, n_wanted):
    """Do the same for small integers: the n-th key in ascending order is found in the cumulated numbers of counts."""
    tables = np.zeros((4, highest + 1), np.int32)  # a number that has just been stored is loaded again late
    for i in range(len(keys)):
        tables[i & 3, np.uint32(keys[i])] += 1
    numbers = tables[0]
    for count in range(highest + 1):
        numbers[count] += tables[1, count] + tables[2, count] + tables[3, count]
    bin_of = np.zeros(highest + 1, np.float32)
    count, n_before = 0, 0  # n_before keys are smaller than count
    for q in range(len(quantiles)):
        if len(keys) == 0:
            break
        place = quantiles[q] * (len(keys) - 1)
        low = int(place)
        while n_before + numbers[count] <= low:
            n_before += numbers[count]
            count += 1
        above = count
        if n_before + numbers[count] == low + 1 < len(keys):
            above += 1
            while numbers[above] == 0:
                above += 1
        edge = _between(np.float32(count), np.float32(above), place - low)
        bin_of[int(np.ceil(edge))] += 1
    n_passed = np.float32(0)
    for count in range(highest + 1):
        n_passed += bin_of[count]
        bin_of[count] = n_passed
    for i in range(len(keys)):
        bins[i] = bin_of[np.int32(keys[i])]
    count, n_above = highest, numbers[highest]
    while n_above < n_wanted and count > 0:
        count -= 1
        n_above += numbers[count]
    return np.float32(count)


@compiled(inline="always")
def _between(below, above, part):
    """Interpolate between two keys: float64."""
    return np.float64(below) + (np.float64(above) - np.float64(below)) * part
