"""The rank and worker of this process: the only module that determines them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType

import torch.distributed
import torch.utils.data

from cellfeed._checks import warn_user
from cellfeed.errors import CellfeedError, PlanError

LAUNCHERS = {
    "WORLD_SIZE": "RANK",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "PMI_SIZE": "PMI_RANK",
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",
    "SLURM_NTASKS": "SLURM_PROCID",
}
"""Environment variables of launchers: the number of processes, and the variable with the number of this one."""


def find_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return (rank, world_size): the arguments, or those of ``torch.distributed``, or those of the environment.

    In the environment ``torchrun`` sets ``RANK`` and ``WORLD_SIZE``. ``LOCAL_RANK`` is not used: processes on several
    nodes have the same one.
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


AGREE_S = 60
"""Seconds to wait for the other ranks of a process group to begin the same epoch."""


def all_ranks_agree(key: str, own: str, rank: int, world_size: int) -> bool | None:
    """Return whether ``own`` is the same text, and not empty, on all ranks: every rank gets the same answer.

    The ranks use the store of the process group, not a collective operation: a rank whose ``own`` is empty does not
    wait, and the answer is False if a rank does not ask within a minute.

    Parameters
    ----------
    key
        Name of the question, the same on all ranks, and not used before.

    Returns
    -------
    bool or None
        ``None`` if there is no process group, or PyTorch does not show its store.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
    except AttributeError:  # it is not part of the public interface
        return None
    keys = [f"{key}/{other}" for other in range(world_size)]
    store.set(keys[rank], own or "no")
    proposed = "no"
    if own:
        with contextlib.suppress(RuntimeError):  # the wait timed out
            store.wait(keys, timedelta(seconds=AGREE_S))
            proposed = "yes" if all(store.get(name) == own.encode() for name in keys) else "no"
    return bool(store.compare_set(f"{key}/all", "", proposed) == b"yes")


def warn_of_unknown_rank(rank: int | None) -> None:
    """Warn if a launcher started several processes and the rank of this one is not known: each gets all cells.

    The numbers of a launcher are not used as ranks, since its processes may be independent trainings.
    """
    if rank is not None or (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    name, n_processes = _processes_launched()
    if n_processes == 1 or ("RANK" in os.environ and "WORLD_SIZE" in os.environ):
        return
    warn_user(
        f"{name}={n_processes} says that {n_processes} processes were started together, but torch.distributed is not "
        f"initialised and RANK and WORLD_SIZE are not both set: each process gets all cells. If the processes train "
        f"one model, call torch.distributed.init_process_group() before iteration begins, or give the dataset "
        f"rank=int(os.environ[{LAUNCHERS[name]!r}]) and world_size={n_processes}. If each is to get all cells, give "
        f"rank=0, world_size=1"
    )


def _processes_launched() -> tuple[str, int]:
    """Return the variable with the number of processes that a launcher started together, and that number.

    ``SLURM_NTASKS`` is also set in the shell of a batch job or an allocation, where one process runs alone: without a
    step, and with process number 0.
    """
    alone = "SLURM_STEP_ID" not in os.environ and os.environ.get("SLURM_PROCID", "0") == "0"
    for name in LAUNCHERS:
        if os.environ.get(name, "").isdecimal() and not (alone and name == "SLURM_NTASKS"):
            return name, int(os.environ[name])
    return "", 1


def available_threads() -> int:
    """Return the number of cores that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def find_worker(home: int) -> tuple[int, int]:
    """Return the number of this worker of a plain PyTorch loader, and the number of its workers.

    Parameters
    ----------
    home
        Id of the process that made the dataset.

    Raises
    ------
    PlanError
        In a worker process that received the dataset from another process: the epoch and the rank are unknown there.
    """
    info = torch.utils.data.get_worker_info()
    if info is None:
        return 0, 1
    if home != os.getpid():
        raise PlanError(
            f"this dataset was sent to a worker process by a loader that is not from cellfeed. The worker does not "
            f"know the epoch and the rank, every epoch would have the same order, and a state would not count its "
            f"minibatches. Use cellfeed.experiment_dataloader(dataset, num_workers={info.num_workers}), or no workers, "
            f"which is faster"
        )
    return info.id, info.num_workers


def refuse_loader(rank: int | None, world_size: int | None, batch_size: int | None) -> None:
    """Refuse to be iterated by a loader that would make something else of the minibatches than they are.

    Accelerate would give each rank a part of its part. PyTorch's own ``batch_size`` would stack minibatches
    of ``batch_size`` cells; ``None`` permits it.
    """
    sharded = find_ranks(rank, world_size)[1] > 1
    if sharded and any(_module(frame) == "accelerate.data_loader" for frame in _callers()):
        raise PlanError(
            "Accelerate prepared a loader over this dataset, and would give each rank a part of the cells of that "
            "rank only: cells would be lost. Prepare the loader that cellfeed.experiment_dataloader returns, which "
            "Accelerate does not change, or prepare no loader"
        )
    if batch_size is not None and _is_collated():
        raise PlanError(
            f"the loader collates minibatches of this dataset, which have {batch_size} cells each, to minibatches of "
            f"minibatches. Use cellfeed.experiment_dataloader(dataset), or give torch.utils.data.DataLoader "
            f"batch_size=None; the batch_size= of the dataset sets the number of cells in a minibatch"
        )


def _is_collated() -> bool:
    """Whether a PyTorch loader with a batch size and the default ``collate_fn`` iterates the dataset."""
    for frame in _callers():
        if not _module(frame).startswith(("torch.utils.data", "cellfeed")):
            return False  # code in between may split minibatches; its variables are not inspected
        caller = frame.f_locals.get("self") if _module(frame).startswith("torch.utils.data") else None
        if getattr(caller, "auto_collation", False):  # the fetcher of a PyTorch loader
            return getattr(caller, "collate_fn", None) is torch.utils.data.default_collate
    return False


def _callers() -> Iterator[FrameType]:
    frame = sys._getframe(1).f_back
    while frame is not None:
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def refuse_fork(made_by: int) -> None:
    """Check that this process made an object, by the process id: threads of TileDB do not exist in a forked process."""
    if os.getpid() != made_by:
        raise CellfeedError(
            "this dataset was made before the process was forked, and threads of TileDB do not survive a fork: make it "
            "in the forked process (with ddp_fork of Lightning: in setup()), or start processes with "
            'multiprocessing_context="spawn", as cellfeed.experiment_dataloader does, or use num_workers=0'
        )
