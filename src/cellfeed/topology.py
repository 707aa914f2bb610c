"""Where this process stands among ranks and workers: the one place that looks."""

from __future__ import annotations

import os
import sys

import torch.distributed
import torch.utils.data

from cellfeed.errors import PlanError, is_whole
from cellfeed.plan import World


def find_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return (rank, world_size): as given, else of ``torch.distributed``, else of the environment.

    The environment is what ``torchrun`` sets: ``RANK`` and ``WORLD_SIZE``. A lone ``LOCAL_RANK`` is not
    used: on several nodes it is the same number many times.
    """
    if rank is not None and world_size is not None:
        return rank, world_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        try:
            return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        except ValueError:
            raise PlanError(
                f"RANK={os.environ['RANK']!r} and WORLD_SIZE={os.environ['WORLD_SIZE']!r} in the environment must "
                f"be integers; or give rank= and world_size="
            ) from None
    return 0, 1


def find_world(rank: int | None, world_size: int | None) -> World:
    """Return the ranks of :func:`find_ranks` and this process's place among the loader's workers."""
    info = torch.utils.data.get_worker_info()
    worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
    return World(*find_ranks(rank, world_size), worker, num_workers)


def check_ranks(rank: object, world_size: object) -> tuple[int, int] | tuple[None, None]:
    """Return explicit ranks as they are, or refuse those that cannot be."""
    if (rank is None) != (world_size is None):
        raise PlanError(f"rank={rank!r} and world_size={world_size!r} go together: give both or neither")
    if rank is None:
        return None, None
    for name, value in (("rank", rank), ("world_size", world_size)):
        if not is_whole(value):
            raise PlanError(f"{name}={value!r} must be an integer")
    world = World(int(rank), int(world_size))  # type: ignore[call-overload]
    return world.rank, world.world_size


def refuse_second_sharding(rank: int | None, world_size: int | None) -> None:
    """Refuse to be iterated by a loader that Accelerate has prepared: it would give each rank a part of its part."""
    if find_ranks(rank, world_size)[1] == 1:
        return
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == "accelerate.data_loader":
            raise PlanError(
                "Accelerate prepared a loader over this dataset, and would give each rank a part of what its rank is "
                "to receive: cells would be lost. Prepare what cellfeed.experiment_dataloader returns, which it leaves "
                "as it is, or prepare no loader"
            )
