"""The inner loops from packed tiles to rows: find where each row's values lie, then put them there.

Two passes over the tiles of a read. The first unpacks row numbers only and cuts each tile into stretches of one row,
which tells how long every row is; the second unpacks columns and values into scratch memory that stays in
the cache, and copies each stretch to its place. Nothing is staged in between.
"""

from __future__ import annotations

import numpy as np

from cellfeed.rows.compiled import compiled
from cellfeed.rows.kernels import array_at, borrowed, is_disordered
from cellfeed.rows.page_kernels import DROP, end_of_stretch, locate, value_width
from cellfeed.sources.soma.tiles.fragments import UNKNOWN_SUMS
from cellfeed.sources.soma.tiles.unpack_kernels import DAMAGED, PIECE, WIDE, unpack_counts, unpack_tile

AS_THEY_ARE, COUNTS, COUNTS_IN_FLOAT32 = 0, 1, 2
"""Values are copied with a change of type at most; must be counts that fit uint8 or uint16; the same, from float32."""

FULL = -3
"""Status of a room for cuts that was too small."""

TOO_LARGE, TOO_SMALL = UNKNOWN_SUMS
LARGEST_FLOAT = np.finfo(np.float64).max
"""The sum of floats that TileDB notes, with either sign, where it cannot hold the sum."""


