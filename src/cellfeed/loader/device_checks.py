"""What a device has: whether PyTorch finds it, what it can hold, and its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from cellfeed._checks import format_bytes
from cellfeed.errors import PlanError
from cellfeed.plan.budget import MINIBATCHES_HELD
from cellfeed.plan.planner import Planner

SCRATCH_FACTOR = 8
"""Bytes to expand the rows of one minibatch, over those of its compact rows: place, row and float64 of each value."""


class DeviceMemory(NamedTuple):
    """Most bytes for the minibatches of a loader with ``device=`` (an estimate from metadata).

    Attributes
    ----------
    pinned_bytes
        Page-locked memory of the machine for compact rows that are copied to a CUDA device; 0 for other devices.
    device_bytes
        Memory of the device: one minibatch in use, two ahead, and what it takes to make them; 0 without a device.
    """

    pinned_bytes: int
    device_bytes: int

    @classmethod
    def of(cls, planner: Planner, device: torch.device | None) -> DeviceMemory:
        """Return the memory for the epochs of a plan."""
        if device is None:
            return cls(0, 0)
        process, order = planner.budget(), planner.epoch_order(0)
        n_cells = min(order.batch_size, order.n_cells)
        compact = process.chunk_bytes.sum() / max(order.n_cells, 1) * n_cells
        pinned = int(MINIBATCHES_HELD * compact) if device.type == "cuda" else 0
        return cls(pinned, process.minibatch_bytes + int(SCRATCH_FACTOR * compact))


def makes_minibatches(device: torch.device) -> bool:
    """Whether threads make minibatches on a device; for other devices, the training loop moves those of the CPU.

    Two threads that use "mps" at the same time crash the process (github.com/pytorch/pytorch/issues/197805). Further
    kinds of devices have streams of their own, for which there is no code here.
    """
    return device.type in ("cuda", "cpu", "meta")


def parse_device(device: Any) -> torch.device:
    """Return a device, which need not be there."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as cause:
        raise PlanError(
            f"device={device!r} is not a device of PyTorch; give a torch.device, or text such as 'cuda', 'cuda:1' or "
            f"'cpu'"
        ) from cause


def check_device(device: Any, dtype: str, *, sparse: bool) -> torch.device:
    """Return a device; raise a PlanError if it is not there, or cannot hold X of a type, as CSR if ``sparse``."""
    found = parse_device(device)
    if found.type == "cuda":  # no context is made on the device: ranks choose theirs later
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= n_devices:
            instead = f"give device='cuda:0' to 'cuda:{n_devices - 1}'" if n_devices else "leave device= out"
            raise PlanError(
                f"device={str(found)!r}: PyTorch {torch.__version__} finds {n_devices} CUDA devices here; {instead}"
            )
        return found

    def require(make: Callable[[], Any], lack: str, instead: str) -> None:
        try:
            make()
        except Exception as cause:  # devices raise various errors, some of them a hundred lines long
            why = str(cause).split(". ")[0]
            raise PlanError(
                f"device={str(found)!r} {lack} in PyTorch {torch.__version__} ({why}); {instead}"
            ) from cause

    require(lambda: torch.empty(0, device=found), "cannot be used", "leave device= out")
    require(
        lambda: torch.zeros(1, dtype=getattr(torch, dtype), device=found),
        f"lacks the type {dtype} of X", "make the dataset with X_dtype='float32'",
    )  # fmt: skip
    if sparse:
        require(lambda: _empty_csr(found).values(), "lacks CSR", "make the dataset with return_sparse_X=False")
    return found


def _empty_csr(device: torch.device) -> torch.Tensor:
    offsets = torch.zeros(2, dtype=torch.int32, device=device)
    return torch.sparse_csr_tensor(
        offsets, offsets[:0], offsets[:0].float(), size=(1, 1), device=device, check_invariants=False
    )


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that PyTorch can allocate on a device; ``None`` if it does not know them."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + cached


def check_memory(device: torch.device, planner: Planner) -> None:
    """Raise a PlanError if a device has too little free memory for the epochs of a plan."""
    free, n_bytes = free_bytes(device), DeviceMemory.of(planner, device).device_bytes
    if free is None or n_bytes <= free:
        return
    batch_size = planner.epoch_order(0).batch_size
    raise PlanError(
        f"device={str(device)!r} has {format_bytes(free)} of free memory, and minibatches of batch_size={batch_size} "
        f"take {format_bytes(n_bytes)} there, one in use and two ahead; make the dataset with a batch_size of at most "
        f"{max(1, int(batch_size * free / n_bytes))}, X_dtype='bfloat16', fewer genes, or return_sparse_X=True; or "
        f"give device=None, and move each minibatch in the training loop"
    )
