"""Chunks that Blosc has packed with LZ4 are unpacked by a kernel: to the same bytes, or not at all."""

import numpy as np
import pytest
from numcodecs import Blosc

from cellfeed.sources.anndata.chunks.lz4_kernels import DAMAGED, TILE_SIZE, UNKNOWN, unpack_lz4
from cellfeed.sources.anndata.chunks.packed_chunks import find_library

LIBRARY = find_library()
pytestmark = pytest.mark.skipif(LIBRARY is None or not LIBRARY.lz4, reason="the wheel of numcodecs hides LZ4")


def unpack(packed, n_bytes):
    """Return the result of the kernel, and the bytes that it wrote."""
    packed = np.frombuffer(packed, np.uint8).copy()
    target, room = np.full(n_bytes + 1, 77, np.uint8), np.empty(n_bytes + 2 * TILE_SIZE, np.uint8)
    result = unpack_lz4(packed.ctypes.data, len(packed), target.ctypes.data, room, LIBRARY)
    assert target[-1] == 77, "a byte behind the chunk was written"
    return result, target[:-1]


def values_of(dtype, n, largest):
    return np.random.default_rng(n).geometric(0.3, n).clip(max=largest).astype(dtype)


@pytest.mark.parametrize("shuffle", [Blosc.SHUFFLE, Blosc.BITSHUFFLE])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("block_size", [0, 512, 1 << 14])
@pytest.mark.parametrize("n", [1 << 10, 3 << 14, 1 << 18])
def test_chunks_have_the_bytes_that_were_packed(shuffle, dtype, block_size, n):
    """Columns of random bytes, of which LZ4 stores some parts as they are, and counts, some with a wide byte."""
    for values in (values_of(dtype, n, 9), np.arange(n).astype(dtype) * np.array(7919).astype(dtype)):
        packed = Blosc("lz4", 5, shuffle, block_size).encode(values)
        result, found = unpack(packed, values.nbytes)
        block = int(np.frombuffer(packed, np.int32, 1, offset=8)[0])
        is_whole = values.nbytes % block == 0 and not packed[2] & 2  # bytes that are not packed have the flag 2
        if is_whole and (dtype == "uint16" or shuffle == Blosc.BITSHUFFLE):
            assert result == values.nbytes
            assert np.array_equal(found.view(dtype), values)
        else:
            assert result == UNKNOWN


@pytest.mark.parametrize("packer", [Blosc("zstd"), Blosc("lz4", 5, Blosc.NOSHUFFLE)])
def test_other_layouts_are_left_to_blosc(packer):
    assert unpack(packer.encode(values_of("uint16", 5000, 9)), 10000)[0] == UNKNOWN


@pytest.mark.parametrize("shuffle", [Blosc.SHUFFLE, Blosc.BITSHUFFLE])
def test_damage_stays_within_the_memory_of_the_chunk(shuffle):
    """Chunks of other programs have no checksum: the kernel neither writes nor reads outside of its memory."""
    values = values_of("uint16", 1 << 12, 300)
    packed = bytearray(Blosc("lz4", 5, shuffle, 1 << 11).encode(values))
    generator = np.random.default_rng(1)
    for _ in range(2000):
        damaged = bytearray(packed)
        damaged[generator.integers(16, len(packed))] ^= 1 << int(generator.integers(8))
        assert unpack(damaged, values.nbytes)[0] in (DAMAGED, values.nbytes)
    for start in (-4, len(packed) - 2, 1 << 30):
        damaged = bytearray(packed)
        damaged[16:20] = np.int32(start).tobytes()
        assert unpack(damaged, values.nbytes)[0] == DAMAGED
