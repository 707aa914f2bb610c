"""Kernels from packed tiles to rows: first find where each row's values lie, then copy them there.

The tiles of a read are processed twice. :func:`find_tile_segments` unpacks row numbers only and divides each tile into
segments of one row each, which yields the number of values per row. :func:`fill_counts` or :func:`fill_values` then
unpacks columns and values into memory that stays in the cache, and copies each segment to its row.
The arguments are described in :mod:`cellfeed.sources.soma.tiles.packed_tiles`.
"""

from __future__ import annotations

import numpy as np

from cellfeed.rows.compiled import compiled
from cellfeed.rows.kernels import _UINT8, array_at, copy_into, is_disordered
from cellfeed.rows.page_kernels import DROP, find_run, segment_end, value_width
from cellfeed.sources.soma.tiles.fragments import UNKNOWN_SUMS
from cellfeed.sources.soma.tiles.packed_tiles import DAMAGED, FULL, NOT_COUNTS, SECTION_SIZE
from cellfeed.sources.soma.tiles.unpack_kernels import unpack_tile

TOO_LARGE, TOO_SMALL = UNKNOWN_SUMS
LARGEST_FLOAT = np.finfo(np.float64).max
"""The sum of floats that TileDB records, with either sign, if the sum overflows."""


@compiled(inline="always")
def _add_segments(rows, bounds, runs, segments, t, n_segments, sizes):
    """Append the segments of the wanted rows of tile ``t``, whose row numbers are sorted, and mark their sections.

    Returns the number of segments, ``FULL``, or ``DAMAGED`` if a row is out of bounds; and the sum of all row numbers.
    """
    n, i, k, total = len(rows), 0, 0, np.int64(0)
    while i < n:
        joinid = rows[i]
        end = segment_end(rows, i)
        total += joinid * (end - i)
        if joinid < bounds[0] or joinid > bounds[1]:
            return DAMAGED, total
        run = find_run(joinid, runs, k)
        if run >= 0:
            if n_segments == len(segments.row):
                return FULL, total
            k = run
            row = runs.row[k] + joinid - runs.first[k]
            segments.row[n_segments] = row
            segments.start[n_segments] = i
            segments.size[n_segments] = end - i
            sizes[row] += end - i
            n_segments += 1
            for section in range(i // SECTION_SIZE, (end - 1) // SECTION_SIZE + 1):
                segments.wanted[t, section] = True
        i = end
    return n_segments, total


@compiled(inline="always")
def _equals(total, recorded):
    """Return whether a sum of integers equals the recorded sum, or the recorded sum is unknown."""
    return recorded == total or recorded == TOO_LARGE or recorded == TOO_SMALL  # `in` takes longer to compile


@compiled(inline="always")
def _all_wanted(wanted, n):
    """Return whether all sections of a tile of ``n`` values are wanted."""
    every = True
    for section in range((n + SECTION_SIZE - 1) // SECTION_SIZE):
        every &= wanted[section]
    return every


@compiled(inline="always")
def _are_within(columns, wanted, low, high):
    """Return whether the columns in the wanted sections of a tile are between its smallest and its largest column.

    The inner loop covers a section: a loop per segment took as long as unpacking half of the columns.
    """
    first, last = columns.dtype.type(low), columns.dtype.type(high)
    outside = np.uint8(0)
    for section in range((len(columns) + SECTION_SIZE - 1) // SECTION_SIZE):
        if wanted[section]:
            part = columns[section * SECTION_SIZE : (section + 1) * SECTION_SIZE]
            for i in range(len(part)):
                outside = np.uint8(outside | (part[i] < first) | (part[i] > last))
    return outside == 0


@compiled(no_cpython_wrapper=True)
def _sum(numbers):
    """Sum unsigned integers; narrow ones in parts whose sums fit 32 bits, which vector instructions process faster."""
    total = np.int64(0)
    for low in range(0, len(numbers), SECTION_SIZE):
        part = numbers[low : low + SECTION_SIZE]
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
def _counts_agree(counts, recorded, low, high):
    """Return whether counts have the recorded sum, which is exact in any order, smallest and largest value."""
    smallest, largest = counts[0], counts[0]
    for i in range(len(counts)):
        smallest = counts[i] if counts[i] < smallest else smallest  # min() and max() are compiled separately
        largest = counts[i] if counts[i] > largest else largest
    return np.float64(_sum(counts)) == recorded and smallest >= low and largest <= high


@compiled(inline="always")
def _values_agree(values, sums, t, low, high):
    """Return whether values have the recorded sum and lie between the recorded smallest and largest value.

    Sums of integers are modulo 2**64. Sums of floats are exact, because they are computed as TileDB does: in order, in
    float64. Floats that are not finite are checked row by row later: with them, sum and extremes are undefined.
    """
    total, recorded = sums.dtype.type(0), sums[t]
    outside = np.uint8(0)
    for i in range(len(values)):
        total += sums.dtype.type(values[i])
        outside = np.uint8(outside | (values[i] < low) | (values[i] > high))
    if total - total != 0 or abs(recorded) == LARGEST_FLOAT:  # not finite, or unknown
        return True
    return outside == 0 and _equals(total, recorded)


@compiled
def find_tile_segments(field, decoder, runs, recorded, segments, sizes):
    """Find the values of wanted rows.

    Parameters
    ----------
    field
        Packed row numbers, a ``PackedField``.
    decoder
        A ``Decoder``.
    runs
        The wanted rows, a :class:`~cellfeed.rows.row_builder.RowRuns`.
    recorded
        A ``RowStatistics``.
    segments
        ``Segments``, filled, but for their ``counts``.
    sizes
        int64, shape (n_wanted_rows,): increased by the number of values of each row.

    Returns
    -------
    tuple of int
        ``DAMAGED``, ``FULL`` or the number of segments; and the tile at which the kernel stopped.
    """
    n_segments = 0
    for t in range(len(segments.counts)):
        n = segments.counts[t]
        if unpack_tile(field, t, 8, decoder, segments.wanted[t][:0], 0) != n:
            return DAMAGED, t
        n_segments, total = _add_segments(field.unpacked[:n], recorded.bounds[t], runs, segments, t, n_segments, sizes)
        if n_segments < 0:
            return n_segments, t
        if len(recorded.sums) and not _equals(total, recorded.sums[t]):
            return DAMAGED, t
        segments.ends[t] = n_segments
    return n_segments, len(segments.counts)


@compiled(inline="always")
def _unpack_columns(field, t, n, decoder, wanted, bounds):
    """Unpack the wanted columns of a tile; return whether it has ``n`` columns, all within bounds."""
    n_unpacked = unpack_tile(field, t, 8, decoder, wanted, 0)
    return n_unpacked == n and _are_within(field.unpacked[:n], wanted, bounds[0], bounds[1])


@compiled
def fill_counts(columns, values, decoder, segments, places, rows, width, recorded):
    """Unpack columns and values, float32 that are counts, and append each segment to its row.

    Parameters
    ----------
    columns, values
        ``PackedField``; the unpacked values are uint16.
    decoder
        A ``Decoder``.
    segments
        ``Segments``, as :func:`find_tile_segments` filled them.
    places
        Selected columns, a :class:`~cellfeed.rows.row_builder.GenePlaces`.
    rows
        The rows, a :class:`~cellfeed.rows.row_allocator.RowArrays` whose sizes are counted up.
    width
        Bytes of a value in the rows, 1 or 2.
    recorded
        ``ValueStatistics``. Sums and extremes of values are verified in tiles all of whose sections are wanted.

    Returns
    -------
    tuple of int
        ``DAMAGED``, ``NOT_COUNTS``, or whether the genes of any row are out of order; and the tile at which the kernel
        stopped.
    """
    column, value = columns.unpacked, values.unpacked
    disorder = begin = 0
    for t in range(len(segments.counts)):
        n, end, wanted = segments.counts[t], segments.ends[t], segments.wanted[t]
        if begin == end:
            continue
        if not _unpack_columns(columns, t, n, decoder, wanted, recorded.column_bounds[t]):
            return DAMAGED, t
        n_unpacked = unpack_tile(values, t, 4, decoder, wanted, (1 << 8 * width) - 1)
        if n_unpacked != n:
            return (NOT_COUNTS if n_unpacked == NOT_COUNTS else DAMAGED), t
        if len(recorded.column_sums) and _all_wanted(wanted, n):
            sum_agrees = _equals(_sum(column[:n]), recorded.column_sums[t])
            smallest, largest = recorded.smallest[t], recorded.largest[t]
            if not (sum_agrees and _counts_agree(value[:n], recorded.value_sums[t], smallest, largest)):
                return DAMAGED, t
        status = _append_segments(column, value, segments, begin, end, places, rows, width)
        if status < 0:
            return status, t
        disorder |= status
        begin = end
    return disorder, len(segments.counts)


@compiled
def fill_values(columns, values, decoder, segments, places, rows, must_be_counts, recorded):
    """Unpack columns and values of any type, and append each segment to its row, as :func:`fill_counts` does.

    The unpacked values have the type in the file. If ``must_be_counts``, the result is ``NOT_COUNTS`` if a value of a
    wanted row is not a count that the type of the rows represents.
    """
    column, value = columns.unpacked, values.unpacked
    disorder = begin = 0
    for t in range(len(segments.counts)):
        n, end, wanted = segments.counts[t], segments.ends[t], segments.wanted[t]
        if begin == end:
            continue
        if not _unpack_columns(columns, t, n, decoder, wanted, recorded.column_bounds[t]):
            return DAMAGED, t
        if unpack_tile(values, t, value.itemsize, decoder, wanted, 0) != n:
            return DAMAGED, t
        if len(recorded.column_sums) and _all_wanted(wanted, n):
            sum_agrees = _equals(_sum(column[:n]), recorded.column_sums[t])
            smallest, largest = recorded.smallest[t], recorded.largest[t]
            if not (sum_agrees and _values_agree(value[:n], recorded.value_sums, t, smallest, largest)):
                return DAMAGED, t
        if must_be_counts:
            for k in range(begin, end):
                low = segments.start[k]
                if value_width(value[low : low + segments.size[k]]) > rows.value_type.itemsize:
                    return NOT_COUNTS, t
        status = _append_segments(column, value, segments, begin, end, places, rows, rows.value_type.itemsize)
        if status < 0:
            return status, t
        disorder |= status
        begin = end
    return disorder, len(segments.counts)


@compiled(inline="always")
def _append_segments(columns, values, segments, begin, end, places, rows, width):
    """Append the segments of a tile to their rows; values become uint8 if ``width`` is 1, else the rows' type.

    Returns whether the genes of any row are out of order, or ``DAMAGED``.
    """
    table, base = places.table, places.base
    disorder = 0
    for k in range(begin, end):
        row, low, size = segments.row[k], segments.start[k], segments.size[k]
        from_columns, from_values = columns[low : low + size], values[low : low + size]
        start = rows.sizes[row]
        genes = array_at(rows.genes[row], start + size, rows.gene_type)
        n_kept = size
        if len(table) == 0:
            copy_into(from_columns, genes[start:])
        else:
            n_kept = 0
            for i in range(size):
                place = np.int64(from_columns[i]) - base
                if 0 <= place < len(table) and table[place] != DROP:
                    genes[start + n_kept] = table[place]
                    from_values[n_kept] = from_values[i]
                    n_kept += 1
        address = rows.values[row] + start * width
        if width == 1:
            copy_into(from_values[:n_kept], array_at(address, n_kept, _UINT8))
        else:
            copy_into(from_values[:n_kept], array_at(address, n_kept, rows.value_type))
        rows.sizes[row] = start + n_kept
        if is_disordered(genes[: start + n_kept], start):
            for i in range(1, size):  # within a tile, the columns of a row ascend or repeat
                if from_columns[i] < from_columns[i - 1]:
                    return DAMAGED
            disorder = 1
    return disorder
