"""Shared memory between a loader and its worker processes, and the transfer of a dataset to them.

A worker receives a pickle through a pipe that holds 64 KiB. With a longer pickle the parent would wait for a child that
may have died before it read. Therefore a dataset is written to an anonymous file, from which all workers map its
arrays, and only the handle of the file goes through the pipe. The system frees the file when the last process that
holds it ends, even if it is killed.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import pickle
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import reduction
from pathlib import Path
from types import FunctionType
from typing import IO, Any

import cloudpickle
import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from cellfeed.errors import PlanError, StateError
from cellfeed.loader.epochs import RankEpoch
from cellfeed.loader.worker_monitor import WorkerMonitor
from cellfeed.select.encoders import Encoder

CAPACITY = 1 << 18
"""Bytes of shared memory for the state with which workers begin an epoch."""

ALIGNMENT = 64
"""Bytes: each array in the file of a dataset begins at a multiple of it, as arrays of NumPy do."""

ADVICE = "use num_workers=0, which reads in threads and is faster"


class WorkerGroup:
    """Worker processes that a loader starts together, and the memory that they share with it.

    Parameters
    ----------
    num_workers
        Number of worker processes.

    Attributes
    ----------
    monitor
        What each worker is reading.
    processes
        The processes; empty in the workers themselves.
    """

    def __init__(self, num_workers: int) -> None:
        self.monitor = WorkerMonitor(num_workers)
        self.processes: Sequence[Any] = ()
        shared = torch.zeros(CAPACITY, dtype=torch.uint8, device="cpu")
        self._epoch = shared.share_memory_()  # type: ignore[no-untyped-call]

    def assign(self, rank_epoch: RankEpoch) -> None:
        """Choose the epoch that the workers begin next."""
        packed = json.dumps(rank_epoch.pack()).encode()
        if len(packed) > CAPACITY:
            raise StateError(
                f"the state has {len(rank_epoch.segments)} restores in one epoch on "
                f"{rank_epoch.world_layout.world_size} ranks, too many for worker processes; use num_workers=0 until "
                f"the epoch ends"
            )
        self._epoch.numpy()[:] = np.frombuffer(packed.ljust(CAPACITY), np.uint8)

    @property
    def assigned(self) -> tuple[int, RankEpoch]:
        """Number of this worker, and the epoch that it begins."""
        info: Any = get_worker_info()
        return info.id, RankEpoch.unpack(json.loads(self._epoch.numpy().tobytes()))

    def end(self) -> None:
        """Kill the workers, including stopped ones and those that have not begun to iterate."""
        self.monitor.kill()
        for process in self.processes:
            with contextlib.suppress(Exception):  # the process has ended
                process.kill()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "processes": ()}


class Sendable:
    """A dataset that is pickled as the handle of a file within :func:`sending`, and as a full copy elsewhere."""

    _workers: WorkerGroup | None = None
    """The workers to which this process belongs, if a loader of cellfeed started it."""

    _device: torch.device | None = None
    """The device on which a loader of this process has minibatches made."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        sent = getattr(_sending, "sent", None)
        if sent is None or sent.dataset is not self:
            return super().__reduce_ex__(protocol)
        return _receive, (reduction.DupFd(sent.file.fileno()), sent.n_parts, sent.workers)

    def __getitem__(self, index: Any) -> Any:
        raise PlanError(
            f"dataset[{index!r}]: minibatches have no index, so torch.utils.data.Subset and "
            f"torch.utils.data.random_split cannot divide this dataset. Use dataset.random_split(weights), or select "
            f"cells with obs_query="
        )


_sending = threading.local()


@dataclass(frozen=True, eq=False)
class _Sent:
    dataset: Any
    file: IO[bytes]
    n_parts: int
    workers: WorkerGroup


@contextlib.contextmanager
def sending(dataset: Any, workers: WorkerGroup) -> Iterator[None]:
    """Send a dataset to the worker processes that are started in the body of this context."""
    with _anonymous_file() as file:
        _sending.sent = _Sent(dataset, file, _write(dataset, file), workers)
        try:
            yield
        finally:
            del _sending.sent


