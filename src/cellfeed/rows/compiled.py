"""The decorator of all kernels. If numba's cache of compiled code cannot be used, kernels are compiled again.

numba keeps compiled code in the first of these folders that is writable: ``NUMBA_CACHE_DIR``, ``__pycache__`` beside
the source, the user's cache folder. numba itself raises an error if there is no such folder, if the disk is full, and
if a file of the cache is broken; and processes that compile a kernel for different types at the same time may exchange
their code.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numba import njit, typeof
from numba.core import config
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from numba.core.compiler_lock import global_compiler_lock

from cellfeed._checks import warn_user

logger = logging.getLogger("cellfeed.kernels")


def compiled(function: Callable[..., Any] | None = None, *, allocates: bool = False, **options: Any) -> Any:
    """Compile a function when it is first called, and keep the code for later processes. It releases the GIL.

    Functions that allocate no arrays are compiled without reference counts. This takes less time, and a slice of an
    array costs no locked instructions: in loops over segments of a few dozen values they took a sixth of the time.

    Parameters
    ----------
    function
        The function; ``None`` returns a decorator with the options.
    allocates
        Whether the function allocates arrays.
    options
        Options of ``numba.njit``. ``no_cpython_wrapper=True`` saves a tenth of the compilation of functions that are
        called by kernels only.
    """
    if function is None:
        return functools.partial(compiled, allocates=allocates, **options)
    with _compiling_enabled():
        dispatcher = njit(**{"nogil": True, "no_cfunc_wrapper": True, "_nrt": allocates} | options)(function)
    dispatcher._compiler.compile = _collection_paused()(dispatcher._compiler.compile)
    try:
        dispatcher._cache = KernelCache(function)
    except Exception as cause:  # RuntimeError: no folder; OSError: no source file
        dispatcher._cache = NullCache()
        _warn_once(str(cause))
    return dispatcher


def address_of(kernel: Any, *arguments: Any) -> int:
    """Compile a kernel for the types of some arguments; return the address of its C function.

    The kernel has the option ``no_cfunc_wrapper=False``. numba compiles the code of a kernel once more in each kernel
    that calls it by name, but not in those that call it at its address.
    """
    signature = tuple(typeof(argument) for argument in arguments)
    kernel.compile(signature)
    code = kernel.overloads[signature]
    address: int = code.library.get_pointer_to_function(code.fndesc.llvm_cfunc_wrapper_name)
    return address


@contextlib.contextmanager
def _compiling_enabled() -> Iterator[None]:
    """Ignore ``NUMBA_DISABLE_JIT``, which users set to debug their own functions: kernels do not run in Python."""
    disabled, config.DISABLE_JIT = config.DISABLE_JIT, 0
    try:
        yield
    finally:
        config.DISABLE_JIT = disabled


@contextlib.contextmanager
def _collection_paused() -> Iterator[None]:
    """Pause the garbage collection, which takes a seventh of the time of a compilation; threads compile in turn."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class KernelFiles(IndexDataCacheFile):  # type: ignore[misc]
    """The files of one function: an index, and a file of code per signature, which several processes may write at once.

    numba numbers the files of code: two processes that have read the same index give one number to different code. It
    also writes the index first, so that another process may read what the file held before.
    """

    def save(self, key: Any, data: Any) -> None:
        """Write the code to a file that has the signature in its name, then name the file in the index."""
        signature, machine, *_ = key
        name = self._data_name(int(hashlib.sha256(repr((signature, machine)).encode()).hexdigest()[:16], 16))
        self._save_data(name, data)
        self._save_index({**self._load_index(), key: name})


class KernelCache(FunctionCache):  # type: ignore[misc]
    """numba's cache of one function; if its files cannot be used, the function is compiled again."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        locator = self._impl.locator
        self._cache_file = KernelFiles(self.cache_path, self._impl.filename_base, locator.get_source_stamp())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the code for a signature, or ``None`` if no file can be read."""
        try:
            code = super().load_overload(sig, target_context)
        except Exception as cause:  # unpickling a broken file can raise any error
            code = None
            logger.info("a file of numba's cache in %s is broken and will be replaced: %r", self.cache_path, cause)
            try:
                self.flush()
            except Exception as refused:
                _warn_once(f"{self.cache_path}: {refused}")
        if code is None and not _logged.is_set():
            _logged.set()
            logger.info("compiling kernels, once per environment, to %s: this takes a few seconds", self.cache_path)
        return code

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the code for a signature, if possible."""
        try:
            super().save_overload(sig, data)
        except Exception as cause:
            _warn_once(f"{self.cache_path}: {cause}")

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        """Return the key of the code; it includes all sources, because kernels call kernels of other files."""
        return (*super()._index_key(sig, codegen), _sources())


@functools.cache
def _sources() -> str:
    """Return a hash of the source of all kernels."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        source = path.read_bytes()
        if b"\n@compiled" in source:
            digest.update(source)
    return digest.hexdigest()


_logged = threading.Event()
_warned = threading.Event()


def _warn_once(reason: str) -> None:
    if not _warned.is_set():
        _warned.set()
        warn_user(
            f"compiled code cannot be kept, so each process compiles it again, for a few seconds ({reason}); set "
            f"NUMBA_CACHE_DIR to a folder that can be written"
        )


if hasattr(os, "register_at_fork"):
    # A child that is forked while another thread compiles would wait forever for the lock of that thread.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
