"""Which epoch the next pass belongs to, and how far the pass under way has come."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cellfeed._checks import is_integer
from cellfeed.errors import PlanError, ReadError, StateError
from cellfeed.plan.resume import ResumeSegment, WorldLayout

T = TypeVar("T")

MAX_EPOCH = 1 << 62

_OF_PARENT: list[Any] = []
"""Iterators that a forked process has from its parent: collected, PyTorch's would end the workers of the parent."""

MAX_SEGMENTS = 1000
"""Restores within one epoch: each makes planning the rest take longer."""


@dataclass(frozen=True)
class Pass:
    """One pass of a rank.

    Attributes
    ----------
    epoch
        Its epoch.
    segments
        What had been walked of the epoch before the pass began.
    world_layout
        The ranks and workers that walk the rest.
    rank
        The rank whose cells the pass yields.
    """

    epoch: int
    segments: tuple[ResumeSegment, ...]
    world_layout: WorldLayout
    rank: int


class Epochs:
    """Counts the passes of a dataset, and the minibatches that the training loop has received of the latest one.

    A copy that is sent to another process counts on its own: each process turns to the next epoch by itself.
    """

    def __init__(self) -> None:
        self._next = 0
        self._next_segments: tuple[ResumeSegment, ...] = ()
        self._pass: Pass | None = None
        self._received = 0

    @property
    def next(self) -> int:
        """Epoch of the next pass."""
        return self._next

    @property
    def next_segments(self) -> tuple[ResumeSegment, ...]:
        """What will have been walked of the epoch of the next pass before that begins."""
        return self._next_segments

    @property
    def position(self) -> tuple[int, tuple[ResumeSegment, ...]]:
        """Epoch and segments from which a restored dataset goes on; the last segment is counted by this rank."""
        this = self._pass
        if this is None:
            return self._next, self._next_segments
        segments, received = this.segments, self._received
        if segments and segments[-1].world_layout == this.world_layout:  # it went on where it had stopped
            received += segments[-1].received_by(this.rank)
            segments = segments[:-1]
        return this.epoch, (*segments, ResumeSegment(this.world_layout, received))

    def set(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        if not is_integer(epoch) or not 0 <= epoch < MAX_EPOCH:
            raise PlanError(f"epoch={epoch!r} must be an integer of at least 0, and less than 2**62")
        self.resume(int(epoch), ())

    def resume(self, epoch: int, segments: Sequence[ResumeSegment]) -> None:
        """Make the next pass walk what some segments left of an epoch."""
        if len(segments) > MAX_SEGMENTS:
            raise StateError(f"the state counts {len(segments)} restores within one epoch, more than {MAX_SEGMENTS}")
        self._next, self._next_segments, self._pass = epoch, tuple(segments), None

    def begin_pass(self, world_layout: WorldLayout, rank: int) -> Pass:
        """Turn to the next epoch, on a world_layout, as one of its ranks."""
        this = Pass(self._next, self._next_segments, world_layout, rank)
        self._next, self._next_segments = self._next + 1, ()
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
