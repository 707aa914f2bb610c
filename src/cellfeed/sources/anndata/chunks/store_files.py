"""Reads bytes of the files of a zarr store, on a local disk or through zarr."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cellfeed.errors import ReadError


class StoreFiles(Protocol):
    """The files of a zarr store, by key. Thread-safe."""

    def shown(self, key: str) -> str:
        """Return the name of a file in errors."""

    def size(self, key: str) -> int:
        """Return the bytes of a file; 0 without a file."""

    def read(self, key: str, start: int, target: npt.NDArray[np.uint8]) -> None:
        """Read bytes from ``start`` on, until the target is full."""


class LocalStoreFiles:
    """Files in a folder on a local disk."""

    def __init__(self, folder: str | PathLike[str]) -> None:
        self._folder = Path(folder)

    def shown(self, key: str) -> str:
        """Return the path of a file."""
        return str(self._folder / key)

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[int]:
        """Yield the descriptor of an open file."""
        with self._open(key) as file:
            yield file.fileno()

    def _open(self, key: str) -> io.FileIO:
        path = self._folder / key
        try:
            return path.open("rb", buffering=0)
        except FileNotFoundError:
            raise ReadError(f"the file {str(path)!r} is missing") from None

    def size(self, key: str) -> int:
        """Return the bytes of a file; 0 without a file."""
        try:
            return (self._folder / key).stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, key: str, start: int, target: npt.NDArray[np.uint8]) -> None:
        """Read bytes from ``start`` on, until the target is full."""
        with self._open(key) as file:
            file.seek(start)
            view = memoryview(target.data)
            while len(view):
                n_bytes = file.readinto(view)
                if not n_bytes:
                    raise ReadError(f"the file {self.shown(key)!r} is damaged: it is too short")
                view = view[n_bytes:]


class RemoteStoreFiles:
    """Files of a store that zarr reads, such as an object store."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def shown(self, key: str) -> str:
        """Return the key: the name of the store is in the error of the read."""
        return key

    def size(self, key: str) -> int:
        """Return the bytes of a file; 0 without a file."""
        from zarr.core.sync import sync

        try:
            return int(sync(self._store.getsize(key)))
        except FileNotFoundError:
            return 0

    def read(self, key: str, start: int, target: npt.NDArray[np.uint8]) -> None:
        """Read bytes from ``start`` on, until the target is full."""
        from zarr.abc.store import RangeByteRequest
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        request = RangeByteRequest(start, start + len(target))
        found = sync(self._store.get(key, default_buffer_prototype(), byte_range=request))
        if found is None or len(found) != len(target):
            raise ReadError(f"the file {key!r} is damaged or missing: {len(target)} bytes from {start} on are wanted")
        target[:] = found.as_numpy_array().view(np.uint8)
