"""Which epoch the next pass belongs to, and how far the pass under way has come."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cellfeed._checks import is_whole
from cellfeed.errors import PlanError, ReadError, StateError
from cellfeed.plan.resume import Stage, Topology

T = TypeVar("T")

MAX_EPOCH = 1 << 62

_OF_PARENT: list[Any] = []
"""Iterators that a forked process has from its parent: collected, PyTorch's would end the workers of the parent."""

MAX_STAGES = 1000
"""Restores within one epoch: each makes planning the rest take longer."""


@dataclass(frozen=True)
class Pass:
    """One pass of a rank.

    Attributes
    ----------
    epoch
        Its epoch.
    stages
        What had been walked of the epoch before the pass began.
    topology
        The ranks and workers that walk the rest.
    rank
        The rank whose cells the pass yields.
    """

    epoch: int
    stages: tuple[Stage, ...]
    topology: Topology
    rank: int


class Epochs:
    """Counts the passes of a dataset, and the minibatches that the training loop has received of the latest one.

    A copy that is sent to another process counts on its own: each process turns to the next epoch by itself.
    """

    def __init__(self) -> None:
        self._next = 0
        self._next_stages: tuple[Stage, ...] = ()
        self._pass: Pass | None = None
        self._received = 0

    @property
    def next(self) -> int:
        """Epoch of the next pass."""
        return self._next

    @property
    def next_stages(self) -> tuple[Stage, ...]:
        """What will have been walked of the epoch of the next pass before that begins."""
        return self._next_stages

    @property
    def position(self) -> tuple[int, tuple[Stage, ...]]:
        """Epoch and stages from which a restored dataset goes on; the last stage is counted by this rank."""
        this = self._pass
        if this is None:
            return self._next, self._next_stages
        stages, received = this.stages, self._received
        if stages and stages[-1].topology == this.topology:  # it went on where it had stopped
            received += stages[-1].received_by(this.rank)
            stages = stages[:-1]
        return this.epoch, (*stages, Stage(this.topology, received))

    def set(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        if not is_whole(epoch) or not 0 <= epoch < MAX_EPOCH:
            raise PlanError(f"epoch={epoch!r} must be an integer of at least 0, and less than 2**62")
        self.resume(int(epoch), ())

    def resume(self, epoch: int, stages: Sequence[Stage]) -> None:
        """Make the next pass walk what some stages left of an epoch."""
        if len(stages) > MAX_STAGES:
            raise StateError(f"the state counts {len(stages)} restores within one epoch, more than {MAX_STAGES}")
        self._next, self._next_stages, self._pass = epoch, tuple(stages), None

    def begin_pass(self, topology: Topology, rank: int) -> Pass:
        """Turn to the next epoch, on a topology, as one of its ranks."""
        this = Pass(self._next, self._next_stages, topology, rank)
        self._next, self._next_stages = self._next + 1, ()
        self._pass, self._received = this, 0
        return this

    def counted(self, minibatches: Iterator[T], this: Pass) -> Iterator[T]:
        """Yield the minibatches of a pass and count them, as long as no other pass has begun.

        Raises
        ------
        ReadError
            In a process that was forked since: the threads that read exist in its parent only.
        """
        process = os.getpid()
        while True:
            if os.getpid() != process:
                _OF_PARENT.append(minibatches)
                raise ReadError(
                    "this iterator belongs to the process from which this one was forked, and the threads that read "
                    "for it are not here: begin a pass in this process, over a dataset that is made in it"
                )
            minibatch = next(minibatches, None)
            if minibatch is None:
                return
            if self._pass is this:
                self._received += 1
            yield minibatch
            del minibatch  # held here, its memory could not be used again

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pass": None}
