"""What a loader shares with the worker processes that it starts, and how a dataset gets there.

A pickle goes to a worker through a pipe that holds 64 KiB. A longer one would make the parent wait for a child that
may have died before it read. So a dataset is written to an anonymous file, from which all workers map its arrays, and
only the file's handle goes through the pipe. The system frees the file when the last process that holds it has ended,
however that ends.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import pickle
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import reduction
from pathlib import Path
from types import FunctionType
from typing import IO, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from cellfeed.errors import PlanError, StateError
from cellfeed.loader.epochs import Pass
from cellfeed.loader.worker_monitor import WorkerMonitor
from cellfeed.select.encoders import Encoder

CAPACITY = 1 << 18
"""Bytes in which the description of a pass must find room."""

ALIGNMENT = 64
"""Bytes: each array in the file of a dataset begins at a multiple of it, as NumPy's own arrays do."""

ADVICE = "define it in a module that can be imported, or use num_workers=0, which is faster"


class WorkerGroup:
    """Shared memory of a loader and the worker processes that it starts together.

    Parameters
    ----------
    num_workers
        Worker processes that share it.

    Attributes
    ----------
    watch
        What each worker is reading.
    processes
        The workers, in the process that started them.
    """

    def __init__(self, num_workers: int) -> None:
        self.watch = WorkerMonitor(num_workers)
        self.processes: Sequence[Any] = ()
        shared = torch.zeros(CAPACITY, dtype=torch.uint8, device="cpu")
        self._pass = shared.share_memory_()  # type: ignore[no-untyped-call]

    def assign(self, this: Pass) -> None:
        """Choose the pass that the workers begin next."""
        described = pickle.dumps(this)
        if len(described) > CAPACITY:
            raise StateError(
                f"the state has {len(this.segments)} restores in one epoch on {this.world_layout.world_size} ranks, "
                f"too many for worker processes; use num_workers=0 until the epoch ends"
            )
        self._pass.numpy()[: len(described)] = np.frombuffer(described, np.uint8)

    @property
    def assigned(self) -> tuple[int, Pass]:
        """The number of this worker, and the pass that it begins."""
        info: Any = get_worker_info()
        return info.id, pickle.loads(self._pass.numpy().data)  # what follows the end of a pickle is not read

    def end(self) -> None:
        """End the workers at once, stopped ones as well, and those that have not begun."""
        self.watch.kill()
        for process in self.processes:
            with contextlib.suppress(Exception):  # it is gone already
                process.kill()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "processes": ()}


class Sendable:
    """A dataset that :func:`sending` sends to worker processes by a handle; any other pickle of it is a copy."""

    _workers: WorkerGroup | None = None
    """The workers to which this process belongs, if a loader of cellfeed started it."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        sent = getattr(_sending, "sent", None)
        if sent is None or sent.dataset is not self:
            return super().__reduce_ex__(protocol)
        return _receive, (reduction.DupFd(sent.file.fileno()), sent.n_parts, sent.workers)

    def __getitem__(self, index: Any) -> Any:
        raise PlanError(
            f"dataset[{index!r}]: minibatches are not taken by their number, so torch.utils.data.Subset and "
            f"torch.utils.data.random_split cannot divide this dataset. Use dataset.random_split(weights), or choose "
            f"cells by obs_query="
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
    """Send a dataset to the worker processes that are started in the body, as one of the workers each."""
    with _anonymous_file() as file:
        _sending.sent = _Sent(dataset, file, _write(dataset, file), workers)
        try:
            yield
        finally:
            del _sending.sent


def _anonymous_file() -> IO[bytes]:
    """Make a file without a name: in memory, but not in /dev/shm, which containers keep small."""
    with contextlib.suppress(AttributeError, OSError):  # not on each system
        return open(os.memfd_create("cellfeed"), "w+b")  # noqa: PTH123 - it has no path
    return tempfile.TemporaryFile()


class _Pickler(pickle.Pickler):
    """Leaves arrays out of a pickle, and encoders too: workers read codes. Notes what a main program defines."""

    def __init__(self, file: IO[bytes]) -> None:
        self.arrays: list[pickle.PickleBuffer] = []
        self.of_main: list[str] = []
        super().__init__(file, protocol=5, buffer_callback=self.arrays.append)

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, Encoder):
            return type(None), ()
        if isinstance(thing, (type, FunctionType)) and thing.__module__ == "__main__":
            self.of_main.append(thing.__qualname__)
        return NotImplemented


def _write(dataset: Any, file: IO[bytes]) -> int:
    """Write the arrays of a dataset, its pickle, and where each of these parts lies; return their number."""
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(dataset)
    bounds = []
    for part in (*(array.raw() for array in pickler.arrays), pickled.getbuffer()):
        start = file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
        bounds.append((start, start + file.write(part)))
    file.write(np.array(bounds, np.int64).tobytes())
    file.flush()
    return len(bounds)


def _receive(handle: Any, n_parts: int, workers: WorkerGroup) -> Any:
    """Make the dataset in a worker process. Why it cannot be made is said when it is iterated: PyTorch passes it on."""
    try:
        with open(handle.detach(), "rb") as file:  # noqa: PTH123 - it has no path
            # Arrays may be written to, as others may; what is written stays in this process.
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
        raise PlanError(f"{self._why}: if this is about a transform, {ADVICE}")


def check_sendable(parts: Mapping[str, Any], num_workers: int) -> None:
    """Refuse what cannot be sent to worker processes that are spawned.

    Parameters
    ----------
    parts
        By the name that a message gives them.
    num_workers
        For messages.

    Raises
    ------
    PlanError
        If one cannot be pickled, or the main program defines it and workers cannot import that: a notebook, a prompt.
    """
    main = sys.modules["__main__"]
    program = getattr(main, "__file__", None)
    if program is not None and getattr(main, "__spec__", None) is None and not Path(program).is_file():
        raise PlanError(
            f"num_workers={num_workers}: worker processes import the main program, and {program!r} is not a file; "
            f"write the program to a file, or use num_workers=0, which is faster"
        )
    for name, part in parts.items():
        pickler = _Pickler(io.BytesIO())
        try:
            pickler.dump(part)
        except Exception as cause:  # whatever pickling it raises
            raise PlanError(
                f"num_workers={num_workers}: {name} cannot be sent to workers ({cause}); {ADVICE}"
            ) from cause
        if pickler.of_main and not _can_import_main():
            raise PlanError(
                f"num_workers={num_workers}: {name} needs {pickler.of_main[0]!r}, which is defined in a notebook or at "
                f"a prompt, where worker processes cannot find it; {ADVICE}"
            )


def _can_import_main() -> bool:
    """Whether a spawned process imports the main program, as :mod:`multiprocessing` would have it do."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return not spec.name.endswith("__main__")
    return getattr(main, "__file__", None) is not None
