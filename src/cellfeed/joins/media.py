"""What the datasets of a join are read from: each from its source or its local copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cellfeed.loader.engine import Engine
from cellfeed.loader.epochs import EpochTracker
from cellfeed.loader.media import Medium
from cellfeed.plan.join_planner import JoinPlanner
from cellfeed.plan.state import COPY, SOURCE, Fingerprint, medium_of

EPOCHS_KEPT = 2
"""Epochs of which the media are kept: the next one, and the one before it."""


@dataclass(frozen=True, eq=False)
class JoinMedium:
    """What the datasets are read from in one epoch of a join.

    Attributes
    ----------
    begun, later
        The medium of each dataset: of its epoch that is under way when the epoch of the join begins, and of those after
        it.
    planner
        Plans the epochs of the join.
    own_fingerprint
        What the order of an epoch depends on, beside the datasets.
    """

    begun: Mapping[str, Medium]
    later: Mapping[str, Medium]
    planner: JoinPlanner
    own_fingerprint: Fingerprint

    @property
    def name(self) -> str:
        """The name in a state."""
        pairs = [(self.begun[part].name, medium.name) for part, medium in self.later.items()]
        return ",".join(map(">".join, pairs)) if any(COPY in pair for pair in pairs) else SOURCE

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything on which the order of an epoch depends."""
        of_parts = {
            f"{field} of {part!r}": value
            for part, medium in self.later.items()
            for field, value in medium.fingerprint.items()
        }
        medium: Fingerprint = {} if self.name == SOURCE else {"medium": self.name}
        return {**medium, **self.own_fingerprint, **of_parts}


class JoinMedia:
    """The media of the datasets of a join.

    Parameters
    ----------
    parts
        The engines of the datasets by name.
    planner
        Plans the epochs of the join.
    fingerprint
        What the order of an epoch depends on, beside the datasets.
    """

    def __init__(self, parts: Mapping[str, Engine], planner: JoinPlanner, fingerprint: Fingerprint) -> None:
        self._parts, self._planner, self._fingerprint = parts, planner, fingerprint
        self._chosen: dict[int, JoinMedium] = {}  # by epoch

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_chosen": {}}

    def get(self, name: str) -> JoinMedium:
        """Return a medium by its name."""
        pairs = [pair.split(">") for pair in name.split(",")]
        if len(pairs) != len(self._parts) or any(len(pair) != 2 for pair in pairs):
            pairs = [[SOURCE, SOURCE]] * len(self._parts)
        begun, later = (
            {part: engine.media.get(names[k]) for names, (part, engine) in zip(pairs, self._parts.items(), strict=True)}
            for k in range(2)
        )
        return JoinMedium(begun, later, self._planner, self._fingerprint)

    def choose(self, epoch: int, rank: int, world_size: int) -> JoinMedium:
        """Return the medium of an epoch that begins.

        An epoch of a dataset that is under way is read to its end from the medium in which it began.
        """
        later = {part: engine.media.choose(epoch, rank, world_size) for part, engine in self._parts.items()}
        begun = dict(later)
        before = self._chosen.get(epoch - 1)
        if before is not None:
            schedule = self._planner.schedule(world_size)
            for k, part in enumerate(self._parts):
                (own, n_done), (own_before, _) = (schedule.position(k, e) for e in (epoch, epoch - 1))
                if n_done:
                    begun[part] = (before.begun if own == own_before else before.later)[part]
        chosen = JoinMedium(begun, later, self._planner, self._fingerprint)
        self.note(epoch, chosen)
        return chosen

    def note(self, epoch: int, medium: JoinMedium) -> None:
        """Note the medium of an epoch, on which that of the next epoch depends."""
        kept = [number for number in self._chosen if number != epoch][-EPOCHS_KEPT + 1 :]
        self._chosen = {**{number: self._chosen[number] for number in kept}, epoch: medium}


class JoinEpochs(EpochTracker[JoinMedium]):
    """Counts the epochs of a join, and restores them with the media of its datasets."""

    _media: JoinMedia

    def restore(self, saved: object) -> None:
        """Continue after the last minibatch that a state counts; if it ended an epoch, with the next epoch."""
        super().restore(saved)  # type: ignore[arg-type] # any object: it is checked there
        is_begun = bool(self._next_segments)
        self._media.note(self._next - (not is_begun), self._media.get(medium_of(saved)))  # type: ignore[arg-type]
