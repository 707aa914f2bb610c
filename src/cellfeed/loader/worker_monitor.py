"""Supervision of worker processes: a record of what each one is reading, and a watchdog for one that hangs."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data._utils import signal_handling

from cellfeed._joinids import IntArray
from cellfeed.errors import CellfeedError
from cellfeed.rows.row_allocator import Reader, RowAllocator, RowPointers

MAX_READS = 64
"""Concurrent reads per worker that are recorded; any others are not."""

TIMEOUT_S = 600.0
"""Seconds without a minibatch after which workers count as hung, unless ``timeout=`` sets another limit."""

NOT_BEGUN = (
    ". No worker had begun; their own messages on stderr say why. A script must start workers inside "
    '`if __name__ == "__main__":`, as each worker imports the script. num_workers=0 starts none, and is faster'
)


class WorkerMonitor:
    """Shared memory in which workers record their process id and the soma_joinids that they are reading.

    Parameters
    ----------
    num_workers
        Number of worker processes.
    """

    def __init__(self, num_workers: int) -> None:
        pids = torch.zeros(num_workers, dtype=torch.int64, device="cpu")  # 0: the worker has not begun to iterate
        reads = torch.full((num_workers, MAX_READS, 2), -1, dtype=torch.int64, device="cpu")  # first and last joinid
        self._pids = pids.share_memory_()  # type: ignore[no-untyped-call]
        self._reads = reads.share_memory_()  # type: ignore[no-untyped-call]

    def watched(self, reader: Reader, worker: int) -> Reader:
        """Return a reader that records the reads of a worker."""
        self._pids[worker] = os.getpid()
        self._reads[worker] = -1
        return _WatchedReader(reader, self._reads[worker])

    def forget(self) -> None:
        """Delete the records of an earlier epoch."""
        self._pids.zero_()
        self._reads.fill_(-1)

    @property
    def advice(self) -> str:
        """What to do about lost workers, for an error message; empty if one had begun to iterate."""
        return "" if self._pids.any() else NOT_BEGUN

    def describe(self) -> str:
        """Describe what each worker is reading, for an error message."""
        lines = []
        for worker, pid in enumerate(self._pids.tolist()):
            reads = [f"{first} to {last}" for first, last in sorted(self._reads[worker].tolist()) if first >= 0]
            activity = f"was reading soma_joinid {', '.join(reads)}" if reads else "was not reading"
            lines.append(f"worker {worker} (process {pid}) {activity}" if pid else f"worker {worker} had not begun")
        return "; ".join(lines)

    def kill(self) -> None:
        """Kill the workers that have begun to iterate, including stopped ones."""
        for pid in self._pids.tolist():
            if pid and pid != os.getpid():
                with contextlib.suppress(OSError):  # the process has ended
                    os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))


def leave_signals(minibatches: Any) -> None:
    """Take the workers of an iterator of PyTorch out of PyTorch's handler of SIGCHLD.

    The handler raises an error in whatever the main thread runs when a worker dies, e.g. in a step of training or
    while an earlier error is handled. Without it PyTorch finds a dead worker where it waits for minibatches, in 5 s.
    """
    signal_handling._remove_worker_pids(id(minibatches))  # type: ignore[attr-defined]
    minibatches._worker_pids_set = False


class Watchdog:
    """A thread that calls a function once if a guarded body takes too long.

    Parameters
    ----------
    timeout_s
        Limit in seconds; 0 or less sets no limit.
    on_timeout
        Function to call in the thread.

    Attributes
    ----------
    timed_out
        Whether ``on_timeout`` was called.

    Examples
    --------
    >>> with Watchdog(600.0, lambda: print("hangs")) as watchdog:
    ...     with watchdog.guard():
    ...         minibatch = "received in time"
    >>> watchdog.timed_out
    False
    """

    def __init__(self, timeout_s: float, on_timeout: Callable[[], None]) -> None:
        self._timeout_s = timeout_s
        self._on_timeout = on_timeout
        self._deadline = math.inf
        self._done = threading.Event()
        self.timed_out = False

    def __enter__(self) -> Watchdog:
        """Start the thread, which ends with the body."""
        try:
            if self._timeout_s > 0:
                threading.Thread(target=self._run, name="cellfeed-watchdog", daemon=True).start()
        except BaseException:  # such as an interrupt while the thread starts
            self._done.set()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Limit the time of the body."""
        self._deadline = time.monotonic() + self._timeout_s
        try:
            yield
        finally:
            self._deadline = math.inf

    def _run(self) -> None:
        while not self._done.wait(min(1.0, self._timeout_s / 4)):
            if time.monotonic() > self._deadline:
                self.timed_out = True
                self._on_timeout()
                return


def is_lost_worker(error: Exception) -> bool:
    """Whether PyTorch reports a lost worker or a tensor that it could not receive, not an error of a worker itself."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader") and not isinstance(error, CellfeedError)
    return isinstance(error, (OSError, EOFError)) and not str(error).startswith("Caught ")


class _WatchedReader:
    def __init__(self, reader: Reader, reads: torch.Tensor) -> None:
        self._reader = reader
        self._reads = reads  # (MAX_READS, 2)
        self._free = list(range(len(reads)))
        self._lock = threading.Lock()

    def read(self, joinids: IntArray, space: RowAllocator) -> RowPointers:
        with self._lock:
            slot = self._free.pop() if self._free and len(joinids) else None
        if slot is None:
            return self._reader.read(joinids, space)
        self._reads[slot, 0], self._reads[slot, 1] = int(joinids[0]), int(joinids[-1])
        try:
            return self._reader.read(joinids, space)
        finally:
            self._reads[slot] = -1
            with self._lock:
                self._free.append(slot)

    def close(self) -> None:
        self._reader.close()
