"""Which process writes an unfinished part of a copy: the name of its folder says it, and a rename changes it.

A process continues the part of one that has ended after it has renamed the folder: of several that try, one succeeds.
If the earlier process runs nevertheless, for example on another machine, its files are not at their paths any more: its
next change is an error of the disk, and the part has one writer still.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import socket
import time
from functools import cache
from pathlib import Path

PARTIAL = ".partial"
"""End of the names of unfinished parts."""

FREE = f"free{PARTIAL}"
"""Name of an unfinished part that no process has taken."""

ABANDONED_S = 900
"""Seconds without a write after which a part is abandoned if its process cannot be looked up."""

PROC = Path("/proc")

_NAME = re.compile(rf"(\w+)-(\d+)-(\d+)-\d+{re.escape(PARTIAL)}")
"""Machine, number and start of a process, and a number for each part."""

_numbers = itertools.count()
_open: set[Path] = set()
"""Unfinished parts that this process writes now."""


def new_part(folder: Path) -> Path:
    """Return the path of an unfinished part of this process in a folder; nothing is there yet."""
    started = _started(os.getpid()) or 0
    work = folder / f"{_machine()}-{os.getpid()}-{started}-{next(_numbers)}{PARTIAL}"
    _open.add(work)
    return work


def unfinished(folder: Path) -> list[Path]:
    """Return the paths of the unfinished parts in a folder."""
    return sorted(folder.glob(f"*{PARTIAL}"))


def take(work: Path, *, by_force: bool = False) -> Path | None:
    """Become the writer of an unfinished part.

    Parameters
    ----------
    by_force
        Whether to take the part of a process that runs, too.

    Returns
    -------
    Path or None
        The new path of the part; ``None`` if a process writes it, or another one has taken it before.
    """
    if not (by_force or _has_ended(work)):
        return None
    own = new_part(work.parent)
    try:
        return work.rename(own)
    except FileNotFoundError:
        release(own)
        return None


def release(work: Path) -> None:
    """Note that this process does not write an unfinished part any more."""
    _open.discard(work)


def _has_ended(work: Path) -> bool:
    name = _NAME.fullmatch(work.name)
    if name is None:
        return True
    machine, pid, started = name[1], int(name[2]), int(name[3])
    if machine != _machine():
        return _age_s(work) > ABANDONED_S
    if pid == os.getpid():
        return work not in _open
    # Without a start, another process may have the number by now.
    return _started(pid) != started or (not started and _age_s(work) > ABANDONED_S)


def _age_s(work: Path) -> float:
    """Return the seconds since the last write to a part."""
    try:
        return time.time() - max(path.stat().st_mtime for path in (work, *work.rglob("*")))
    except FileNotFoundError:  # it is being written
        return 0.0


@cache
def _machine() -> str:
    """Return a name of the processes that this one can look up by number.

    They have its kernel, since the same boot, and its namespace of process numbers: containers on one machine, even
    with one host name, have others. On systems without ``/proc``, such as macOS, they have its host name.
    """
    known = socket.gethostname()
    with contextlib.suppress(OSError):
        boot = (PROC / "sys/kernel/random/boot_id").read_text()
        known += f" {boot} {(PROC / 'self/ns/pid').readlink()}"
    return hashlib.blake2b(known.encode(), digest_size=4).hexdigest()


def _started(pid: int) -> int | None:
    """Return when a process started, in ticks since the boot; ``None`` if it has ended; 0 if its start is unknown."""
    try:
        if PROC.exists():
            fields = (PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()
            return None if fields[0] in "ZX" else int(fields[19])
        if os.name == "posix":  # on Windows the call would end the process
            os.kill(pid, 0)
    except PermissionError:  # it belongs to another user
        return 0
    except OSError:
        return None
    return 0
