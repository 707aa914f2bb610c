"""The inner loops from packed tiles to rows: find where each row's values lie, then put them there.

Two passes over the tiles of a read. The first unpacks row numbers only and cuts each tile into stretches of one row,
which tells how long every row is; the second unpacks columns and values into scratch memory that stays in
the cache, and copies each stretch to its place. Nothing is staged in between.
"""

from __future__ import annotations

import numpy as np

from cellfeed.rows.compiled import compiled
from cellfeed.rows.kernels import _UINT8, _UINT16, array_at, borrowed, copy_into, is_disordered
from cellfeed.rows.page_kernels import DROP, end_of_stretch, locate, value_width
from cellfeed.sources.soma.tiles.fragments import UNKNOWN_SUMS
from cellfeed.sources.soma.tiles.unpack_kernels import DAMAGED, PIECE, WIDE, unpack_tile

FULL = -3
"""Status of a room for cuts that was too small."""

TOO_LARGE, TOO_SMALL = UNKNOWN_SUMS
LARGEST_FLOAT = np.finfo(np.float64).max
"""The sum of floats that TileDB notes, with either sign, where it cannot hold the sum."""


@compiled(inline="always")
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


@compiled(inline="always")
def _equals(total, noted):
    """Whether a sum of integers is the one that the writer of a tile has noted, or that one is unknown."""
    return noted == total or noted == TOO_LARGE or noted == TOO_SMALL  # a test of a tuple takes longer to compile


