"""Minibatches made on a device: compact rows cross to it on a stream of their own, ahead of the training loop."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from cellfeed._checks import format_bytes
from cellfeed.errors import PlanError
from cellfeed.plan.budget import MINIBATCHES_HELD
from cellfeed.plan.planner import Planner
from cellfeed.rows.assemble import Assembler, CsrArrays, DenseBuffers, Scaling
from cellfeed.rows.cell_rows import CellRows
from cellfeed.rows.compact import CompactLayout, CompactRows
from cellfeed.rows.minibatch import AnyMinibatch, OrderedMinibatch, mapped

M = TypeVar("M", bound=AnyMinibatch | OrderedMinibatch)

SCRATCH_FACTOR = 8
"""Bytes to expand the rows of one minibatch, over those of its compact rows: place, row and float64 of each value."""


class DeviceMemory(NamedTuple):
    """Most bytes for the minibatches of a loader with ``device=`` (an estimate from metadata).

    Attributes
    ----------
    pinned_bytes
        Page-locked memory of the machine, if the device is a CUDA device: compact rows that are copied to it.
    device_bytes
        Memory of the device: one minibatch in use, two ahead, and what it takes to make them.
    """

    pinned_bytes: int
    device_bytes: int

    @classmethod
    def of(cls, planner: Planner) -> DeviceMemory:
        """Return the memory for the epochs of a plan."""
        process, order = planner.budget(), planner.epoch_order(0)
        n_cells = min(order.batch_size, order.n_cells)
        compact = process.chunk_bytes.sum() / max(order.n_cells, 1) * n_cells
        pinned = int(MINIBATCHES_HELD * compact)
        return cls(pinned, process.minibatch_bytes + int(SCRATCH_FACTOR * compact))


class Sent(NamedTuple):
    """A minibatch on its way to a device.

    Attributes
    ----------
    minibatch
        Its tensors are on the device, and complete after the event.
    obs
        The codes in the memory of the CPU, where labels are counted.
    arrived
        The event on the stream of the transfers; ``None`` on a device without streams.
    """

    minibatch: Any
    obs: torch.Tensor
    arrived: torch.cuda.Event | None


class DeviceFeed:
    """Makes the minibatches of one epoch on a device.

    Threads that make minibatches call :meth:`send`; the training loop iterates over :meth:`received`. Work of the
    device that the loop has begun is not waited for, except that of the minibatch three before the next: a loop that
    runs ahead of its device would otherwise fill the memory of the device with minibatches.

    Parameters
    ----------
    device
        A device without an index is the current one of its type.
    planner
        Plans the epoch.

    Raises
    ------
    PlanError
        If the device has too little free memory.
    """

    def __init__(self, device: torch.device, planner: Planner) -> None:
        self.device = torch.empty(0, device=device).device
        _check_memory(self.device, DeviceMemory.of(planner).device_bytes, planner)
        self._stream: torch.cuda.Stream | None = None
        if _has_streams(self.device):
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._used: deque[torch.cuda.Event] = deque()  # after the work with each minibatch that the loop has left
        self._n_sent = 0

    def assembler(self, n_vars: int, dtype: str, *, n_threads: int, scaling: Scaling | None) -> DeviceAssembler:
        """Return what makes tensors of rows; the caller closes it."""
        return DeviceAssembler(n_vars, dtype, n_threads=n_threads, scaling=scaling, device=self.device)

    def send(self, assemble: Callable[[], Any]) -> Sent:
        """Call a function that makes a minibatch, and move to the device what is not there."""
        if self._stream is None:
            minibatch = assemble()
            return Sent(self._moved(minibatch), minibatch.obs, None)
        self._n_sent += 1
        if self._n_sent > MINIBATCHES_HELD:
            self._used.popleft().synchronize()
        with torch.cuda.stream(self._stream):
            minibatch = assemble()
            return Sent(self._moved(minibatch), minibatch.obs, self._stream.record_event())

    def _moved(self, minibatch: M) -> M:
        X = minibatch.X
        if not isinstance(X, torch.Tensor) or X.device != self.device:
            found = f"X on {str(X.device)!r}" if isinstance(X, torch.Tensor) else f"a {type(X).__name__}"
            raise PlanError(
                f"transform returned {found}, but device={str(self.device)!r}: it must return a tensor on the device "
                f"of its argument; give device=X.device to the tensors that it makes"
            )
        return type(minibatch)(*(mapped(part, self._move) for part in minibatch))

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._stream is None or tensor.device == self.device:
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)  # PyTorch keeps pinned memory until it is copied

    def received(self, sent: Iterator[Sent]) -> Iterator[Any]:
        """Yield minibatches whose tensors the current stream may use."""
        for minibatch, _, arrived in sent:
            if arrived is not None:
                _hand_over(minibatch, arrived, torch.cuda.current_stream(self.device))
            yield minibatch
            del minibatch  # a reference here would prevent the reuse of its memory
            if self._stream is not None:
                self._used.append(torch.cuda.current_stream(self.device).record_event())


class DeviceAssembler(Assembler):
    """Makes tensors of rows on a device.

    Parameters
    ----------
    n_vars, dtype, n_threads, scaling
        As for :class:`~cellfeed.rows.assemble.Assembler`.
    device
        The device.
    """

    def __init__(
        self, n_vars: int, dtype: str, *, n_threads: int, scaling: Scaling | None, device: torch.device
    ) -> None:
        super().__init__(n_vars, dtype, n_threads=n_threads, buffers=DenseBuffers(keep=0), scaling=scaling)
        self._device = device
        self._ring = Ring(device)

    def dense_X(self, rows: CellRows) -> torch.Tensor:
        """Return X as a dense tensor, shape (B, n_vars)."""
        return self._send(rows).dense(self._n_vars, self._tensor_dtype)

    def sparse_X(self, rows: CellRows) -> torch.Tensor:
        """Return X as a CSR tensor, shape (B, n_vars), with int32 indices."""
        return self._send(rows).csr(self._n_vars, self._tensor_dtype)

    def _send(self, rows: CellRows) -> CompactRows:
        """Gather rows in the ring, and copy them to the device."""
        from cellfeed.rows import kernels

        layout = CompactLayout.of(rows, np.dtype(self._array_dtype), self._tensor_dtype)
        indptr = np.append(0, np.cumsum(rows.sizes))
        with self._ring.slot(layout.n_bytes) as block:
            offsets, columns, values = layout.arrays(block)
            offsets[:] = indptr

            def gather(part: CellRows, low: int, high: int) -> None:
                kernels.gather_csr(part.arrays, part.widths, CsrArrays(indptr[low:high], columns, values))

            self._run(rows, gather)
            there = torch.empty(layout.n_bytes, dtype=torch.uint8, device=self._device)
            there.copy_(block, non_blocking=_has_streams(self._device))
        sent = layout.rows(there)
        return sent if self._scaling is None else sent.scaled(self._scaling)


class Ring:
    """Blocks of memory from which a device copies. A block is written again after its copy is complete.

    Parameters
    ----------
    device
        For a CUDA device the memory is pinned: the device reads it while the CPU does other work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_pinned = _has_streams(device)
        empty = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._slots: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque([(empty, None)] * MINIBATCHES_HELD)

    @contextlib.contextmanager
    def slot(self, n_bytes: int) -> Iterator[torch.Tensor]:
        """Yield a block of ``n_bytes``, uint8; the body begins its copy on the current stream."""
        memory, copied = self._slots.popleft()
        if copied is not None:
            copied.synchronize()
        if memory.nbytes < n_bytes:  # a quarter more: minibatches differ in nnz
            memory = torch.empty(n_bytes * 5 // 4, dtype=torch.uint8, device="cpu", pin_memory=self._is_pinned)
        yield memory[:n_bytes]
        event = torch.cuda.current_stream(self._device).record_event() if self._is_pinned else None
        self._slots.append((memory, event))


def _has_streams(device: torch.device) -> bool:
    """Whether copies to the device are asynchronous, on a stream of their own."""
    return device.type == "cuda"


def _hand_over(minibatch: Any, arrived: torch.cuda.Event, stream: torch.cuda.Stream) -> None:
    """Make a stream wait for the tensors of a minibatch, and their memory wait for the stream when it is freed."""
    stream.wait_event(arrived)

    def record(tensor: torch.Tensor) -> torch.Tensor:
        is_csr = tensor.layout == torch.sparse_csr
        for part in (tensor.crow_indices(), tensor.col_indices(), tensor.values()) if is_csr else (tensor,):
            part.record_stream(stream)
        return tensor

    for part in minibatch:
        mapped(part, record)


def check_device(device: Any, dtype: str) -> torch.device:
    """Return a device; raise a PlanError if it is not there, or lacks the type of X."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as cause:
        raise PlanError(
            f"device={device!r} is not a device of PyTorch; give a torch.device, or text such as 'cuda', 'cuda:1' or "
            f"'cpu'"
        ) from cause
    if found.type == "cuda":  # no context is made on the device: ranks choose theirs later
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= n_devices:
            instead = f"give device='cuda:0' to 'cuda:{n_devices - 1}'" if n_devices else "leave device= out"
            raise PlanError(
                f"device={str(found)!r}: PyTorch {torch.__version__} finds {n_devices} CUDA devices here; {instead}"
            )
        return found
    try:
        torch.empty(0, device=found)
    except Exception as cause:  # devices raise various errors
        raise PlanError(
            f"device={str(found)!r}: PyTorch {torch.__version__} cannot use it ({cause}); leave device= out"
        ) from cause
    try:
        torch.zeros(1, dtype=getattr(torch, dtype), device=found)
    except Exception as cause:
        raise PlanError(
            f"device={str(found)!r} lacks the type {dtype} of X ({cause}); make the dataset with X_dtype='float32'"
        ) from cause
    return found


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that PyTorch can allocate on a device; ``None`` if it does not know them."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + cached


def _check_memory(device: torch.device, n_bytes: int, planner: Planner) -> None:
    free = free_bytes(device)
    if free is None or n_bytes <= free:
        return
    batch_size = planner.epoch_order(0).batch_size
    raise PlanError(
        f"device={str(device)!r} has {format_bytes(free)} of free memory, and minibatches of batch_size={batch_size} "
        f"take {format_bytes(n_bytes)} there, one in use and two ahead; make the dataset with a batch_size of at most "
        f"{max(1, int(batch_size * free / n_bytes))}, X_dtype='bfloat16', fewer genes, or return_sparse_X=True"
    )
