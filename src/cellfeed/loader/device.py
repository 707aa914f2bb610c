"""Minibatches made on a device: compact rows cross to it on a stream of their own, ahead of the training loop."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from cellfeed.errors import PlanError
from cellfeed.loader.device_checks import check_memory
from cellfeed.plan.budget import MINIBATCHES_HELD
from cellfeed.plan.planner import Planner
from cellfeed.rows.assemble import Assembler, CsrArrays, DenseBuffers, Scaling
from cellfeed.rows.cell_rows import CellRows
from cellfeed.rows.compact import CompactLayout, CompactRows
from cellfeed.rows.minibatch import AnyMinibatch, OrderedMinibatch, mapped
from cellfeed.tokens import RaggedTokens, TokenBatch

M = TypeVar("M", bound=AnyMinibatch | OrderedMinibatch)


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
        check_memory(self.device, planner)
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
        if not isinstance(X, (TokenBatch, RaggedTokens)) and (
            not isinstance(X, torch.Tensor) or X.device != self.device
        ):
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
        for part in _dense_parts(tensor):
            part.record_stream(stream)
        return tensor

    for part in minibatch:
        mapped(part, record)


_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    **dict.fromkeys((torch.sparse_csr, torch.sparse_bsr), ("crow_indices", "col_indices", "values")),
    **dict.fromkeys((torch.sparse_csc, torch.sparse_bsc), ("ccol_indices", "row_indices", "values")),
}
"""Methods that return the dense tensors of which a sparse one consists."""


def _dense_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the dense tensors in which a tensor keeps its values; transforms of users return any layout."""
    return [getattr(tensor, method)() for method in _PARTS.get(tensor.layout, ())] or [tensor]
