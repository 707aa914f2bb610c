"""Access to the files of an array, on a local disk or elsewhere, without TileDB's reader."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cellfeed.errors import ReadError

MAX_FILE_GAP = 64 << 10
"""Largest gap between two pieces of a file that are read as one."""


class Piece(NamedTuple):
    """Bytes of a file to read: from ``start`` on, until ``target`` is full."""

    name: str
    start: int
    target: npt.NDArray[np.uint8]


class ArrayFiles(Protocol):
    """The files of one array; names are relative to its folder. Thread-safe.

    Two objects for the same array are equal and have the same hash.
    """

    @property
    def max_gap(self) -> int:
        """Largest gap between two pieces of a file that are worth reading as one."""

    def __hash__(self) -> int: ...

    def list_folders(self, *names: str) -> list[list[str]]:
        """Return the names in each folder. A folder that does not exist raises an error or is empty."""

    def read_whole(self, names: Sequence[str]) -> list[bytes]:
        """Return the contents of small files."""

    def read(self, pieces: Sequence[Piece]) -> None:
        """Read pieces into their targets; pieces of the same file follow each other."""

    def close(self) -> None:
        """Close open files and connections; a later read opens them again."""


@dataclass(frozen=True)
class LocalFiles:
    """Files in a folder on a local disk, read by the calling thread."""

    folder: Path
    max_gap: ClassVar[int] = MAX_FILE_GAP

    def __str__(self) -> str:
        return str(self.folder)

    def list_folders(self, *names: str) -> list[list[str]]:
        """Return the names in each folder."""
        return [[path.name for path in (self.folder / name).iterdir()] for name in names]

    def read_whole(self, names: Sequence[str]) -> list[bytes]:
        """Return the contents of small files."""
        return [(self.folder / name).read_bytes() for name in names]

    def read(self, pieces: Sequence[Piece]) -> None:
        """Read pieces into their targets; a file is opened once for consecutive pieces."""
        for name, of_file in groupby(pieces, key=attrgetter("name")):
            path = self.folder / name
            with path.open("rb", buffering=0) as file:
                for _, start, target in of_file:
                    file.seek(start)
                    _read_fully(file, target.data, path)

    def close(self) -> None:
        """Do nothing: no file stays open."""


def _read_fully(file: io.FileIO, target: memoryview, path: Path) -> None:
    while len(target):
        n_read = file.readinto(target)
        if not n_read:
            raise ReadError(
                f"{str(path)!r} is shorter than its metadata says: the store is damaged or has been removed"
            )
        target = target[n_read:]
