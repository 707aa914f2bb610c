"""Rows to tokens. Each kernel writes the genes of a row, and a value for each, to the room of the row.

Rows of a minibatch have room one after another in :class:`TokenArrays`. A gene is a column of X until its token is
written. Only positive values are tokens: a store may hold zeros.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray
from cellfeed.rows.compiled import compiled
from cellfeed.rows.kernels import _UINT8, _UINT16, UINT8, UINT16, array_at
from cellfeed.rows.streaming import finish_streams, stream
from cellfeed.tokens.bin_kernels import find_bins
from cellfeed.tokens.random_kernels import uniform
from cellfeed.tokens.rank_kernels import N_PLACES, find_largest


class TokenArrays(NamedTuple):
    """Where kernels write tokens.

    Attributes
    ----------
    ids, values, mask
        int64, float32, bool: the tokens of one row after another, their values, and whether each is not padding.
    starts
        int64, shape (n_rows + 1,): where the room of each row begins, and the last one ends.
    lengths
        int64, shape (n_rows,): number of tokens of each row, with the special ones.
    gene_ids
        int64, shape (n_vars,): the token of each column of X.
    scales
        float32, shape (n_vars,): values are divided by that of their column; shape (0,) if they are not divided.
    cls, eos, pad
        The tokens before and after those of genes, -1 for none; and that of the room that is left.
    """

    ids: IntArray
    values: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    starts: IntArray
    lengths: IntArray
    gene_ids: IntArray
    scales: npt.NDArray[np.float32]
    cls: int
    eos: int
    pad: int


@compiled(allocates=True)
def rank_rows(rows, widths, out):
    """Write the genes with the largest values over their scales, the largest first."""
    keys, columns = _memory(rows)
    ids, values = _tiles(out)
    items = np.empty(len(keys), np.uint64), np.empty(len(keys), np.uint64)
    places = np.empty(N_PLACES, np.uint32), np.empty(N_PLACES, np.uint32)
    for k in range(len(rows.sizes)):
        genes = _read_row(rows, widths, k, out.scales, keys, columns)
        n = len(genes)
        first, room = _room(out, k)
        n_wanted = min(n, room)
        find_largest(keys[:n], n_wanted, items, places)
        for i in range(n_wanted):
            index = np.uint32(items[0][i])
            ids[first + i], values[first + i] = out.gene_ids[genes[index]], keys[index]
        _finish(out, k, n_wanted, ids, values)
    finish_streams()


@compiled(allocates=True)
def bin_rows(rows, widths, quantiles, random_keys, out):
    """Write the genes in the order of columns, with the number of the bin of each value among those of the row, from 1.

    If a row has more genes than room, those of the largest values are written, or with ``random_keys``, uint64, shape
    (n_rows,), a random choice; an empty array stands for the largest.
    """
    keys, columns = _memory(rows)
    ids, values = _tiles(out)
    bins, taken = np.empty(len(keys), np.float32), np.empty(len(keys), np.int64)
    for k in range(len(rows.sizes)):
        genes = _read_row(rows, widths, k, out.scales, keys, columns)
        n = len(genes)
        first, room = _room(out, k)
        least = find_bins(keys[:n], quantiles, bins, room)
        n_taken = min(n, room)
        if n > room and len(random_keys):
            choose(random_keys[k], n, room, taken)
        else:
            _take_largest(keys[:n], least, n_taken, taken)
        for i in range(n_taken):
            ids[first + i], values[first + i] = out.gene_ids[genes[taken[i]]], bins[taken[i]]
        _finish(out, k, n_taken, ids, values)
    finish_streams()


@compiled(allocates=True)
def sample_rows(rows, widths, random_keys, out):
    """Fill the room with genes that are drawn with replacement, in proportion to the logarithm of 1 + value.

    A guide table says where to look for a draw (Chen and Asau 1974), which takes one or two steps instead of twelve.
    """
    keys, columns = _memory(rows)
    ids, values = _tiles(out)
    totals, guide = np.empty(len(keys), np.float64), np.empty(len(keys), np.int32)
    logarithms = np.log1p(np.arange(256.0))
    for k in range(len(rows.sizes)):
        genes = _read_row(rows, widths, k, out.scales, keys, columns)
        n = len(genes)
        total = 0.0
        for i in range(n):
            count = np.int32(min(keys[i], np.float32(255)))
            total += logarithms[count] if keys[i] == count else math.log1p(np.float64(keys[i]))
            totals[i] = total
        place = 0
        for i in range(n):
            while totals[place] <= i * total / n:
                place += 1
            guide[i] = place
        first, room = _room(out, k)
        n_drawn = room if n else 0
        for i in range(n_drawn):
            number = uniform(random_keys[k], i)
            place = guide[int(number * n)]
            while place < n - 1 and totals[place] <= number * total:
                place += 1
            ids[first + i], values[first + i] = out.gene_ids[genes[place]], keys[place]
        _finish(out, k, n_drawn, ids, values)
    finish_streams()


@compiled(allocates=True, inline="always")
def _memory(rows):
    """Return memory for the keys and the columns of the largest row."""
    size = max(rows.sizes.max(), 1)
    return np.empty(size, np.float32), np.empty(size, rows.gene_type.dtype)


@compiled(allocates=True, no_cpython_wrapper=True)
def _read_row(rows, widths, k, scales, keys, columns):
    """Write the positive values of a row over their scales to ``keys``; return their columns of X.

    ``columns`` is memory for a row that has other values, too.
    """
    size, address = rows.sizes[k], rows.values[k]
    genes = array_at(rows.genes[k], size, rows.gene_type)
    if widths[k] == UINT8:
        n_positive = _divide(array_at(address, size, _UINT8), genes, scales, keys)
    elif widths[k] == UINT16:
        n_positive = _divide(array_at(address, size, _UINT16), genes, scales, keys)
    else:
        n_positive = _divide(array_at(address, size, rows.value_type), genes, scales, keys)
    if n_positive == size:
        return genes
    n = 0
    for i in range(size):
        keys[n], columns[n] = keys[i], genes[i]
        n += keys[i] > 0
    return columns[:n]


@compiled(error_model="numpy", no_cpython_wrapper=True)
def _divide(values, genes, scales, keys):
    """Write values over their scales; return the number of positive ones. The compiler divides in vectors."""
    if len(scales):
        for i in range(len(values)):
            keys[i] = scales[genes[i]]
        for i in range(len(values)):
            keys[i] = np.float32(values[i]) / keys[i]
    else:
        for i in range(len(values)):
            keys[i] = values[i]
    n_positive = 0
    for i in range(len(values)):
        n_positive += keys[i] > 0
    return n_positive


@compiled(allocates=True, inline="always")
def _tiles(out):
    """Return memory for the tokens and values of the longest row; a whole row is streamed to its room."""
    size = 0
    for k in range(len(out.lengths)):
        size = max(size, out.starts[k + 1] - out.starts[k])
    return np.empty(size, np.int64), np.empty(size, np.float32)


@compiled(inline="always")
def _room(out, k):
    """Return the place of the first gene in a row, and for how many genes there is room."""
    first = np.int64(out.cls >= 0)
    return first, out.starts[k + 1] - out.starts[k] - first - (out.eos >= 0)


@compiled(no_cpython_wrapper=True)
def _finish(out, k, n_genes, ids, values):
    """Write a row whose genes and values are in tiles, with the special tokens around them, and the padding behind."""
    low, high = out.starts[k], out.starts[k + 1]
    end = (out.cls >= 0) + n_genes
    if out.cls >= 0:
        ids[0], values[0] = out.cls, 0
    if out.eos >= 0:
        ids[end], values[end] = out.eos, 0
        end += 1
    ids[end : high - low], values[end : high - low] = out.pad, 0
    stream(ids[: high - low], out.ids[low:high])
    stream(values[: high - low], out.values[low:high])
    out.mask[low : low + end], out.mask[low + end : high] = True, False
    out.lengths[k] = end


@compiled(no_cpython_wrapper=True)
def _take_largest(keys, least, n_wanted, taken):
    """Write the indices of the keys above the ``n_wanted``-th largest one, ``least``, and of the first that equal it.

    They ascend. The loops have no branches, which no processor could predict.
    """
    n_equal, n_taken, i = n_wanted, 0, 0
    for j in range(len(keys)):
        n_equal -= keys[j] > least
    while n_equal > 0:
        taken[n_taken] = i
        n_taken += keys[i] >= least
        n_equal -= keys[i] == least
        i += 1
    while n_taken < n_wanted:
        taken[n_taken] = i
        n_taken += keys[i] > least
        i += 1


@compiled(no_cpython_wrapper=True)
def choose(key, n, n_wanted, taken):
    """Choose indices below ``n``, ascending; all sets are equally probable (selection sampling, Knuth 3.4.2)."""
    n_taken = 0
    for i in range(n):
        taken[n_taken] = i
        n_taken += uniform(key, i) * (n - i) < n_wanted - n_taken
