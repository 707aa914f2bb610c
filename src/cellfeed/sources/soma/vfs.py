"""Reads the files of an array on an object store through TileDB's file system, with the settings of the user.

tiledbsoma ships the library, and its configuration has the credentials, endpoints, regions and proxies. The calls are
those of TileDB's public C interface; they release the GIL.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from cellfeed.sources.retry import NO_RETRY, Retries
from cellfeed.sources.soma import tiledb_private
from cellfeed.sources.soma.address import OBJECT_STORES, ArrayAddress
from cellfeed.sources.soma.tiles.files import ArrayFiles, LocalFiles, Piece
from cellfeed.sources.soma.tiles.fragments import UnknownLayout

T = TypeVar("T")

REQUEST_BYTES = 4 << 20
"""Maximum bytes of one request: several requests run at the same time, and each is retried on its own."""

MAX_REMOTE_GAP = 1 << 20
"""Number of unwanted bytes between two pieces of a file up to which one request reads both."""

N_CONNECTIONS = 32
"""Number of connections: each request that runs needs one."""

SETTINGS = {
    # cellfeed retries requests itself, counts the attempts and has a deadline.
    "vfs.s3.connect_max_tries": "1",
    "vfs.s3.connect_timeout_ms": "3000",
    # TileDB keeps this number of connections.
    "vfs.s3.max_parallel_ops": str(N_CONNECTIONS),
    # Requests keep their size and run in the calling thread.
    "vfs.read_ahead_size": "0",
    "vfs.min_parallel_size": str(1 << 30),
    "sm.io_concurrency_level": "1",
    "sm.compute_concurrency_level": "1",
}
"""TileDB settings for reading files; settings of the user's context take precedence."""

_READ = 0  # TILEDB_VFS_READ
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_char_p, ctypes.c_void_p)

_PARAMETERS: dict[str, list[Any]] = {
    "tiledb_config_alloc": [ctypes.c_void_p, ctypes.c_void_p],
    "tiledb_config_set": [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p],
    "tiledb_config_free": [ctypes.c_void_p],
    "tiledb_ctx_alloc_with_error": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p],
    "tiledb_ctx_free": [ctypes.c_void_p],
    "tiledb_ctx_get_last_error": [ctypes.c_void_p, ctypes.c_void_p],
    "tiledb_error_message": [ctypes.c_void_p, ctypes.c_void_p],
    "tiledb_error_free": [ctypes.c_void_p],
    "tiledb_vfs_alloc": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p],
    "tiledb_vfs_free": [ctypes.c_void_p],
    "tiledb_vfs_ls": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, _CALLBACK, ctypes.c_void_p],
    "tiledb_vfs_file_size": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    "tiledb_vfs_open": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p],
    "tiledb_vfs_read": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64],
    "tiledb_vfs_fh_free": [ctypes.c_void_p],
}


class VfsError(OSError):
    """TileDB's error for a file that cannot be read."""


def _library() -> Any | None:
    """Return TileDB's C functions; ``None`` if they are missing or must not be used."""
    path = tiledb_private.library_file()
    return None if path is None else _load(path)


@cache
def _load(path: str) -> Any | None:
    library = ctypes.CDLL(path)
    try:
        for name, parameters in _PARAMETERS.items():
            function = getattr(library, name)
            function.argtypes = parameters
            function.restype = None if name.endswith("_free") else ctypes.c_int32
    except AttributeError:
        return None
    return library


def has_vfs() -> bool:
    """Whether files can be read through TileDB's file system."""
    return _library() is not None


