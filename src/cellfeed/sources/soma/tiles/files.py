"""The files of an array, wherever they lie: what is read of them when TileDB does not do the reading."""

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
"""Unwanted bytes between two wanted pieces of a file that are read rather than stepped over."""


class Piece(NamedTuple):
    """Bytes of a file that are wanted: from ``start`` on, as many as there is room for in ``target``."""

    name: str
    start: int
    target: npt.NDArray[np.uint8]


class ArrayFiles(Protocol):
    """The files of one array; names are relative to its folder. Those of the same array are equal. Thread-safe."""

    @property
    def max_gap(self) -> int:
        """Unwanted bytes between two wanted pieces of a file that are read rather than stepped over."""

    def __hash__(self) -> int: ...

    def list_folders(self, *names: str) -> list[list[str]]:
        """Name what is in each of some folders; a folder that does not exist is an error, or empty."""

    def read_whole(self, names: Sequence[str]) -> list[bytes]:
        """Read small files."""

    def read(self, pieces: Sequence[Piece]) -> None:
        """Read pieces, those of one file in a row, into their targets."""

    def close(self) -> None:
        """Give back what reading holds open; reading on opens it again."""


@dataclass(frozen=True)
class LocalFiles:
    """Files in a folder on a local disk, read by the thread that asks."""

    folder: Path
    max_gap: ClassVar[int] = MAX_FILE_GAP

    def __str__(self) -> str:
        return str(self.folder)

    def list_folders(self, *names: str) -> list[list[str]]:
        """Name what is in each of some folders."""
        return [[path.name for path in (self.folder / name).iterdir()] for name in names]

    def read_whole(self, names: Sequence[str]) -> list[bytes]:
        """Read small files."""
        return [(self.folder / name).read_bytes() for name in names]

    def read(self, pieces: Sequence[Piece]) -> None:
        """Read pieces; a file is opened once for those that follow each other."""
        for name, of_file in groupby(pieces, key=attrgetter("name")):
            path = self.folder / name
            with path.open("rb", buffering=0) as file:
                for _, start, target in of_file:
                    file.seek(start)
                    _read_fully(file, target.data, path)

    def close(self) -> None:
        """Nothing is held open."""


def _read_fully(file: io.FileIO, target: memoryview, path: Path) -> None:
    while len(target):
        got = file.readinto(target)
        if not got:
            raise ReadError(
                f"{str(path)!r} is shorter than its metadata says: the store is damaged or has been removed"
            )
        target = target[got:]
