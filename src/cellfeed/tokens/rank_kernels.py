"""Ranking of the values of rows: a partial sort of float32 keys, of which the largest come first.

A row has some thousand values, and the largest are wanted in order. Keys are distributed by the leading bits of their
distance to the largest key, and the few keys of a bucket are then sorted by insertion. The bits of positive floats
ascend with the floats, so that buckets are as fine for small keys as for large ones.
"""

from __future__ import annotations

import numpy as np

from cellfeed.rows.compiled import compiled

N_BUCKETS = 4096

MOVES_PER_KEY = 64
"""Insertions that move more keys than this are given up, and the keys are sorted by NumPy's algorithm."""

_INDEX = np.uint64(0xFFFFFFFF)


@compiled(allocates=True, no_cpython_wrapper=True)
def find_largest(keys, n_wanted, counts, order):
    """Write the indices of the largest keys to ``order``, the largest first; of equal keys, the first is first.

    Parameters
    ----------
    keys
        float32, all positive.
    n_wanted
        At most the number of keys.
    counts
        int32, shape (N_BUCKETS + 1,): memory.
    order
        uint64, shape (len(keys),): its first ``n_wanted`` elements are the indices.
    """
    bits = keys.view(np.uint32)
    top, bottom = np.uint32(0), np.uint32(0xFFFFFFFF)
    for i in range(len(bits)):
        top, bottom = max(top, bits[i]), min(bottom, bits[i])
    shift = np.uint32(0)
    while (np.uint32(top - bottom) >> shift) >= N_BUCKETS:
        shift += np.uint32(1)
    counts[:] = 0
    for i in range(len(bits)):
        counts[(np.uint32(top - bits[i]) >> shift) + 1] += 1
    end = 0  # the buckets from here on have none of the largest keys, and become one
    while counts[end] < n_wanted:
        counts[end + 1] += counts[end]
        end += 1
    n_placed = counts[end]
    for i in range(len(bits)):
        distance = np.uint32(top - bits[i])
        bucket = min(distance >> shift, np.uint32(end))
        place = counts[bucket]
        counts[bucket] = place + 1
        order[place] = (np.uint64(distance) << np.uint64(32)) | np.uint64(i)
    moves = 0
    for i in range(1, n_placed):
        item, place = order[i], i
        while place > 0 and order[place - 1] > item:
            order[place] = order[place - 1]
            place -= 1
        order[place] = item
        moves += i - place
        if moves > MOVES_PER_KEY * n_placed:
            order[:n_placed].sort()
            break
    for i in range(n_wanted):
        order[i] &= _INDEX
