"""Kernels that unpack the chunks of zarr arrays and copy their rows; see :mod:`cellfeed.rows.kernels`."""

from __future__ import annotations

import numpy as np

from cellfeed.rows.compiled import compiled
from cellfeed.rows.kernels import _UINT8, WIDE, array_at, call_at, copy_into, is_disordered
from cellfeed.rows.page_kernels import DROP, narrow_float32
from cellfeed.sources.anndata.chunks.chunk_layout import Codec

PLAIN, BLOSC = (int(codec) for codec in Codec)

OK, NOT_COUNTS, BAD_COLUMN, BAD_READ, BAD_CHECKSUM, BAD_SIZE, BAD_CODE = range(7)
"""Results of kernels. From ``BAD_READ`` on, a chunk is damaged."""

CHECKSUM_BYTES, HEADER_BYTES = 4, 16
"""Sizes of a checksum, and of the header of Blosc, which has the unpacked size at byte 4 and the packed one at 12."""


@compiled(inline="always")
def _load(chunks, k, library):
    """Return the address of the packed chunk ``k``, which is read from its file if it has one; 0 if that fails."""
    if chunks.files[k] < 0:
        return chunks.offsets[k]
    n_done, size = np.int64(0), chunks.sizes[k]
    while n_done < size:
        target = np.int64(chunks.packed.ctypes.data) + n_done
        n = call_at(library.pread, (chunks.files[k], target, size - n_done, chunks.offsets[k] + n_done))
        if n <= 0:
            return np.int64(0)
        n_done += n
    return np.int64(chunks.packed.ctypes.data)


@compiled
def unpack_chunk(chunks, k, target, n_bytes, library):
    """Unpack a chunk to ``n_bytes`` at the address ``target``; return ``OK`` or the damage."""
    size = chunks.sizes[k]
    if size == 0:
        array_at(target, n_bytes, _UINT8)[:] = 0
        return OK
    source = _load(chunks, k, library)
    if source == 0:
        return BAD_READ
    if chunks.has_checksum:
        size -= CHECKSUM_BYTES
        if size < 0:
            return BAD_SIZE
        recorded = array_at(source + size, CHECKSUM_BYTES, _UINT8).view(np.uint32)[0]
        if recorded != np.uint32(call_at(library.checksum, (source, size))):
            return BAD_CHECKSUM
    if chunks.codec == PLAIN:
        if size != n_bytes:
            return BAD_SIZE
        copy_into(array_at(source, size, _UINT8), array_at(target, size, _UINT8))
        return OK
    if size < HEADER_BYTES:
        return BAD_SIZE
    header = array_at(source, HEADER_BYTES, _UINT8).view(np.uint32)
    if header[1] != n_bytes or header[3] != size:
        return BAD_SIZE
    n_unpacked = np.int32(call_at(library.decompress, (source, target, np.int64(n_bytes), np.int64(1))))
    return OK if n_unpacked == n_bytes else BAD_CODE


@compiled
def unpack_chunks(chunks, n_bytes, target, library):
    """Unpack all chunks one after another; return the result, and the index of the first damaged chunk."""
    for k in range(len(chunks.sizes)):
        result = unpack_chunk(chunks, k, target + k * n_bytes, n_bytes, library)
        if result != OK:
            return result, k
    return OK, 0


@compiled
def fill_rows(numbers, lows, sizes, columns, values, counts, n_columns, places, rows, library):
    """Unpack chunks, and copy the selected genes to rows while the chunk is in the cache.

    Parameters
    ----------
    numbers
        int64, shape (n_chunks,): numbers of the chunks in their arrays, ascending: all chunks with values of a row.
    lows, sizes
        int64, shape (n_rows,): the first element of each row, ascending, and the number of elements.
    columns, values
        The chunks of ``indices`` and of ``data``: :class:`PackedChunks`.
    counts
        ``None``, or for float32 that must be counts, memory for those of a chunk: uint16.
    places
        Table of the selected genes; empty if all are.
    rows
        The rows; ``rows.sizes`` is 0 before, and counts the values that are copied.

    Returns
    -------
    tuple
        The result; the index of the chunk, plus ``n_chunks`` for one of values, or of the row with a ``BAD_COLUMN``;
        and whether the genes of any row do not ascend.
    """
    chunk_size, n_bytes = len(columns.unpacked), (columns.unpacked.nbytes, values.unpacked.nbytes)
    first, disorder = 0, False
    for k in range(len(numbers)):
        result = unpack_chunk(columns, k, np.int64(columns.unpacked.ctypes.data), n_bytes[0], library)
        if result != OK:
            return result, k, disorder
        result = unpack_chunk(values, k, np.int64(values.unpacked.ctypes.data), n_bytes[1], library)
        if result != OK:
            return result, len(numbers) + k, disorder
        begin = numbers[k] * chunk_size
        if counts is None:
            outcome = copy_chunk(columns.unpacked, values.unpacked, begin, first, lows, sizes, n_columns, places, rows)
        else:
            if narrow_float32(values.unpacked, values.unpacked.view(np.int32), counts) == WIDE:
                return NOT_COUNTS, k, disorder
            outcome = copy_chunk(columns.unpacked, counts, begin, first, lows, sizes, n_columns, places, rows)
        result, row, disordered = outcome
        disorder |= disordered
        if result != OK:
            return result, row, disorder
        first = row
    return OK, 0, disorder