class Vfs:
    """TileDB's file system with some settings. Files and connections are closed when the object is freed."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        library = _library()
        assert library is not None  # the caller has checked has_vfs()
        self._library = library
        config, error = ctypes.c_void_p(), ctypes.c_void_p()
        self._context, self._vfs = ctypes.c_void_p(), ctypes.c_void_p()
        try:
            self._check_alone(library.tiledb_config_alloc(ctypes.byref(config), ctypes.byref(error)), error)
            for name, value in settings.items():
                status = library.tiledb_config_set(config, name.encode(), value.encode(), ctypes.byref(error))
                self._check_alone(status, error)
            made = library.tiledb_ctx_alloc_with_error(config, ctypes.byref(self._context), ctypes.byref(error))
            self._check_alone(made, error)
            self._check(library.tiledb_vfs_alloc(self._context, config, ctypes.byref(self._vfs)))
        finally:
            library.tiledb_config_free(ctypes.byref(config))
        handles = self._opened = dict[str, ctypes.c_void_p]()
        self._lock = threading.Lock()
        # Not at the end of the process: a thread of a request that was given up may still read.
        weakref.finalize(self, _free, os.getpid(), library, self._context, self._vfs, handles).atexit = False

    def _check_alone(self, status: int, error: ctypes.c_void_p) -> None:
        if status != 0:
            raise VfsError(self._message(error))

    def _check(self, status: int) -> None:
        if status != 0:
            error = ctypes.c_void_p()
            # May be the message of another thread that failed at the same time.
            self._library.tiledb_ctx_get_last_error(self._context, ctypes.byref(error))
            raise VfsError(self._message(error))

    def _message(self, error: ctypes.c_void_p) -> str:
        text = ctypes.c_char_p()
        if error:
            self._library.tiledb_error_message(error, ctypes.byref(text))
        message = (text.value or b"TileDB failed without a message").decode(errors="replace")
        self._library.tiledb_error_free(ctypes.byref(error))
        return message

    def list_folder(self, uri: str) -> list[str]:
        """Return the names in a folder; an empty list if the folder does not exist."""
        names: list[str] = []

        def note(path: bytes, _: object) -> int:
            names.append(path.decode().rstrip("/").rsplit("/", 1)[-1])
            return 1

        self._check(self._library.tiledb_vfs_ls(self._context, self._vfs, uri.encode(), _CALLBACK(note), None))
        return names

    def size(self, uri: str) -> int:
        """Return the size of a file in bytes."""
        size = ctypes.c_uint64()
        self._check(self._library.tiledb_vfs_file_size(self._context, self._vfs, uri.encode(), ctypes.byref(size)))
        return size.value

    def read(self, uri: str, start: int, target: npt.NDArray[np.uint8]) -> None:
        """Fill ``target`` with the bytes of a file from byte ``start`` on."""
        handle = self._open(uri)
        self._check(self._library.tiledb_vfs_read(self._context, handle, start, target.ctypes.data, target.nbytes))

    def _open(self, uri: str) -> ctypes.c_void_p:
        """Return the handle of a file; it is opened once, as opening makes a request."""
        with self._lock:
            handle = self._opened.get(uri)
        if handle is not None:
            return handle
        opened = ctypes.c_void_p()
        self._check(self._library.tiledb_vfs_open(self._context, self._vfs, uri.encode(), _READ, ctypes.byref(opened)))
        with self._lock:
            kept = self._opened.setdefault(uri, opened)
        if kept is not opened:
            self._library.tiledb_vfs_fh_free(ctypes.byref(opened))
        return kept


def _free(
    pid: int, library: Any, context: ctypes.c_void_p, vfs: ctypes.c_void_p, handles: Mapping[str, ctypes.c_void_p]
) -> None:
    if pid != os.getpid():
        return  # freeing a context waits for its threads, which a forked child does not have
    for handle in handles.values():
        library.tiledb_vfs_fh_free(ctypes.byref(handle))
    library.tiledb_vfs_free(ctypes.byref(vfs))
    library.tiledb_ctx_free(ctypes.byref(context))


class VfsFiles:
    """Files of an array on an object store; several requests run at the same time, and each is retried.

    Parameters
    ----------
    uri, shown
        URI of the array, and its form without credentials for messages.
    settings
        TileDB settings of the user.
    retries
        Makes the requests.
    """

    max_gap: ClassVar[int] = MAX_REMOTE_GAP

    def __init__(self, uri: str, shown: str, settings: Mapping[str, str], retries: Retries = NO_RETRY) -> None:
        self._uri = uri.rstrip("/")
        self._shown = shown
        self._settings = {**SETTINGS, **settings}
        self._retries = retries
        self._lock = threading.Lock()
        self._vfs: Vfs | None = None

    def __str__(self) -> str:
        return self._shown

    # Equal for one array: the index of its tiles is cached by its files, for later epochs.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, VfsFiles) and other._uri == self._uri

    def __hash__(self) -> int:
        return hash(self._uri)

    def _open(self) -> Vfs:
        with self._lock:
            if self._vfs is None:
                self._vfs = Vfs(self._settings)
            return self._vfs

    def list_folders(self, *names: str) -> list[list[str]]:
        """Return the names in each folder, listed at the same time; an empty list for a folder that does not exist."""
        vfs = self._open()
        return self._all(partial(vfs.list_folder, f"{self._uri}/{name}".rstrip("/") + "/") for name in names)

    def read_whole(self, names: Sequence[str]) -> list[bytes]:
        """Read small files, all at the same time."""
        vfs = self._open()
        sizes = self._all(partial(vfs.size, f"{self._uri}/{name}") for name in names)
        targets = [np.empty(size, np.uint8) for size in sizes]
        self.read([Piece(name, 0, target) for name, target in zip(names, targets, strict=True)])
        return [target.tobytes() for target in targets]

    def read(self, pieces: Sequence[Piece]) -> None:
        """Read pieces into their targets, in several requests at the same time."""
        vfs = self._open()
        self._all(
            partial(vfs.read, f"{self._uri}/{name}", start + low, target[low : low + REQUEST_BYTES])
            for name, start, target in pieces
            for low in range(0, len(target), REQUEST_BYTES)
        )

    def _all(self, attempts: Iterable[Callable[[], T]]) -> list[T]:
        requests = [self._retries.start(attempt) for attempt in attempts]
        return [request.result() for request in requests]

    def close(self) -> None:
        """Close files and connections."""
        with self._lock:
            self._vfs = None


def files_of(address: ArrayAddress, retries: Retries = NO_RETRY) -> ArrayFiles:
    """Return the files of an array, or raise :class:`UnknownLayout` if only TileDB's reader can read them."""
    scheme, separator, rest = address.uri.partition("://")
    if not address.is_remote:
        return LocalFiles(Path(rest if separator else address.uri))
    if scheme not in OBJECT_STORES:
        raise UnknownLayout(f"it is on {scheme}://")
    if not has_vfs():
        raise UnknownLayout("TileDB's file system cannot be called")
    return VfsFiles(address.uri, str(address), address.config, retries)
