"""glibc's allocator, set once for buffers that come and go in the tens of megabytes.

By default glibc gives every such buffer fresh pages from the system and takes them back at once: half of the time
of reading goes into clearing pages. With these settings freed buffers stay in the process and are used again, and
all threads share one heap, so that what one thread has freed another can use. Set ``CELLFEED_MALLOC=0`` in the
environment to leave the allocator alone. On other systems nothing is done.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8

SETTINGS = {
    _M_MMAP_THRESHOLD: 32 << 20,  # the largest that glibc permits
    _M_TRIM_THRESHOLD: 2**31 - 1,
    _M_TOP_PAD: 64 << 20,
    _M_ARENA_MAX: 1,
}


@functools.cache
def keep_freed_memory() -> bool:
    """Apply the settings, once a process; tells whether they were."""
    if os.environ.get("CELLFEED_MALLOC", "1") == "0" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    done = [mallopt(parameter, value) == 1 for parameter, value in SETTINGS.items()]
    return all(done)
