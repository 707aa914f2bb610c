"""The epochs of a dataset: which one comes next, how much of it is done, and how this is saved and restored."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from cellfeed._checks import is_integer
from cellfeed.errors import PlanError, ReadError, StateError
from cellfeed.loader.world import find_ranks, warn_of_unknown_rank
from cellfeed.plan import state
from cellfeed.plan.layout import ResumeSegment, WorldLayout
from cellfeed.plan.schedule import ShufflePlan
from cellfeed.plan.settings import Settings
from cellfeed.plan.state import COPY, SOURCE, Fingerprint

T = TypeVar("T")


class Assignment(Protocol):
    """The rest of an epoch, divided among ranks and workers: a :class:`cellfeed.plan.resume.ShardAssignment`."""

    def n_minibatches(self, rank: int, batch_size: int) -> int:
        """Return the number of minibatches of a rank."""

    def work(self, rank: int, worker: int) -> Any:
        """Return what a worker of a rank reads: windows of cells, or of sets, or the runs of a join."""


class PlansEpochs(Protocol):
    """Orders the cells, or the sets, of an epoch: a :class:`cellfeed.plan.planner.Planner`."""

    def shuffle_plan(self, num_workers: int = 1) -> ShufflePlan:
        """Return how each of ``num_workers`` processes mixes chunks."""

    def assign(self, epoch: int, segments: Sequence[ResumeSegment], world_layout: WorldLayout) -> Assignment:
        """Assign the rest of an epoch, of which segments were received, to ranks and workers."""


class HasEpochs(Protocol):
    """What epochs are read from: a :class:`cellfeed.loader.media.Medium`."""

    @property
    def name(self) -> str:
        """The name in a state."""

    @property
    def planner(self) -> PlansEpochs:
        """The planner of its epochs."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything on which the order of an epoch depends."""


M = TypeVar("M", bound=HasEpochs)
M_co = TypeVar("M_co", bound=HasEpochs, covariant=True)


class ChoosesMedium(Protocol[M_co]):
    """Chooses what an epoch is read from: :class:`cellfeed.loader.media.Media`."""

    def get(self, name: str) -> M_co:
        """Return a medium by its name."""

    def choose(self, epoch: int, rank: int, world_size: int) -> M_co:
        """Return the medium of an epoch that begins."""


MAX_EPOCH = 1 << 62

MAX_SEGMENTS = 1000
"""Limit on the restores within one epoch: planning the rest of an epoch takes longer with each of them."""

_INHERITED: list[Any] = []
"""Iterators that a forked process inherits. Collecting PyTorch's iterator there would end the workers of the parent."""


@dataclass(frozen=True)
class RankEpoch:
    """One epoch, as one rank begins it.

    Attributes
    ----------
    epoch
        Number of the epoch.
    segments
        Segments of the epoch that were done before a restore.
    world_layout
        Ranks and workers that read the rest of the epoch.
    rank
        Rank that receives the minibatches.
    medium
        Name of the medium that is read: ``"source"`` or ``"copy"``.
    """

    epoch: int
    segments: tuple[ResumeSegment, ...]
    world_layout: WorldLayout
    rank: int
    medium: str = SOURCE

    def pack(self) -> dict[str, Any]:
        """Return the state of a rank that begins the epoch: workers receive this, and :meth:`unpack` reads it."""
        return state.pack(
            self.epoch, (*self.segments, ResumeSegment(self.world_layout, 0)), self.rank, {"medium": self.medium}
        )

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Self:
        """Make the epoch from what :meth:`pack` returned."""
        epoch, (*segments, rest) = state.unpack(packed, {})
        return cls(epoch, tuple(segments), rest.world_layout, packed["rank"], packed["fingerprint"]["medium"])


