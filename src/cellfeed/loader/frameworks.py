"""The parts of a loader that training frameworks use: a sampler for Lightning, a mark of the last minibatch."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch.utils.data import Sampler

from cellfeed.loader.epochs import EpochTracker

T = TypeVar("T")


class EpochSampler(Sampler[None]):
    """The sampler of a loader, whose ``set_epoch`` Lightning calls with the epoch from which training starts.

    Lightning restores the state of a loader only from a checkpoint in the middle of an epoch. After a checkpoint at
    the end of an epoch this call alone determines the next epoch. Only the first call has an effect, as Lightning
    counts an epoch without minibatches when it resumes under ``max_steps``.

    Parameters
    ----------
    epochs
        The epochs of the loader.
    """

    def __init__(self, epochs: EpochTracker[Any]) -> None:
        self._epochs = epochs
        self._is_set = False

    def __iter__(self) -> Iterator[None]:
        return itertools.repeat(None)

    def set_epoch(self, epoch: int) -> None:
        """Advance to an epoch, in the first call only; never go back."""
        if not self._is_set and epoch > self._epochs.next:
            self._epochs.set(epoch)
        self._is_set = True


def mark_last(loader: Any, epochs: EpochTracker[Any], begin: Callable[[], Iterator[T]]) -> Iterator[T]:
    """Begin an epoch of a loader; if Accelerate is in use, mark the last minibatch for it.

    Accelerate makes an optimizer step after the last minibatch even if fewer than ``gradient_accumulation_steps``
    minibatches were yielded since the previous step. Its own loaders read one minibatch ahead to find the last one; a
    dataset computes their number from its plan.
    """
    accelerate_state = sys.modules.get("accelerate.state")
    if accelerate_state is None:
        return begin()
    n_minibatches = epochs.n_to_come(max(1, loader.num_workers))
    return _marked(loader, accelerate_state.GradientState(), begin(), n_minibatches)


def _marked(loader: Any, state: Any, minibatches: Iterator[T], n_minibatches: int) -> Iterator[T]:
    loader.end_of_dataloader = False
    loader.remainder = 0  # number of rows of the last minibatch that ``gather_for_metrics`` keeps; 0 keeps all
    state._add_dataloader(loader)
    try:
        for k, minibatch in enumerate(minibatches, start=1):
            loader.end_of_dataloader = k == n_minibatches
            yield minibatch
            del minibatch  # a reference here would prevent the reuse of its memory
    finally:
        state._remove_dataloader(loader)