@compiled(inline="always")
def _all(wanted, n):
    """Whether all pieces of a tile of ``n`` values are wanted."""
    every = True
    for piece in range((n + PIECE - 1) // PIECE):
        every &= wanted[piece]
    return every


@compiled(inline="always")
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


@compiled(inline="always")
def _sum(numbers):
    """Add up unsigned integers; narrow ones in parts that fit 32 bits, of which a vector instruction takes more."""
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


@compiled(inline="always")
def _counts_agree(counts, noted, low, high):
    """Whether counts have the noted sum, which is exact in any order, and lie between the noted extremes."""
    smallest, largest = counts[0], counts[0]
    for i in range(len(counts)):
        smallest = counts[i] if counts[i] < smallest else smallest  # min() and max() are compiled apart
        largest = counts[i] if counts[i] > largest else largest
    return np.float64(_sum(counts)) == noted and smallest >= low and largest <= high


@compiled(inline="always")
def _integers_agree(values, noted, low, high):
    """Whether integers have the noted sum, modulo 2**64, and lie between the noted extremes."""
    total = np.int64(0)
    outside = np.uint8(0)
    for i in range(len(values)):
        total += np.int64(values[i])
        outside = np.uint8(outside | (values[i] < low) | (values[i] > high))
    return outside == 0 and _equals(total, noted)


@compiled(inline="always")
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
    if total - total != 0 or abs(noted) == LARGEST_FLOAT:  # not finite, or unknown
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
    for t in range(len(counts)):
        n = counts[t]
        got = unpack_tile(data, places[t], how, 8, zstd, scratch, wanted[t][:0], rows, 0)
        if got != n:
            return DAMAGED, t
        n_cuts, total = _find_cuts(rows[:n], bounds[t], runs, wanted[t], cuts, n_cuts, sizes)
        if n_cuts < 0:
            return n_cuts, t
        if len(sums) and not _equals(total, sums[t]):
            return DAMAGED, t
        ends[t] = n_cuts
    return n_cuts, len(counts)


@compiled(inline="always")
def _unpack_columns(packed, place, n, how, zstd, scratch, wanted, columns, bounds):
    """Unpack the wanted columns of a tile; whether there are ``n``, within ``bounds``."""
    got = unpack_tile(packed, place, how, 8, zstd, scratch, wanted, columns, 0)
    return got == n and _are_within(columns[:n], wanted, bounds[0], bounds[1])


@compiled
def fill_counts(packed, places, counts, how, zstd, scratch, room, wanted, cuts, ends, genes, space, noted):
    """Unpack columns and values, float32 that are counts, and copy every stretch to its row.

    Parameters
    ----------
    packed, places, how
        Packed values and columns: uint8 twice; int64, shape (n_tiles, 2, 2); two numbers.
    counts, zstd, scratch, wanted, cuts, ends
        As for :func:`cut_tiles`, which has filled the last three.
    room
        Scratch, room for a tile each: columns; uint16.
    genes
        Table of wanted columns, and its base; an empty table keeps all.
    space
        Where rows go: addresses of genes and of values, how many values are there, an empty array of the type of
        genes, and the bytes of a value, 1 or 2.
    noted
        What the metadata says of each tile: bounds of columns, integers of shape (n_tiles, 2); sums of columns, int64
        of shape (n_tiles,), empty if tiles are not to be verified; sums of values, as int64 and as float64, of which
        the one for the type of the values is used; smallest and largest value, of the type in the file. Sums and
        extremes of values are verified where all pieces of a tile are wanted.

    Returns
    -------
    tuple of int
        ``DAMAGED``, ``WIDE``, or whether any row came out of order; and the tile at which it ended.
    """
    columns, values = borrowed(room[0]), borrowed(room[1])
    bounds, column_sums, _, sums, smallest, largest = noted
    width = space[4]
    disorder = c = 0
    for t in range(len(counts)):
        n = counts[t]
        if c == ends[t]:
            continue
        if not _unpack_columns(packed[1], places[t, 1], n, how[1], zstd, scratch, wanted[t], columns, bounds[t]):
            return DAMAGED, t
        got = unpack_tile(packed[0], places[t, 0], how[0], 4, zstd, scratch, wanted[t], values, (1 << 8 * width) - 1)
        if got != n:
            return (WIDE if got == WIDE else DAMAGED), t
        if len(column_sums) and _all(wanted[t], n):
            sound = _equals(_sum(columns[:n]), column_sums[t])
            if not (sound and _counts_agree(values[:n], sums[t], smallest[t], largest[t])):
                return DAMAGED, t
        status = _copy_stretches(columns, values, cuts, c, ends[t], genes, space, width, _UINT16)
        if status < 0:
            return status, t
        disorder |= status
        c = ends[t]
    return disorder, len(counts)


@compiled
def fill_values(packed, places, counts, how, zstd, scratch, room, wanted, cuts, ends, genes, space, noted):
    """Unpack columns and values of any type, and copy every stretch to its row, as :func:`fill_counts` does.

    ``room`` is of the type of the values in the file. ``space`` ends with an empty array of the type of those in the
    rows, and whether all values must be counts that fit it.
    """
    columns, values = borrowed(room[0]), borrowed(room[1])
    bounds, column_sums, integer_sums, float_sums, smallest, largest = noted
    value_type, must_fit = space[4], space[5]
    disorder = c = 0
    for t in range(len(counts)):
        n = counts[t]
        if c == ends[t]:
            continue
        if not _unpack_columns(packed[1], places[t, 1], n, how[1], zstd, scratch, wanted[t], columns, bounds[t]):
            return DAMAGED, t
        got = unpack_tile(packed[0], places[t, 0], how[0], values.itemsize, zstd, scratch, wanted[t], values, 0)
        if got != n:
            return DAMAGED, t
        if len(column_sums) and _all(wanted[t], n):
            sound = _equals(_sum(columns[:n]), column_sums[t])
            if len(float_sums):
                sound = sound and _floats_agree(values[:n], float_sums[t], smallest[t], largest[t])
            else:
                sound = sound and _integers_agree(values[:n], integer_sums[t], smallest[t], largest[t])
            if not sound:
                return DAMAGED, t
        if must_fit:
            for k in range(c, ends[t]):
                if value_width(values[cuts[1][k] : cuts[1][k] + cuts[2][k]]) >= value_type.itemsize:
                    return WIDE, t
        status = _copy_stretches(columns, values, cuts, c, ends[t], genes, space, value_type.itemsize, value_type)
        if status < 0:
            return status, t
        disorder |= status
        c = ends[t]
    return disorder, len(counts)


@compiled(inline="always")
def _copy_stretches(columns, values, cuts, begin, end, genes, space, width, wide):
    """Copy the stretches of a tile to their rows, values as uint8 if ``width`` is 1, else as the type of ``wide``.

    Returns whether any row came out of order, or ``DAMAGED``.
    """
    cut_row, cut_at, cut_size = cuts
    table, base = genes
    genes_at, values_at, filled = space[0], space[1], space[2]
    disorder = 0
    for c in range(begin, end):
        row, low, size = cut_row[c], cut_at[c], cut_size[c]
        from_columns, from_values = columns[low : low + size], values[low : low + size]
        start = filled[row]
        row_genes = array_at(genes_at[row], start + size, space[3])
        kept = size
        if len(table) == 0:
            copy_into(from_columns, row_genes[start:])
        else:
            kept = 0
            for i in range(size):
                place = np.int64(from_columns[i]) - base
                if 0 <= place < len(table) and table[place] != DROP:
                    row_genes[start + kept] = table[place]
                    from_values[kept] = from_values[i]
                    kept += 1
        to_values = values_at[row] + start * width
        if width == 1:
            copy_into(from_values[:kept], array_at(to_values, kept, _UINT8))
        else:
            copy_into(from_values[:kept], array_at(to_values, kept, wide))
        filled[row] = start + kept
        if is_disordered(row_genes[: start + kept], start):
            for i in range(1, size):  # in a tile the columns of one row ascend, or repeat
                if from_columns[i] < from_columns[i - 1]:
                    return DAMAGED
            disorder = 1
    return disorder