@compiled
def _find_cuts(rows, bounds, runs, wanted, cuts, n_cuts, sizes):
    """Cut sorted row numbers into stretches of one wanted row and mark the pieces that they lie in.

    Returns the number of cuts, ``FULL``, or ``DAMAGED`` if a row is out of ``bounds``; and the sum of all row numbers.
    """
    first, stop, row0 = runs
    cut_row, cut_at, cut_size = cuts
    rows = borrowed(rows)
    n, i, k, total = len(rows), 0, 0, np.int64(0)
    while i < n:
        joinid = rows[i]
        end = end_of_stretch(rows, i)
        total += joinid * (end - i)
        if joinid < bounds[0] or joinid > bounds[1]:
            return DAMAGED, total
        found = locate(joinid, first, stop, k)
        if found >= 0:
            if n_cuts == len(cut_row):
                return FULL, total
            k = found
            row = row0[k] + joinid - first[k]
            cut_row[n_cuts] = row
            cut_at[n_cuts] = i
            cut_size[n_cuts] = end - i
            sizes[row] += end - i
            n_cuts += 1
            for piece in range(i // PIECE, (end - 1) // PIECE + 1):
                wanted[piece] = True
        i = end
    return n_cuts, total


@compiled
def _sum(numbers):
    """Add up unsigned integers; narrow ones in parts that fit 32 bits, of which a vector instruction takes more."""
    numbers = borrowed(numbers)
    total = np.int64(0)
    for low in range(0, len(numbers), PIECE):
        part = numbers[low : low + PIECE]
        if numbers.itemsize <= 2:
            narrow = np.uint32(0)
            for i in range(len(part)):
                narrow = np.uint32(narrow + np.uint32(part[i]))
            total += np.int64(narrow)
        else:
            for i in range(len(part)):
                total += np.int64(part[i])
    return total


@compiled
def _equals(total, noted):
    """Whether a sum of integers is the one that the writer of a tile has noted, or that one is unknown."""
    return noted in (total, TOO_LARGE, TOO_SMALL)


@compiled
def _are_within(columns, wanted, low, high):
    """Whether the columns in the wanted pieces of a tile lie between its smallest and its largest column.

    One loop for each piece: with one for each stretch of a row this took as long as unpacking half of the columns.
    """
    first, last = columns.dtype.type(low), columns.dtype.type(high)
    outside = np.uint8(0)
    for piece in range((len(columns) + PIECE - 1) // PIECE):
        if wanted[piece]:
            part = columns[piece * PIECE : (piece + 1) * PIECE]
            for i in range(len(part)):
                outside = np.uint8(outside | (part[i] < first) | (part[i] > last))
    return outside == 0


@compiled
def _counts_agree(counts, noted, low, high):
    """Whether counts have the noted sum, which is exact in any order, and lie between the noted extremes."""
    smallest, largest = counts[0], counts[0]
    for i in range(len(counts)):
        smallest, largest = min(smallest, counts[i]), max(largest, counts[i])
    return np.float64(_sum(counts)) == noted and smallest >= low and largest <= high


@compiled
def _integers_agree(values, noted, low, high):
    """Whether integers have the noted sum, modulo 2**64, and lie between the noted extremes."""
    total = np.int64(0)
    outside = np.uint8(0)
    for i in range(len(values)):
        total += np.int64(values[i])
        outside = np.uint8(outside | (values[i] < low) | (values[i] > high))
    return outside == 0 and _equals(total, noted)


@compiled
def _floats_agree(values, noted, low, high):
    """Whether floats have the noted sum and lie between the noted extremes.

    The sum is exact: it is added up as TileDB does, one value after another, in float64.
    Values that are not finite are left to the check of rows: with them the sum and the extremes are undefined.
    """
    total = 0.0
    outside = np.uint8(0)
    for i in range(len(values)):
        total += np.float64(values[i])
        outside = np.uint8(outside | (values[i] < low) | (values[i] > high))
    if not np.isfinite(total) or abs(noted) == LARGEST_FLOAT:
        return True
    return outside == 0 and total == noted


@compiled
def cut_tiles(data, places, counts, how, zstd, scratch, rows, bounds, runs, wanted, cuts, ends, sizes, sums):
    """Find where the values of each wanted row lie.

    Parameters
    ----------
    data, places, how
        Packed row numbers: uint8; int64, shape (n_tiles, 2): where each tile begins and ends; how they are packed.
    counts
        Values in each tile.
    zstd, scratch
        As for :func:`~cellfeed.sources.soma.tiles.unpack_kernels.unpack_tile`.
    rows
        int64 scratch, room for a tile.
    bounds
        Integers, shape (n_tiles, 2): the smallest and the largest row of each tile.
    runs
        Wanted runs of rows: first, stop, and the place of the first among the wanted rows.
    wanted
        bool, shape (n_tiles, n_pieces), all False, filled: which pieces of a tile hold wanted rows.
    cuts
        int32 three times, filled: each stretch's place among the wanted rows, its begin in the tile, its size.
    ends
        int64, shape (n_tiles,), filled: cuts of all tiles up to and with this one.
    sizes
        int64, shape (n_wanted_rows,): added to.
    sums
        int64, shape (n_tiles,): what the rows of each tile must add up to; empty if that is not to be verified.

    Returns
    -------
    tuple of int
        ``DAMAGED`` or ``FULL``, or the number of cuts; and the tile at which it ended.
    """
    n_cuts = 0
    nothing = wanted[0, :0]
    for t in range(len(counts)):
        n = counts[t]
        got = unpack_tile(data, places[t, 0], places[t, 1], how, 8, zstd, scratch, nothing, rows.view(np.uint64))
        if got != n:
            return DAMAGED, t
        n_cuts, total = _find_cuts(rows[:n], bounds[t], runs, wanted[t], cuts, n_cuts, sizes)
        if n_cuts < 0:
            return n_cuts, t
        if len(sums) and not _equals(total, sums[t]):
            return DAMAGED, t
        ends[t] = n_cuts
    return n_cuts, len(counts)


@compiled
def fill_rows(packed, places, counts, how, zstd, scratch, room, wanted, cuts, ends, genes, form, space, noted):
    """Unpack columns and values and copy every stretch to its row.

    Parameters
    ----------
    packed, places, how
        Packed values and columns: uint8 twice; int64, shape (n_tiles, 2, 2); two numbers.
    counts, zstd, scratch, wanted, cuts, ends
        As for :func:`cut_tiles`, which has filled the last three.
    room
        Scratch, room for a tile each: columns; values; the same memory as unsigned integers; counts.
    genes
        Table of wanted columns, and its base; an empty table keeps all.
    form
        ``AS_THEY_ARE``, ``COUNTS`` or ``COUNTS_IN_FLOAT32``.
    space
        Where rows go, as :class:`~cellfeed.rows.row_space.PlacedRows` has it.
    noted
        What the metadata says of each tile: bounds of columns, integers of shape (n_tiles, 2); sums of columns, int64
        of shape (n_tiles,), empty if tiles are not to be verified; sums of values, as int64 and as float64, of which
        the one for the type of the values is used; smallest and largest value, of the type of the values. Sums and
        extremes of values are verified where all pieces of a tile are wanted.

    Returns
    -------
    tuple of int
        ``DAMAGED``, ``WIDE``, or whether any row came out of order; and the tile at which it ended.
    """
    columns, values, raw, small = room
    table, base = genes
    bounds, column_sums, integer_sums, float_sums, smallest, largest = noted
    cut_row, cut_at, cut_size = cuts
    columns, values, small = borrowed(columns), borrowed(values), borrowed(small)
    genes_at, values_at, filled, gene_type, value_type = space
    disorder = np.uint8(0)
    c = 0
    for t in range(len(counts)):
        n, at = counts[t], places[t]
        if c == ends[t]:
            continue
        if unpack_tile(packed[1], at[1, 0], at[1, 1], how[1], 8, zstd, scratch, wanted[t], columns) != n:
            return DAMAGED, t
        if not _are_within(columns[:n], wanted[t], bounds[t, 0], bounds[t, 1]):
            return DAMAGED, t
        if form == COUNTS_IN_FLOAT32:
            got = unpack_counts(packed[0], at[0, 0], at[0, 1], how[0], zstd, scratch, wanted[t], small)
        else:
            got = unpack_tile(packed[0], at[0, 0], at[0, 1], how[0], raw.itemsize, zstd, scratch, wanted[t], raw)
        if got != n:
            return (WIDE if got == WIDE else DAMAGED), t
        if len(column_sums) and wanted[t, : (n + PIECE - 1) // PIECE].all():
            sound = _equals(_sum(columns[:n]), column_sums[t])
            if form == COUNTS_IN_FLOAT32:
                sound = sound and _counts_agree(small[:n], float_sums[t], smallest[t], largest[t])
            elif len(float_sums):
                sound = sound and _floats_agree(values[:n], float_sums[t], smallest[t], largest[t])
            else:
                sound = sound and _integers_agree(values[:n], integer_sums[t], smallest[t], largest[t])
            if not sound:
                return DAMAGED, t
        while c < ends[t]:
            row, low, high = cut_row[c], cut_at[c], cut_at[c] + cut_size[c]
            c += 1
            start, most = filled[row], high - low
            row_genes = array_at(genes_at[row], start + most, gene_type)
            to_values = array_at(values_at[row] + start * value_type.itemsize, most, value_type)
            if form == COUNTS_IN_FLOAT32:
                size = _put(columns[low:high], small[low:high], table, base, row_genes[start:], to_values)
            else:
                if form == COUNTS and value_width(values[low:high]) >= value_type.itemsize:
                    return WIDE, t
                size = _put(columns[low:high], values[low:high], table, base, row_genes[start:], to_values)
            filled[row] = start + size
            if is_disordered(row_genes[: start + size], start):
                if _descends(columns[low:high]):
                    return DAMAGED, t
                disorder = np.uint8(1)
    return np.int64(disorder), len(counts)


@compiled
def _descends(columns):
    """Whether a column is below the one before it: in a tile the columns of one row ascend, or repeat."""
    return (columns[1:] < columns[:-1]).any()


@compiled
def _put(columns, values, table, base, out_genes, out_values):
    """Copy a stretch, or what is wanted of it; returns how many values that are."""
    n = len(columns)
    if len(table) == 0:
        to_genes, to_values = out_genes[:n], out_values[:n]
        for i in range(n):
            to_genes[i] = columns[i]
        for i in range(n):
            to_values[i] = values[i]
        return n
    kept = 0
    for i in range(n):
        place = np.int64(columns[i]) - base
        if 0 <= place < len(table) and table[place] != DROP:
            out_genes[kept] = table[place]
            out_values[kept] = values[i]
            kept += 1
    return kept
