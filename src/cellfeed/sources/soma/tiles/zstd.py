"""Finds a zstd library on the system or in an installed package.

A call from Python takes longer than the decompression of a chunk of 64 KiB and creates a context each time. Kernels
call ``ZSTD_decompressDCtx`` at its address, with a context that is reused.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from cellfeed.sources.bundled import bundled_libraries

SYSTEM = {"linux": "libzstd.so.1", "darwin": "libzstd.1.dylib", "win32": "zstd.dll"}
BUNDLED = (("numcodecs", "zstd.*"), ("zstandard", "_cffi.*"))
"""Packages whose compiled modules contain and export zstd: (package, pattern of the module's file)."""


@dataclass(frozen=True)
class Zstd:
    """A zstd library, and the address of ``ZSTD_decompressDCtx`` in it."""

    library: Any
    decompress: int

    def new_context(self) -> int:
        """Return the address of a new decompression context; release it by :meth:`free_context`."""
        context = self.library.ZSTD_createDCtx()
        if not context:
            raise MemoryError("zstd has no memory for a decompression context")
        return int(context)

    def free_context(self, context: int) -> None:
        """Release a context."""
        self.library.ZSTD_freeDCtx(context)


@cache
def find_zstd() -> Zstd | None:
    """Load zstd from the system or from a package that contains it; return ``None`` if neither has it."""
    for name in _candidates():
        try:
            library = ctypes.CDLL(name)
            create, free = library.ZSTD_createDCtx, library.ZSTD_freeDCtx
            address = ctypes.cast(library.ZSTD_decompressDCtx, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
        create.restype, create.argtypes = ctypes.c_void_p, []
        free.restype, free.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
        if address:
            return Zstd(library, address)
    return None


def _candidates() -> Iterator[str]:
    if sys.platform in SYSTEM:
        yield SYSTEM[sys.platform]
    for package, pattern in BUNDLED:
        yield from bundled_libraries(package, pattern)
