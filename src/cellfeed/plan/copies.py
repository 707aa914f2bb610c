"""The chunks of an epoch in which cells come several times or not at all: which copies each chunk has. Pure.

Copies of a cell are kept apart like the cards of one suit: they lie together in the pack, and are dealt one by one to
different hands. The chunks of a large number of copies are dealt to several parts, the copies of a chunk to its slices,
and the cells of a window to its minibatches. See :func:`deal`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray, expand
from cellfeed.plan.cells import Chunks
from cellfeed.plan.resampling import GOLDEN_RATIO


def chunks_of_copies(copies: IntArray, bounds: IntArray) -> Chunks:
    """Divide the copies of the cells into chunks.

    A chunk has the copies of the cells of one chunk of the dataset. If these are at least twice the
    cells of an average chunk, they are dealt to several chunks. Chunks without a copy are left out.

    Parameters
    ----------
    copies
        int64, shape (n_cells,): copies of each cell.
    bounds
        int64, shape (n_chunks + 1,): positions that divide the cells into chunks.

    Examples
    --------
    Two chunks of two cells; the first cell comes three times, the third does not come:

    >>> chunks = chunks_of_copies(np.array([3, 1, 0, 1]), np.array([0, 2, 4]))
    >>> chunks.bounds.tolist(), chunks.cells.tolist()
    ([0, 2, 4, 5], [0, 0, 0, 1, 3])
    """
    n_chunks = len(bounds) - 1
    ends = np.concatenate(([0], np.cumsum(copies)))[bounds]  # (n_chunks + 1,)
    sizes = np.diff(ends)
    n_parts = np.maximum(sizes * n_chunks // max(int(bounds[-1]), 1), sizes > 0)  # (n_chunks,)
    part, chunk = expand(np.zeros(n_chunks, np.int64), n_parts)  # (n_new_chunks,) each
    part_sizes = sizes[chunk] // n_parts[chunk] + (part < sizes[chunk] % n_parts[chunk])  # (n_new_chunks,)
    new_bounds = np.concatenate(([0], np.cumsum(part_sizes)))
    # The copy with number x of its chunk is the copy x // n_parts of part x % n_parts.
    x, chunk_of_copy = expand(np.zeros(n_chunks, np.int64), sizes)
    first_part = np.cumsum(n_parts) - n_parts
    place = new_bounds[first_part[chunk_of_copy] + x % n_parts[chunk_of_copy]] + x // n_parts[chunk_of_copy]
    cells = np.empty(int(ends[-1]), np.int64)
    cells[place] = np.repeat(np.arange(len(copies)), copies)
    return Chunks(new_bounds, cells)


def deal(
    cells: IntArray,
    hands: IntArray,
    bits: npt.NDArray[np.uint64],
    *,
    rank_of_copy: npt.NDArray[Any],
    rank_of_place: npt.NDArray[Any],
) -> IntArray:
    """Deal copies of cells to hands, so that a hand gets a cell twice only if it has more copies than there are hands.

    The cells are shuffled, with the copies of a cell together. Their copies are dealt one by one to the hands in turn,
    and a hand that is full is passed over. Turns go from hand to hand by the golden ratio, so that the copies of a cell
    are far apart.

    Parameters
    ----------
    cells
        int64, shape (n,): the cell of each copy; copies of a cell are neighbours.
    hands
        int64, shape (n,): the hand of each place.
    bits
        uint64, shape (2, n): random bits.
    rank_of_copy, rank_of_place
        Integers or bool, shape (n,): copies of lower rank are dealt first, and places of lower rank are filled first.

    Returns
    -------
    int64, shape (n,): the place of each copy.

    Examples
    --------
    Three copies of cell 7 and three other cells, in three hands of two places:

    >>> cells, hands, bits = np.array([5, 6, 7, 7, 7, 8]), np.array([0, 0, 1, 1, 2, 2]), np.arange(12, dtype=np.uint64)
    >>> same = np.zeros(6, np.bool_)
    >>> places = deal(cells, hands, bits.reshape(2, 6), rank_of_copy=same, rank_of_place=same)
    >>> sorted(hands[places[2:5]].tolist())
    [0, 1, 2]
    """
    n = len(cells)
    is_new = np.diff(cells, prepend=-1) != 0
    of_cell = bits[0][is_new][np.cumsum(is_new) - 1]  # (n,): random bits, the same for all copies of a cell
    by_hand = np.lexsort((bits[1], hands))  # (n,): places, grouped by hand, random within
    starts = np.flatnonzero(np.diff(hands[by_hand], prepend=-1))
    turn = np.empty(n, np.int64)  # of each place: its number among those of the hand
    turn[by_hand] = np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n)))
    places = np.empty(n, np.int64)
    places[np.lexsort((of_cell, rank_of_copy))] = np.lexsort((hands * (GOLDEN_RATIO / 2**64) % 1, turn, rank_of_place))
    return places
