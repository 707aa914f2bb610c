"""Counters of cells, bytes, seconds and retries that a dataset updates while it is iterated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TypeVar

from cellfeed._checks import format_bytes
from cellfeed._tabular import Tabular

T = TypeVar("T")


@dataclass(frozen=True)
class Stats(Tabular):
    """Counters of all iterators of a dataset in this process since its construction; printed as a table.

    Attributes
    ----------
    n_obs, n_minibatches
        Cells and minibatches that the training loop has received.
    n_obs_from_copy
        Those of the cells that were read in the local copy.
    nnz
        Values of X that were read.
    bytes_read
        Bytes of packed tiles if files are read directly; otherwise bytes of the coordinates and values that TileDB
        returned.
    read_s, build_s, assemble_s
        Seconds of all threads for reading files (or in TileDB, which also decodes), for decoding and building rows,
        and for making tensors. Threads overlap, so the sum may exceed the elapsed time.
    consumer_wait_s
        Seconds that the training loop waited for minibatches, including the first one.
    first_wait_s
        The part of ``consumer_wait_s`` before the first minibatch of each epoch.
    producer_wait_s
        Seconds that finished minibatches waited for the training loop.
    elapsed_s
        Seconds from the first to the last ``next`` of each epoch.
    n_retries, retry_wait_s
        Failed requests to an object store that were repeated, and seconds between failure and repetition.
    peak_pool_bytes
        Most bytes of decoded rows in memory.
    effective_batch_sizes
        Per column of labels of obs: the size of the simple random sample whose label proportions have the same
        variance as those of the full minibatches received; see :class:`cellfeed.Plan`.

    Examples
    --------
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), batch_size=64, seed=0)
    >>> n_minibatches = sum(1 for minibatch in dataset)
    >>> dataset.stats().n_obs, dataset.stats().n_minibatches
    (700, 11)
    """

    n_obs: int = 0
    n_minibatches: int = 0
    n_obs_from_copy: int = 0
    nnz: int = 0
    bytes_read: int = 0
    read_s: float = 0.0
    build_s: float = 0.0
    assemble_s: float = 0.0
    consumer_wait_s: float = 0.0
    first_wait_s: float = 0.0
    producer_wait_s: float = 0.0
    elapsed_s: float = 0.0
    n_retries: int = 0
    retry_wait_s: float = 0.0
    peak_pool_bytes: int = 0
    effective_batch_sizes: Mapping[str, float] = field(default_factory=dict)

    @property
    def waiting_fraction(self) -> float:
        """Fraction of the time after the first minibatch in which the training loop waited for data."""
        running = self.elapsed_s - self.first_wait_s
        return (self.consumer_wait_s - self.first_wait_s) / running if running > 0 else 0.0

    def _table(self) -> dict[str, str]:
        rate = self.n_obs / self.elapsed_s if self.elapsed_s else 0.0
        later_wait_s = self.consumer_wait_s - self.first_wait_s
        shown = {
            "received": f"{self.n_obs:,} cells in {self.n_minibatches:,} minibatches, {rate:,.0f} cells/s",
            "read": f"{self.nnz:,} values of X, {format_bytes(self.bytes_read)}",
            "thread seconds": f"{self.read_s:.2f} reading, {self.build_s:.2f} making rows, "
            f"{self.assemble_s:.2f} making tensors",
            "training loop waited": f"{self.first_wait_s:.2f} s for the first minibatches of epochs, "
            f"then {later_wait_s:.2f} s ({self.waiting_fraction:.1%} of its time)",
            "loader waited": f"{self.producer_wait_s:.2f} s for the training loop",
            "peak memory": f"{format_bytes(self.peak_pool_bytes)} of decoded cells",
        }
        if self.n_obs_from_copy:
            shown["from the local copy"] = f"{self.n_obs_from_copy:,} cells"
        if self.n_retries:
            shown["retries"] = f"{self.n_retries:,}, after {self.retry_wait_s:.2f} s of waiting in all threads"
        if self.effective_batch_sizes:
            sizes = (f"{size:,.4g} cells for {name}" for name, size in self.effective_batch_sizes.items())
            shown["effective batch size"] = ", ".join(sizes)
        return shown


class Meter:
    """The counters of :class:`Stats`; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a finalizer of memory may run, and count, inside add()
        self._sums: dict[str, float] = {
            counter.name: 0 for counter in fields(Stats) if counter.type in ("int", "float")
        }
        self._pool = 0

    def add(self, **amounts: float) -> None:
        """Add to counters by name."""
        with self._lock:
            for name, amount in amounts.items():
                self._sums[name] += amount

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the duration of the ``with`` block to a counter of seconds."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(**{name: time.perf_counter() - started})

    def counted(
        self, minibatches: Iterator[T], figures: Callable[[T], Mapping[str, int]], *, since: float | None = None
    ) -> Iterator[T]:
        """Yield minibatches, and count them, and the seconds for which the training loop waited and ran.

        Parameters
        ----------
        minibatches
            What is waited for.
        figures
            Returns what a minibatch adds to counters, by their names.
        since
            When the first wait began, by ``time.perf_counter``; by default when iteration begins.
        """
        asked = counted = time.perf_counter() if since is None else since  # elapsed_s has the time until ``counted``
        is_first = True
        while True:
            minibatch = next(minibatches, None)
            now = time.perf_counter()
            more = {} if minibatch is None else {"n_minibatches": 1, **figures(minibatch)}
            # One call per minibatch: the training loop waits for it.
            self.add(
                consumer_wait_s=now - asked,
                elapsed_s=now - counted,
                first_wait_s=now - asked if is_first else 0.0,
                **more,
            )
            if minibatch is None:
                return
            is_first, counted = False, now
            yield minibatch
            del minibatch  # a reference here would prevent the reuse of its memory
            asked = time.perf_counter()

    def hold(self, n_bytes: int) -> None:
        """Add ``n_bytes``, which may be negative, to the size of the pool."""
        with self._lock:
            self._pool += n_bytes
            self._sums["peak_pool_bytes"] = max(self._sums["peak_pool_bytes"], self._pool)

    def snapshot(self) -> Stats:
        """Return the current values of the counters."""
        with self._lock:
            return Stats(**self._sums)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, object]:
        return {}  # a copy in another process starts from zero

    def __setstate__(self, state: dict[str, object]) -> None:
        Meter.__init__(self)