class EpochTracker(Generic[M]):
    """Begins the epochs of a dataset and counts the minibatches that the training loop has received.

    Several iterators may be begun; the one that was begun last is counted. A copy that is sent to another process
    counts by itself.

    Parameters
    ----------
    settings
        Those of the dataset.
    media
        The source and its local copy, or the memory in which sets are held.

    Attributes
    ----------
    home
        Id of the process that made the dataset; a copy in another process keeps it.
    """

    def __init__(self, settings: Settings, media: ChoosesMedium[M]) -> None:
        self._settings = settings
        self._media = media
        self.home = os.getpid()
        self._next = 0
        self._next_medium: str | None = None  # that of the state from which the next epoch continues
        self._next_segments: tuple[ResumeSegment, ...] = ()
        self._current: RankEpoch | None = None
        self._n_received = 0  # minibatches of the current epoch

    @property
    def next(self) -> int:
        """Number of the epoch that begins next."""
        return self._next

    def set(self, epoch: int) -> None:
        """Choose the epoch that begins next."""
        if not is_integer(epoch) or not 0 <= epoch < MAX_EPOCH:
            raise PlanError(f"epoch={epoch!r} must be an integer of at least 0, and less than 2**62")
        self._resume(int(epoch), ())

    def begin(self, num_workers: int = 1, *, apart: bool = False) -> RankEpoch:
        """Begin the next epoch.

        Parameters
        ----------
        num_workers
            Processes that read for this rank.
        apart
            Whether each of these processes made its dataset itself, with the same parameters.
        """
        warn_of_unknown_rank(self._settings.rank)
        rank, world_size = self._ranks()
        if self._settings.shuffle and not self._settings.seed_given:
            if world_size > 1:
                raise _seed_missing("rank", f"world_size={world_size}")
            if apart and num_workers > 1:
                raise _seed_missing("worker", f"{num_workers} workers")
        medium = self.next_medium(rank, world_size)
        layout = self._layout(medium, world_size, num_workers)
        current = RankEpoch(self._next, self._next_segments, layout, rank, medium.name)
        self._resume(self._next + 1, ())
        self._current, self._n_received = current, 0
        return current

    def work(self, this: RankEpoch, worker: int) -> Any:
        """Return what one worker reads; see :meth:`Assignment.work`."""
        planner = self._media.get(this.medium).planner
        return planner.assign(this.epoch, this.segments, this.world_layout).work(this.rank, worker)

    def counted(self, minibatches: Iterator[T], rank_epoch: RankEpoch) -> Iterator[T]:
        """Yield the minibatches of an epoch and count them, until another epoch begins.

        Raises
        ------
        ReadError
            In a process that was forked from the one in which the iterator began: no thread reads for it there.
        """
        process = os.getpid()
        while True:
            if os.getpid() != process:
                _INHERITED.append(minibatches)
                raise ReadError(
                    "this iterator belongs to the process from which this one was forked, and its reading threads "
                    "exist only there: make a dataset in this process and iterate over that"
                )
            minibatch = next(minibatches, None)
            if minibatch is None:
                return
            if self._current is rank_epoch:
                self._n_received += 1
            yield minibatch
            del minibatch  # a reference here would keep its memory from being used again

    def n_minibatches(self, num_workers: int = 1) -> int:
        """Return how many minibatches this rank receives in the next epoch, plus those before a restore."""
        n_received = (
            max(segment.received_by(rank) for rank in range(segment.world_layout.world_size))
            for segment in self._next_segments
        )
        return self.n_to_come(num_workers) + sum(n_received)

    def n_to_come(self, num_workers: int = 1) -> int:
        """Return how many minibatches this rank receives in the next epoch after a restore, if any."""
        rank, world_size = self._ranks()
        medium = self.next_medium(rank, world_size)
        layout = self._layout(medium, world_size, num_workers)
        rest = medium.planner.assign(self._next, self._next_segments, layout)
        return rest.n_minibatches(rank, self._settings.batch_size)

    @property
    def is_at_end(self) -> bool:
        """Whether no epoch is under way: none has begun, or the current one is finished."""
        epoch, segments, medium = self._position
        return not segments or self._is_finished(medium, epoch, segments)

    def save(self) -> dict[str, Any]:
        """Return the state of this rank.

        After an epoch of a copy it is the beginning of the next epoch, for which no copy is needed; ranks that receive
        unequal numbers of minibatches need the state of the epoch to see its end.
        """
        epoch, segments, medium = self._position
        is_even = self._settings.rank_remainder != "uneven" or self._ranks()[1] == 1
        if medium.name == COPY and segments and is_even and self._is_finished(medium, epoch, segments):
            epoch, segments, medium = epoch + 1, (), self._media.get(SOURCE)
        return state.pack(epoch, segments, self._ranks()[0], medium.fingerprint)

    def restore(self, saved: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Continue after the last minibatch that a state counts; if it ended an epoch, with the next epoch."""
        medium = self._media.get(state.medium_of(saved))
        epoch, segments = state.unpack(saved, medium.fingerprint)
        if segments and self._is_finished(medium, epoch, segments):
            epoch, segments = epoch + 1, ()
        if len(segments) > MAX_SEGMENTS:
            raise StateError(f"the state counts {len(segments)} restores within one epoch, more than {MAX_SEGMENTS}")
        self._resume(epoch, segments, medium.name if segments else None)

    def _resume(self, epoch: int, segments: tuple[ResumeSegment, ...], medium: str | None = None) -> None:
        self._next, self._next_segments, self._next_medium, self._current = epoch, segments, medium, None

    def next_medium(self, rank: int, world_size: int) -> M:
        """Return the medium of the next epoch: a part of an epoch that was restored is read where it began."""
        if self._next_medium is not None:
            return self._media.get(self._next_medium)
        return self._media.choose(self._next, rank, world_size)

    @property
    def _position(self) -> tuple[int, tuple[ResumeSegment, ...], M]:
        """Epoch, segments and medium with which a restored dataset continues; the last segment is of this rank."""
        current = self._current
        if current is None:
            return self._next, self._next_segments, self._media.get(self._next_medium or SOURCE)
        segments, n_received = current.segments, self._n_received
        if segments and segments[-1].world_layout == current.world_layout:  # the last segment continued
            n_received += segments[-1].received_by(current.rank)
            segments = segments[:-1]
        segments = (*segments, ResumeSegment(current.world_layout, n_received))
        return current.epoch, segments, self._media.get(current.medium)

    def _is_finished(self, medium: M, epoch: int, segments: Sequence[ResumeSegment]) -> bool:
        *before, last = segments
        assigned = medium.planner.assign(epoch, before, last.world_layout)
        return all(
            last.received_by(rank) >= assigned.n_minibatches(rank, self._settings.batch_size)
            for rank in range(last.world_layout.world_size)
        )

    def _layout(self, medium: M, world_size: int, num_workers: int) -> WorldLayout:
        return WorldLayout(world_size, num_workers, medium.planner.shuffle_plan(num_workers))

    def _ranks(self) -> tuple[int, int]:
        return find_ranks(self._settings.rank, self._settings.world_size)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_current": None}


def _seed_missing(reader: str, number: str) -> PlanError:
    return PlanError(
        f"seed=None with {number}: each {reader} would draw another order, and cells would be lost and repeated; "
        f"give all {reader}s the same seed"
    )
