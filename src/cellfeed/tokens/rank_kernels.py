"""Ranking of the values of rows: a radix sort of float32 keys, of which the largest come first.

The bits of positive floats ascend with the floats. The distance of a key to the largest one is sorted by two digits of
its leading bits, the lower digit first. An insertion sort then compares all bits, and moves few keys. Keys are dropped
before they are sorted if their higher digit is beyond that of the last wanted key.
"""

from __future__ import annotations

import numpy as np

from cellfeed.rows.compiled import compiled

DIGIT_BITS = 10

N_PLACES = (1 << DIGIT_BITS) + 1

MOVES_PER_KEY = 64
"""Insertions that move more keys than this are given up, and the keys are sorted by NumPy's algorithm."""

_1, _BITS, _LARGEST, _ONES = (np.uint32(n) for n in (1, DIGIT_BITS, (1 << DIGIT_BITS) - 1, 0xFFFFFFFF))
_32 = np.uint64(32)


@compiled(allocates=True, no_cpython_wrapper=True)
def find_largest(keys, n_wanted, items, places):
    """Write the indices of the largest keys, the largest first; of equal keys, the first is first.

    Parameters
    ----------
    keys
        float32, all positive.
    n_wanted
        At most the number of keys.
    items
        Two arrays, uint64, of the number of keys or longer. The indices are the lower halves of the first ``n_wanted``
        of ``items[0]``; ``items[1]`` is memory.
    places
        Two arrays, uint32, shape (N_PLACES,): memory.
    """
    bits = keys.view(np.uint32)
    top, bottom, varying = np.uint32(0), _ONES, np.uint32(0)
    for i in range(len(bits)):
        top, bottom, varying = max(top, bits[i]), min(bottom, bits[i]), varying | (bits[i] ^ bits[0])
    low = np.uint32(0)
    while (np.uint32(top - bottom) >> low) >> (_BITS + _BITS):
        low += _1
    high = low + _BITS
    places[0][:], places[1][:] = 0, 0
    of_high, n = places[1], len(bits)
    for i in range(n):
        of_high[np.uint32(top - bits[i]) >> high] += _1
    end, n_near = _to_places(of_high, n_wanted)
    if varying & ~(_ONES << high):
        _sort_near(bits, top, low, end, items, places[0])
        n = n_near
    else:  # lower digits are equal; keys that are not near have one place, behind the near ones
        for i in range(n):
            items[1][i] = _item(min(np.uint32(top - bits[i]), end << high), i)
    _place(items[1][:n], high, of_high, items[0])
    _insert(items[0][:n_near])


@compiled(no_cpython_wrapper=True)
def _sort_near(bits, top, low, end, items, places):
    """Write the keys whose higher digit is less than ``end`` to ``items[1]``, sorted by the lower digit."""
    near, n = items[0], np.uint32(0)
    for i in range(len(bits)):
        distance = np.uint32(top - bits[i])
        is_near = np.uint32((distance >> (low + _BITS)) < end)
        near[n] = _item(distance, i)
        places[(distance >> low) & _LARGEST] += is_near
        n += is_near
    _to_places(places, n)
    _place(near[:n], low, places, items[1])


@compiled(inline="always")
def _item(distance, index):
    """Return an integer that is sorted by distance, then by index."""
    return (np.uint64(distance) << _32) | np.uint64(index)


@compiled(no_cpython_wrapper=True)
def _to_places(numbers, n_wanted):
    """Replace the number of keys of each digit by that of the digits before it, until ``n_wanted`` keys are counted.

    Return the next digit, and the number of keys before it.
    """
    digit, n = np.uint32(0), np.uint32(0)
    while n < n_wanted:
        number = numbers[digit]
        numbers[digit] = n
        n += number
        digit += _1
    numbers[digit] = n
    return digit, n


@compiled(no_cpython_wrapper=True)
def _place(items, shift, places, target):
    """Write items in the order of a digit; items of equal digits stay in order."""
    for i in range(len(items)):
        item = items[i]
        digit = (np.uint32(item >> _32) >> shift) & _LARGEST
        place = places[digit]
        places[digit] = place + _1
        target[place] = item


@compiled(allocates=True, no_cpython_wrapper=True)
def _insert(items):
    """Sort items that are nearly in order."""
    n_moves = 0
    for i in range(1, len(items)):
        item, place = items[i], i
        if items[i - 1] < item:
            continue
        while place > 0 and items[place - 1] > item:
            items[place] = items[place - 1]
            place -= 1
        items[place] = item
        n_moves += i - place
        if n_moves > MOVES_PER_KEY * len(items):
            items.sort()
            break
