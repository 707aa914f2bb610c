"""What training frameworks expect of a loader beside its minibatches."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch.utils.data import Sampler

from cellfeed.loader.epochs import EpochTracker

T = TypeVar("T")


class EpochSampler(Sampler[None]):
    """The sampler of a loader, by which Lightning gives the number of the epoch that training begins with.

    Lightning restores the state of a loader only from a checkpoint of the middle of an epoch. After a checkpoint of
    the end of an epoch the number is all that says which pass comes next. Only the first call counts: Lightning counts
    an epoch without minibatches when it resumes under ``max_steps``.

    Parameters
    ----------
    epochs
        Of the loader.
    """

    def __init__(self, epochs: EpochTracker) -> None:
        self._epochs = epochs
        self._is_set = False

    def __iter__(self) -> Iterator[None]:
        return itertools.repeat(None)

    def set_epoch(self, epoch: int) -> None:
        """Skip the passes before an epoch, in the first call; a later pass stays the next one."""
        if not self._is_set and epoch > self._epochs.next:
            self._epochs.set(epoch)
        self._is_set = True


def mark_last(loader: Any, passes: EpochTracker, begin: Callable[[], Iterator[T]]) -> Iterator[T]:
    """Begin a pass of a loader; if Accelerate is in use, it learns from the loader which minibatch is the last.

    Accelerate makes an optimizer step after the last minibatch even if fewer than ``gradient_accumulation_steps`` have
    come since the step before. Its own loaders read one minibatch ahead to know; here the plan knows.
    """
    accelerate_state = sys.modules.get("accelerate.state")
    if accelerate_state is None:
        return begin()
    n_minibatches = passes.n_to_come(max(1, loader.num_workers))
    return _marked(loader, accelerate_state.GradientState(), begin(), n_minibatches)


def _marked(loader: Any, state: Any, minibatches: Iterator[T], n_minibatches: int) -> Iterator[T]:
    loader.end_of_dataloader = False
    loader.remainder = 0  # rows that ``gather_for_metrics`` keeps of the last minibatch; 0 keeps all
    state._add_dataloader(loader)
    try:
        for k, minibatch in enumerate(minibatches, start=1):
            loader.end_of_dataloader = k == n_minibatches
            yield minibatch
            del minibatch  # held here, its memory could not be used again
    finally:
        state._remove_dataloader(loader)
