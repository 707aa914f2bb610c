"""The passes over a selection: which comes next, what is left of it, and how that is saved and restored."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from cellfeed.errors import PlanError
from cellfeed.loader.epochs import Epochs, Pass
from cellfeed.loader.world import find_ranks, warn_of_unknown_rank
from cellfeed.plan import state
from cellfeed.plan.epoch import EpochOrder
from cellfeed.plan.planner import Planner
from cellfeed.plan.resume import ResumeSegment, ShardAssignment, WorldLayout, assign_shards, n_minibatches, windows_of
from cellfeed.plan.settings import Settings
from cellfeed.plan.windows import Window
from cellfeed.select.selection import Selection


class Passes:
    """Knows at which cell of which epoch a dataset is.

    Parameters
    ----------
    selection, settings
        What is passed over, and how.
    planner
        Of epochs over them.

    Attributes
    ----------
    home
        The process in which they were made; that of the original, in a copy that was sent elsewhere.
    """

    def __init__(self, selection: Selection, settings: Settings, planner: Planner) -> None:
        self._selection = selection
        self._settings = settings
        self._planner = planner
        self.epochs = Epochs()
        self.home = os.getpid()

    def begin(self, num_workers: int = 1, *, apart: bool = False) -> Pass:
        """Begin the next pass, which ``num_workers`` processes read.

        ``apart`` says that each of them made its dataset itself, with the same parameters.
        """
        warn_of_unknown_rank(self._settings.rank)
        rank, world_size = self._ranks()
        if self._settings.shuffle and not self._settings.seed_given and (world_size > 1 or (apart and num_workers > 1)):
            who, number = (
                ("rank", f"world_size={world_size}") if world_size > 1 else ("worker", f"{num_workers} workers")
            )
            raise PlanError(
                f"seed=None with {number}: each {who} would draw another order, and cells would be lost and repeated; "
                f"give all {who}s the same seed"
            )
        return self.epochs.begin_pass(self._topology(world_size, num_workers), rank)

    def windows(self, this: Pass, worker: int) -> Iterator[Window]:
        """Return the windows that one worker is to walk in a pass."""
        plan, shares = self._assign(this.epoch, this.segments, this.world_layout)
        return windows_of(shares.ranks[this.rank][worker], plan)

    def n_minibatches(self, num_workers: int = 1) -> int:
        """Minibatches of this rank in the next pass; those that were received before a restore are counted."""
        received = (
            max(segment.received_by(rank) for rank in range(segment.world_layout.world_size))
            for segment in self.epochs.next_segments
        )
        return self.n_to_come(num_workers) + sum(received)

    def n_to_come(self, num_workers: int = 1) -> int:
        """Minibatches that the next pass yields to this rank."""
        rank, world_size = self._ranks()
        world_layout = self._topology(world_size, num_workers)
        _, shares = self._assign(self.epochs.next, self.epochs.next_segments, world_layout)
        return sum(n_minibatches(pieces, self._settings.batch_size) for pieces in shares.ranks[rank])

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is left of the epoch in which this rank is."""
        epoch, segments = self.epochs.position
        return not segments or self._is_finished(epoch, segments)

    def save(self) -> dict[str, Any]:
        """Return the state of this rank."""
        epoch, segments = self.epochs.position
        return state.pack(epoch, segments, self._ranks()[0], self._fingerprint)

    def restore(self, saved: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Go on behind the last minibatch that a state counts; at the end of an epoch, with the next one."""
        epoch, segments = state.unpack(saved, self._fingerprint)
        if segments and self._is_finished(epoch, segments):
            epoch, segments = epoch + 1, ()
        self.epochs.resume(epoch, segments)

    def _is_finished(self, epoch: int, segments: Sequence[ResumeSegment]) -> bool:
        *before, last = segments
        _, shares = self._assign(epoch, before, last.world_layout)
        return all(
            last.received_by(rank) >= sum(n_minibatches(pieces, self._settings.batch_size) for pieces in workers)
            for rank, workers in enumerate(shares.ranks)
        )

    def _assign(
        self, epoch: int, segments: Sequence[ResumeSegment], world_layout: WorldLayout
    ) -> tuple[EpochOrder, ShardAssignment]:
        plan = self._planner.epoch_order(epoch, world_layout.mixing)
        return plan, assign_shards(plan, segments, world_layout)

    def _topology(self, world_size: int, num_workers: int) -> WorldLayout:
        return WorldLayout(world_size, num_workers, self._planner.mixing(num_workers))

    def _ranks(self) -> tuple[int, int]:
        return find_ranks(self._settings.rank, self._settings.world_size)

    @cached_property
    def _fingerprint(self) -> state.Fingerprint:
        selection, settings = self._selection, self._settings
        return {
            "measurement_name": selection.measurement_name,
            "X_name": selection.X_name,
            "n_obs": selection.n_obs,
            "obs_joinids": state.digest(selection.joinids[:]),
            "n_vars": selection.n_vars,
            "var_joinids": state.digest(selection.var_joinids),
            "obs nnz": state.digest(selection.nnz),
            "row_extent": selection.geometry.row_extent,
            "chunk_rows": self._planner.chunk_rows,
            "seed": settings.seed,
            "shuffle": settings.shuffle,
            "batch_size": settings.batch_size,
            "drop_last": settings.drop_last,
            "rank_remainder": settings.rank_remainder,
            "soma_chunk_size": settings.soma_chunk_size,
            "shuffle_chunk_count": settings.shuffle_chunk_count,
        }
