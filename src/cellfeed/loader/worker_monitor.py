"""Worker processes under watch: what each is reading, for when one dies; and an alarm, for when one hangs."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import torch

from cellfeed._joinids import IntArray
from cellfeed.rows.row_allocator import Reader, RowAllocator, RowPointers

MAX_READS = 64
"""Reads of one worker that are told apart."""


class WorkerMonitor:
    """Shared memory in which workers write their process number and the runs that they are reading.

    Parameters
    ----------
    num_workers
        Worker processes that share it.
    """

    def __init__(self, num_workers: int) -> None:
        pids = torch.zeros(num_workers, dtype=torch.int64, device="cpu")
        runs = torch.full((num_workers, MAX_READS, 2), -1, dtype=torch.int64, device="cpu")
        self._pids = pids.share_memory_()  # type: ignore[no-untyped-call]
        self._runs = runs.share_memory_()  # type: ignore[no-untyped-call]

    def watched(self, reader: Reader, worker: int) -> Reader:
        """Return the reader of a worker, under watch."""
        self._pids[worker] = os.getpid()
        self._runs[worker] = -1
        return _WatchedReader(reader, self._runs[worker])

    def forget(self) -> None:
        """Forget the processes of an earlier pass."""
        self._pids.zero_()
        self._runs.fill_(-1)

    @property
    def nothing_begun(self) -> bool:
        """Whether no worker has begun to iterate."""
        return not self._pids.any()

    def describe(self) -> str:
        """Say what is being read, worker by worker."""
        lines = []
        for worker, pid in enumerate(self._pids.tolist()):
            runs = [f"{first} to {last}" for first, last in sorted(self._runs[worker].tolist()) if first >= 0]
            doing = f"was reading soma_joinid {', '.join(runs)}" if runs else "was not reading"
            lines.append(f"worker {worker} (process {pid}) {doing}" if pid else f"worker {worker} had not begun")
        return "; ".join(lines)

    def kill(self) -> None:
        """End the workers at once, stopped ones as well."""
        for pid in self._pids.tolist():
            if pid and pid != os.getpid():
                with contextlib.suppress(OSError):  # it is gone already
                    os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))


class Watchdog:
    """A thread that rings once if it was not put off for some seconds.

    Parameters
    ----------
    seconds
        0 or less never rings.
    ring
        Called in the thread.
    """

    def __init__(self, seconds: float, ring: Callable[[], None]) -> None:
        self._seconds = seconds
        self._ring = ring
        self._until = math.inf
        self._done = threading.Event()
        self.rang = False

    def __enter__(self) -> Watchdog:
        """Start the thread, which ends with the body."""
        try:
            if self._seconds > 0:
                threading.Thread(target=self._run, name="cellfeed-watchdog", daemon=True).start()
        except BaseException:  # an interrupt, as the thread starts
            self._done.set()
            raise
        return self

    @contextlib.contextmanager
    def set(self) -> Iterator[None]:
        """Ring if the body takes too long."""
        self._until = time.monotonic() + self._seconds
        try:
            yield
        finally:
            self._until = math.inf

    def _run(self) -> None:
        while not self._done.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() > self._until:
                self.rang = True
                self._ring()
                return

    def __exit__(self, *error: object) -> None:
        self._done.set()


class _WatchedReader:
    def __init__(self, reader: Reader, runs: torch.Tensor) -> None:
        self._reader = reader
        self._runs = runs
        self._free = list(range(len(runs)))
        self._lock = threading.Lock()

    def read(self, joinids: IntArray, space: RowAllocator) -> RowPointers:
        if len(joinids) == 0:
            return self._reader.read(joinids, space)
        with self._lock:
            slot = self._free.pop() if self._free else None
        if slot is None:
            return self._reader.read(joinids, space)
        self._runs[slot, 0], self._runs[slot, 1] = int(joinids[0]), int(joinids[-1])
        try:
            return self._reader.read(joinids, space)
        finally:
            self._runs[slot] = -1
            with self._lock:
                self._free.append(slot)

    def close(self) -> None:
        self._reader.close()
