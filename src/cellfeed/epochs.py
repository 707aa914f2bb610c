"""Which epoch a pass belongs to and how far it has come, known to worker processes as far as they need it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, fields
from typing import Any, TypeVar

import torch

from cellfeed.errors import PlanError, StateError, is_whole
from cellfeed.progress import Stage, Topology
from cellfeed.schedule import Mixing

T = TypeVar("T")

CAPACITY = 1 << 14
"""Numbers in which the stages of an epoch must find room."""


MAX_EPOCH = 1 << 62


class Epochs:
    """Counts the passes of a dataset, and the minibatches that the training loop has received of the one under way.

    Sent to another process, the epoch and the stages of the pass are shared, not copied: workers that live through
    several passes follow what the main process says.
    """

    def __init__(self) -> None:
        self._shared = torch.zeros(
            3 + CAPACITY, dtype=torch.int64
        )  # next epoch, current one, stages: how many, and they
        self._resumed: tuple[int, tuple[Stage, ...]] | None = None
        self._pass: object = None
        self._topology: Topology | None = None
        self._rank = self._received = 0

    @property
    def next(self) -> int:
        """Epoch of the next pass."""
        return int(self._shared[0])

    @property
    def current(self) -> int:
        """Epoch of the pass under way."""
        return int(self._shared[1])

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What had been walked of the epoch before the pass under way began."""
        return _decode(self._shared[2:])

    @property
    def next_stages(self) -> tuple[Stage, ...]:
        """What will have been walked of the epoch of the next pass before that begins."""
        return self._resumed[1] if self._resumed else ()

    @property
    def position(self) -> tuple[int, tuple[Stage, ...]]:
        """Epoch and stages from which a restored dataset goes on; the last stage is counted by this rank."""
        if self._pass is None or self._topology is None:
            return self.next, self.next_stages
        stages, received = self.stages, self._received
        if stages and stages[-1].topology == self._topology:  # it went on where it had stopped
            received += stages[-1].received_by(self._rank)
            stages = stages[:-1]
        return self.current, (*stages, Stage(self._topology, received))

    def set(self, epoch: int) -> None:
        """Choose the epoch of the next pass, and of workers that nobody tells that it begins."""
        if not is_whole(epoch) or not 0 <= epoch < MAX_EPOCH:
            raise PlanError(f"epoch={epoch!r} must be an integer of at least 0, and less than 2**62")
        self.resume(int(epoch), ())

    def resume(self, epoch: int, stages: Sequence[Stage]) -> None:
        """Make the next pass walk what some stages left of an epoch."""
        self._shared[:2] = epoch
        _encode(stages, self._shared[2:])
        self._resumed = epoch, tuple(stages)
        self._pass = None

    def begin_pass(self, topology: Topology, rank: int) -> None:
        """Turn to the next epoch, on a topology, as one of its ranks."""
        _encode(self.next_stages, self._shared[2:])
        self._resumed = None
        self._shared[1] = self._shared[0]
        self._shared[0] += 1
        self._topology, self._rank, self._received, self._pass = topology, rank, 0, object()

    def counted(self, minibatches: Iterator[T]) -> Iterator[T]:
        """Yield the minibatches of the pass under way and count them, as long as no other pass has begun."""
        this = self._pass
        for minibatch in minibatches:
            if self._pass is this:
                self._received += 1
            yield minibatch
            del minibatch  # held here, its memory could not be used again

    def __getstate__(self) -> dict[str, Any]:
        self._shared.share_memory_()  # type: ignore[no-untyped-call]
        return {**self.__dict__, "_pass": None}


_N_MIXING = len(fields(Mixing))


def _encode(stages: Sequence[Stage], room: torch.Tensor) -> None:
    numbers = [len(stages)]
    for stage in stages:
        received = stage.received if isinstance(stage.received, tuple) else (stage.received,)
        topology = stage.topology
        numbers += [topology.world_size, topology.num_workers, *astuple(topology.mixing), len(received), *received]
    if len(numbers) > len(room):
        raise StateError(f"the state tells of {len(stages)} restores within one epoch; there is no room for so many")
    room[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)


def _decode(room: torch.Tensor) -> tuple[Stage, ...]:
    stages, at = [], 1
    for _ in range(int(room[0])):
        world_size, num_workers, *mixing, n = room[at : at + 3 + _N_MIXING].tolist()
        at += 3 + _N_MIXING
        received = room[at : at + n].tolist()
        at += n
        topology = Topology(world_size, num_workers, Mixing(*mixing))
        stages.append(Stage(topology, received[0] if n == 1 else tuple(received)))
    return tuple(stages)
