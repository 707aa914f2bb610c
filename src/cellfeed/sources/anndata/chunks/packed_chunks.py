"""Arguments of the kernels that unpack chunks."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cellfeed.sources.anndata.chunks.blosc import find_blosc


class CLibrary(NamedTuple):
    """Addresses of functions in C: ``pread``, ``blosc_decompress_ctx`` and ``crc32c_value``."""

    pread: int
    decompress: int
    checksum: int


@cache
def find_library() -> CLibrary | None:
    """Return the functions; ``None`` if zarr must decode chunks. Without ``pread``, its address is 0."""
    blosc = find_blosc()
    if blosc is None:
        return None
    try:
        pread = ctypes.cast(ctypes.CDLL(None).pread, ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):  # not POSIX
        pread = 0
    return CLibrary(pread, blosc.decompress, blosc.crc32c)


def checksum_of(data: npt.NDArray[np.uint8]) -> int:
    """Return the CRC32C of bytes."""
    blosc = find_blosc()
    assert blosc is not None  # a reader exists only if it is there
    return blosc.checksum(data.ctypes.data, data.nbytes)


class PackedChunks(NamedTuple):
    """Chunks of one array.

    Attributes
    ----------
    files
        int64, shape (n_chunks,): descriptor of the file of each chunk; -1 if it is in memory.
    offsets, sizes
        int64, shape (n_chunks,): where the chunk begins in its file, or its address, and its bytes; 0 bytes for a
        chunk that is not stored, whose elements are 0.
    codec, has_checksum
        How chunks are packed, and whether a checksum follows.
    packed
        uint8: memory for the largest packed chunk.
    unpacked
        shape (chunk_size,): memory for one chunk, of the type of the elements.
    """

    files: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    codec: int
    has_checksum: bool
    packed: npt.NDArray[np.uint8]
    unpacked: npt.NDArray[Any]
