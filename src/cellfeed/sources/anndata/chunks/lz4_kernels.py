"""Kernels that unpack chunks of Blosc with LZ4; see :mod:`cellfeed.rows.kernels`.

Blosc calls LZ4 and shuffles back with 16-byte vectors, which takes as long as LZ4 itself. Here LZ4 is called directly,
bytes that LZ4 could not compress stay where they are, and the shuffle is undone tile by tile with the vectors of the
machine. The format is that of Blosc 1: a header of 16 bytes; int32 offsets of blocks; per block one part, or one per
byte of the element type: an int32 size, and bytes that are packed if their number is smaller than that of the part.
A block is a matrix, transposed: row ``k`` has byte ``k`` of all elements, or after a bitshuffle their bits ``8 k`` to
``8 k + 7``, one bit of all elements after another.
"""

from __future__ import annotations

import numpy as np

from cellfeed.rows.compiled import compiled
from cellfeed.rows.kernels import _UINT8, array_at, call_at, copy_into

HEADER_BYTES = 16
"""Version, version of the codec, flags, bytes per element; int32: unpacked, block and packed bytes."""

FORMAT, LZ4 = 2, 1

BYTE_SHUFFLE, PLAIN, BIT_SHUFFLE, ONE_PART = 1, 2, 4, 16
"""Flags; the number of the codec is in the bits from 5 on."""

MIN_PART_BYTES = 128
"""A block of smaller parts has one part."""

TILE_SIZE = 4096
"""Elements whose shuffle is undone together."""

UNKNOWN, DAMAGED = 0, -1
"""Results of :func:`unpack_lz4` for chunks of other layouts, and for damaged ones."""


@compiled
def unpack_lz4(source, size, target, room, library):
    """Unpack a chunk of Blosc of ``size`` bytes, which has a valid header, to the address ``target``.

    ``room`` is uint8, with the unpacked size and two tiles. Returns the number of unpacked bytes, or why there are
    none.
    """
    header = array_at(source, HEADER_BYTES, _UINT8)
    flags, itemsize = np.int64(header[2]), np.int64(header[3])
    n_bytes, block = np.int64(header.view(np.int32)[1]), np.int64(header.view(np.int32)[2])
    has_bits = flags & (BYTE_SHUFFLE | PLAIN | BIT_SHUFFLE) == BIT_SHUFFLE
    has_bytes = flags & (BYTE_SHUFFLE | PLAIN | BIT_SHUFFLE) == BYTE_SHUFFLE and itemsize == 2
    if library.lz4 == 0 or header[0] != FORMAT or flags >> 5 != LZ4 or itemsize not in (1, 2):
        return UNKNOWN
    if not (has_bits or has_bytes) or block <= 0 or n_bytes % block or block % (8 * itemsize):
        return UNKNOWN
    n_blocks, n = n_bytes // block, block // itemsize
    n_parts = 1 if flags & ONE_PART or n < MIN_PART_BYTES else itemsize
    if HEADER_BYTES + 4 * n_blocks > size or n_bytes + 2 * TILE_SIZE > len(room):
        return DAMAGED
    starts = array_at(source + HEADER_BYTES, 4 * n_blocks, _UINT8).view(np.int32)
    for k in range(n_blocks):
        rows = _unpack_parts(source, size, starts[k], block // n_parts, n_parts, room, library)
        if rows[0] == 0:
            return DAMAGED
        second = rows[1] if n_parts == 2 else rows[0] + n
        _undo_shuffle(rows[0], second, n, itemsize, has_bits, target + k * block, room[n_bytes:])
    return n_bytes


@compiled
def _unpack_parts(source, size, start, n_bytes, n_parts, room, library):
    """Unpack the one or two parts of a block; return their addresses, or 0 and 0."""
    first, address = np.int64(0), np.int64(0)
    for part in range(n_parts):
        if start < 0 or start + 4 > size:
            return np.int64(0), np.int64(0)
        packed = np.int64(array_at(source + start, 4, _UINT8).view(np.int32)[0])
        start += 4
        if packed <= 0 or start + packed > size:
            return np.int64(0), np.int64(0)
        address = source + start
        if packed != n_bytes:
            address = np.int64(room.ctypes.data) + part * n_bytes
            sizes = np.int32(packed), np.int32(n_bytes)
            if np.int32(call_at(library.lz4, (source + start, address, sizes[0], sizes[1]))) != n_bytes:
                return np.int64(0), np.int64(0)
        first = first if part else address
        start += packed
    return first, address


@compiled
def _undo_shuffle(first, second, n, itemsize, has_bits, target, tiles):
    """Write the ``n`` elements of a block; its rows are at ``first`` and, of elements of two bytes, at ``second``."""
    for low in range(0, n, TILE_SIZE):
        size = min(TILE_SIZE, n - low)
        low_bytes = _row(first, low, size, n, has_bits, tiles[:size])
        if itemsize == 1:
            copy_into(low_bytes, array_at(target + low, size, _UINT8))
            continue
        high_bytes = _row(second, low, size, n, has_bits, tiles[TILE_SIZE : TILE_SIZE + size])
        elements = array_at(target + 2 * low, 2 * size, _UINT8).view(np.uint16)
        for i in range(size):
            elements[i] = np.uint16(low_bytes[i]) | np.uint16(np.uint16(high_bytes[i]) << np.uint16(8))


@compiled(inline="always")
def _row(address, low, size, n, has_bits, tile):
    """Return the bytes of a row of a block from ``low`` on; those that are shuffled by bits are written to a tile."""
    if not has_bits:
        return array_at(address + low, size, _UINT8)
    _join_bits(address + low // 8, n // 8, tile)
    return tile


@compiled(inline="always")
def _bits(address, distance, k, size):
    return array_at(address + k * distance, size, _UINT8)


@compiled
def _join_bits(address, distance, out):
    """Write bytes whose bits ``k`` are at ``address + k * distance``, 8 to a byte.

    Eight bytes are an 8 x 8 matrix of bits in 64 bits, which is transposed by swaps of ever larger squares (Warren,
    Hacker's Delight, section 7-3).
    """
    n, u = len(out) // 8, np.uint64
    a, b = _bits(address, distance, 0, n), _bits(address, distance, 1, n)
    c, d = _bits(address, distance, 2, n), _bits(address, distance, 3, n)
    e, f = _bits(address, distance, 4, n), _bits(address, distance, 5, n)
    g, h = _bits(address, distance, 6, n), _bits(address, distance, 7, n)
    words = out.view(np.uint64)
    for i in range(n):
        x = u(a[i]) | u(b[i]) << u(8) | u(c[i]) << u(16) | u(d[i]) << u(24)
        x |= u(e[i]) << u(32) | u(f[i]) << u(40) | u(g[i]) << u(48) | u(h[i]) << u(56)
        swap = (x ^ (x >> u(7))) & u(0x00AA00AA00AA00AA)
        x ^= swap ^ (swap << u(7))
        swap = (x ^ (x >> u(14))) & u(0x0000CCCC0000CCCC)
        x ^= swap ^ (swap << u(14))
        swap = (x ^ (x >> u(28))) & u(0x00000000F0F0F0F0)
        words[i] = x ^ swap ^ (swap << u(28))
