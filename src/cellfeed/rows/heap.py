"""Settings of glibc's allocator for buffers of tens of megabytes that are allocated and freed again and again.

By default glibc takes each such buffer from the system and returns it when it is freed: half of the time of reading
goes into clearing pages. With these settings freed buffers stay in the process and are used again, and all threads
share one heap, so that memory freed by one thread can be used by another. ``CELLFEED_MALLOC=0`` in the environment
leaves the allocator unchanged. Other C libraries are never changed.
"""

from __future__ import annotations

import ctypes
import functools
import platform

from cellfeed._checks import is_enabled

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8

SETTINGS = {
    _M_MMAP_THRESHOLD: 32 << 20,  # bytes; the largest that glibc permits
    _M_TRIM_THRESHOLD: 2**31 - 1,  # bytes
    _M_TOP_PAD: 64 << 20,  # bytes
    _M_ARENA_MAX: 1,
}


@functools.cache
def keep_freed_memory() -> bool:
    """Apply the settings, once per process, and return whether they were applied."""
    if not is_enabled("CELLFEED_MALLOC", default=True) or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    applied = [mallopt(parameter, value) == 1 for parameter, value in SETTINGS.items()]  # all, even if one fails
    return all(applied)