@compiled
def copy_chunk(columns, values, begin, first, lows, sizes, n_columns, places, rows):
    """Copy the selected genes of the rows from ``first`` on that have values in a chunk, whose first is ``begin``.

    Returns
    -------
    tuple
        The result; the first row that has values in the next chunk, or the row with a ``BAD_COLUMN``; and whether the
        genes of any row do not ascend.
    """
    end, row, disorder = begin + len(columns), first, False
    while row < len(lows) and lows[row] < end:
        low, high = max(lows[row], begin) - begin, min(lows[row] + sizes[row], end) - begin
        if low < high:
            in_range, ascends = append(columns[low:high], values[low:high], row, n_columns, places, rows)
            disorder |= not ascends
            if not in_range:
                return BAD_COLUMN, row, disorder
        row += 1
        if lows[row - 1] + sizes[row - 1] <= end:
            first = row
    return OK, first, disorder


@compiled
def append(columns, values, row, n_columns, places, rows):
    """Append values to a row; return whether all columns are in range, and whether the genes of the row ascend."""
    size, n = rows.sizes[row], len(columns)
    genes = array_at(rows.genes[row], size + n, rows.gene_type)
    kept = array_at(rows.values[row] + size * rows.value_type.itemsize, n, rows.value_type)
    ascends = True
    if len(places.table) == 0:
        ascends = not is_disordered(columns, 0) and (size == 0 or genes[size - 1] < columns[0])
        low, high = columns[0], columns[n - 1]
        if not ascends:
            for column in columns:
                low, high = min(low, column), max(high, column)
        copy_into(columns, genes[size:])
        copy_into(values, kept)
        rows.sizes[row] = size + n
        return low >= 0 and high < n_columns, ascends
    previous = np.int64(genes[size - 1]) if size else np.int64(-1)
    if places.is_range and not is_disordered(columns, 0):
        low, high = np.searchsorted(columns, places.base), np.searchsorted(columns, places.base + len(places.table))
        for i in range(high - low):
            genes[size + i] = columns[low + i] - places.base
        copy_into(values[low:high], kept)
        rows.sizes[row] = size + high - low
        in_range = columns[0] >= 0 and columns[n - 1] < n_columns
        return in_range, low == high or previous < genes[size]
    n_kept = 0
    for i in range(n):
        column = np.int64(columns[i])
        if column < 0 or column >= n_columns:
            return False, ascends
        k = column - places.base
        if 0 <= k < len(places.table) and places.table[k] != DROP:
            place = np.int64(places.table[k])
            ascends &= place > previous
            previous = place
            genes[size + n_kept] = place
            kept[n_kept] = values[i]
            n_kept += 1
    rows.sizes[row] = size + n_kept
    return True, ascends


@compiled
def copy_rows(columns, values, column_starts, value_starts, sizes, n_columns, places, rows):
    """Copy the selected genes of rows that are unpacked; see :func:`fill_rows`."""
    disorder = False
    for row in range(len(sizes)):
        if sizes[row] == 0:
            continue
        low, start = column_starts[row], value_starts[row]
        own = columns[low : low + sizes[row]], values[start : start + sizes[row]]
        in_range, ascends = append(own[0], own[1], row, n_columns, places, rows)
        disorder |= not ascends
        if not in_range:
            return BAD_COLUMN, row, disorder
    return OK, 0, disorder
