"""What the engines of datasets and of joins share: they begin epochs, and count the minibatches of them."""

from __future__ import annotations

import abc
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch

from cellfeed.loader.device import DeviceFeed
from cellfeed.loader.device_checks import DeviceMemory
from cellfeed.loader.epochs import EpochTracker, RankEpoch
from cellfeed.loader.label_counts import HasObs, LabelCounter
from cellfeed.loader.pipeline import Pipeline, Yielded
from cellfeed.loader.workers import WorkerGroup
from cellfeed.loader.world import find_worker, refuse_fork, refuse_loader
from cellfeed.plan import budget
from cellfeed.plan.settings import Settings
from cellfeed.rows.assemble import DenseBuffers
from cellfeed.rows.minibatch import quiet_beta_warning
from cellfeed.select.selection import Selection
from cellfeed.stats import Meter, Stats
from cellfeed.transforms import columns_after

M = TypeVar("M", bound=HasObs)


class EpochEngine(abc.ABC):
    """Begins epochs, and counts, saves and restores them.

    A pickled copy in another process has its own buffers and counters.

    Attributes
    ----------
    selection, settings
        The cells and genes, and how they are ordered, batched and read.
    meter
        The counters.
    epochs
        Counts the epochs and the minibatches that the training loop has received; saves and restores them.
    label_counter
        Counts the labels of these minibatches.
    makes_on_devices
        Whether minibatches can be made on a device; otherwise they are moved to it.
    """

    selection: Selection
    settings: Settings
    meter: Meter
    epochs: EpochTracker[Any]
    label_counter: LabelCounter
    makes_on_devices = True

    def _enter_process(self) -> None:
        """Create what belongs to this process."""
        self._buffers = DenseBuffers(keep=budget.MINIBATCHES_HELD)
        self._pid = os.getpid()
        if self.settings.return_sparse_X:
            quiet_beta_warning()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_buffers"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._enter_process()

    # ------------------------------------------------------------------ descriptions

    @property
    def X_dtype(self) -> str:
        """Name of the type of X before ``transform``."""
        return self.settings.type_of_X(self.selection.geometry.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells, and number of columns of X after the transforms."""
        n_vars = self.selection.n_vars
        for transform in (self.selection.column_transform, self.settings.transform):
            n_vars = columns_after(transform, n_vars)
        return self.selection.n_obs, n_vars

    @abc.abstractmethod
    def device_memory(self, device: torch.device | None) -> DeviceMemory:
        """Return the memory for minibatches that are made on a device."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Describe the cells in one line."""

    @abc.abstractmethod
    def table(self) -> dict[str, str]:
        """Describe the cells and parameters by short texts, for printing."""

    def stats(self) -> Stats:
        """Return the counters as they stand."""
        return replace(self.meter.snapshot(), effective_batch_sizes=self.label_counter.effective_batch_sizes())

    # ------------------------------------------------------------------ iteration

    def minibatches(
        self,
        workers: WorkerGroup | None = None,
        *,
        may_be_collated: bool = False,
        device: torch.device | None = None,
    ) -> Iterator[Yielded]:
        """Begin the next epoch, and return the minibatches of this process.

        Parameters
        ----------
        workers
            The worker processes to which this one belongs, if a loader of cellfeed started it.
        may_be_collated
            Whether a loader may collate what the dataset yields.
        device
            Where minibatches are made; ``None`` makes them in the memory of the CPU.
        """
        settings = self.settings
        refuse_fork(self._pid)
        refuse_loader(settings.rank, settings.world_size, None if may_be_collated else settings.batch_size)
        feed = self._feed(device)
        if workers is None:
            worker, num_workers = find_worker(self.epochs.home)
            this = self.epochs.begin(num_workers, apart=True)
        else:
            worker, this = workers.assigned
        minibatches: Iterator[Any] = self._pipeline(this, worker, workers, feed).minibatches()
        if workers:
            return minibatches  # the loader counts them
        counted = self.counted(minibatches, this)
        return counted if feed is None else feed.received(counted)

    def _feed(self, device: torch.device | None) -> DeviceFeed | None:
        """Return what makes minibatches on a device."""
        return None

    @abc.abstractmethod
    def _pipeline(self, this: RankEpoch, worker: int, workers: WorkerGroup | None, feed: DeviceFeed | None) -> Pipeline:
        """Return what makes the minibatches of an epoch in this process."""

    def counted(self, minibatches: Iterator[M], this: RankEpoch) -> Iterator[M]:
        """Yield the minibatches of an epoch, and count them and their labels as received."""
        return self.epochs.counted(self.label_counter.counted(minibatches), this)