def _anonymous_file() -> IO[bytes]:
    """Make a file without a name: in memory, but not in /dev/shm, which is small in containers."""
    with contextlib.suppress(AttributeError, OSError):  # some systems have no memfd
        return open(os.memfd_create("cellfeed"), "w+b")  # noqa: PTH123 - it has no path
    return tempfile.TemporaryFile()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles for worker processes.

    Functions and classes that workers cannot import, such as those of a notebook, are pickled by value; encoders are
    left out, as workers read codes.
    """

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Encoder):
            return type(None), ()
        is_global = isinstance(value, (type, FunctionType)) and "<" not in value.__qualname__  # <lambda>, <locals>
        if is_global and value.__module__ == "__main__" and _can_import_main():
            return NotImplemented  # by name, with the globals that it has in the worker
        return super().reducer_override(value)


def _pickled(value: Any, keep_apart: Callable[[pickle.PickleBuffer], None] | None = None) -> memoryview:
    """Pickle a value; arrays are kept apart if a function that takes them is given."""
    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=keep_apart).dump(value)
    return file.getbuffer()


class Initializer:
    """The ``worker_init_fn`` of a loader: PyTorch itself pickles functions by name only."""

    def __init__(self, function: Callable[[int], None]) -> None:
        self.function = function

    def __call__(self, worker: int) -> None:
        """Call the function in a worker."""
        self.function(worker)

    def __repr__(self) -> str:
        return repr(self.function)

    def __reduce__(self) -> Any:
        return pickle.loads, (bytes(_pickled(self.function)),)


def _write(dataset: Any, file: IO[bytes]) -> int:
    """Write the arrays of a dataset, its pickle, and the bounds of these parts; return the number of parts."""
    arrays: list[pickle.PickleBuffer] = []
    pickled = _pickled(dataset, arrays.append)
    bounds = []
    for part in (*(array.raw() for array in arrays), pickled):
        start = file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
        bounds.append((start, start + file.write(part)))  # (n_parts, 2): bytes of the file
    file.write(np.array(bounds, np.int64).tobytes())
    file.flush()
    return len(bounds)


def _receive(handle: Any, n_parts: int, workers: WorkerGroup) -> Any:
    """Make the dataset in a worker process. An error is raised in ``__iter__``, from where PyTorch forwards it."""
    try:
        with open(handle.detach(), "rb") as file:  # noqa: PTH123 - it has no path
            # Arrays are writable, as usual; copy-on-write keeps changes in this process.
            memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        bounds = np.frombuffer(memory[-16 * n_parts :], np.int64).reshape(n_parts, 2).tolist()
        *arrays, pickled = (memory[start:stop] for start, stop in bounds)
        dataset = pickle.loads(pickled, buffers=arrays)
    except Exception as cause:
        return _NotReceived(f"a worker process cannot make the dataset ({cause!r})")
    dataset._workers = workers
    return dataset


class _NotReceived(IterableDataset[Any]):
    def __init__(self, why: str) -> None:
        self._why = why

    def __iter__(self) -> Iterator[Any]:
        raise PlanError(f"{self._why}; {ADVICE}")


def check_sendable(arguments: Mapping[str, Any], num_workers: int) -> None:
    """Check that arguments, by their names, can be sent to spawned worker processes.

    Raises
    ------
    PlanError
        If an argument cannot be pickled, or the main program is not a file that workers could import.
    """
    main = sys.modules["__main__"]
    program = getattr(main, "__file__", None)
    if program is not None and getattr(main, "__spec__", None) is None and not Path(program).is_file():
        raise PlanError(
            f"num_workers={num_workers}: worker processes import the main program, and {program!r} is not a file; "
            f"write the program to a file, or use num_workers=0, which is faster"
        )
    for name, value in arguments.items():
        try:
            _pickled(value, lambda array: None)
        except Exception as cause:  # pickling may raise any error
            raise PlanError(
                f"num_workers={num_workers}: {name}={value!r} cannot be sent to workers ({cause}); {ADVICE}"
            ) from cause


def _can_import_main() -> bool:
    """Whether :mod:`multiprocessing` makes a spawned process import the main program."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return not spec.name.endswith("__main__")
    return getattr(main, "__file__", None) is not None
