"""Finds Blosc and CRC32C in the packages that zarr depends on.

Kernels call ``blosc_decompress_ctx`` and ``crc32c_value`` at their addresses: a call from Python per chunk would take
the GIL. The contexts of the functions live on the stack, so that any number of threads may call them.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

from cellfeed.sources.bundled import bundled_libraries

BLOSC_MODULE = ("numcodecs", "blosc.*")
CRC32C_MODULE = ("google_crc32c", "_crc32c.*")
"""Compiled modules that contain the functions or load the library that does: (package, pattern of the file)."""

_BYTES, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


@dataclass(frozen=True)
class Blosc:
    """The functions of Blosc and CRC32C that chunks need.

    Attributes
    ----------
    compress
        ``int blosc_compress_ctx(level, shuffle, typesize, nbytes, source, target, room, codec, blocksize, n_threads)``,
        as a function of ctypes, which releases the GIL.
    decompress
        Address of ``int blosc_decompress_ctx(source, target, room, n_threads)``. It reads the size of the source from
        the header: compare it with the size of the chunk first.
    crc32c
        Address of ``uint32_t crc32c_value(bytes, n_bytes)``.
    """

    compress: Any
    decompress: int
    crc32c: int

    def checksum(self, address: int, n_bytes: int) -> int:
        """Return the CRC32C of the bytes at an address."""
        function = ctypes.CFUNCTYPE(ctypes.c_uint32, _BYTES, _SIZE)(self.crc32c)
        return int(function(address, n_bytes))


@cache
def find_blosc() -> Blosc | None:
    """Load Blosc and CRC32C; return ``None`` if either is not found, so that zarr's codecs must do the work."""
    blosc = _load(BLOSC_MODULE, ("blosc_compress_ctx", "blosc_decompress_ctx"))
    crc32c = _load(CRC32C_MODULE, ("crc32c_value",))
    if blosc is None or crc32c is None:
        return None
    compress = blosc.blosc_compress_ctx
    compress.restype = _INT
    compress.argtypes = [_INT, _INT, _SIZE, _SIZE, _BYTES, _BYTES, _SIZE, ctypes.c_char_p, _SIZE, _INT]
    return Blosc(compress, _address(blosc.blosc_decompress_ctx), _address(crc32c.crc32c_value))


def _load(module: tuple[str, str], names: tuple[str, ...]) -> Any:
    """Return the first library of a module that has the functions, or ``None``."""
    for path in bundled_libraries(*module):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        if all(hasattr(library, name) for name in names):
            return library
    return None


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
