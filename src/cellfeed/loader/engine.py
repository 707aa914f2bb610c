"""The engine behind a dataset: the objects that plan, read, count and resume its epochs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cellfeed._joinids import JoinIds
from cellfeed.errors import PlanError
from cellfeed.loader.device import DeviceFeed
from cellfeed.loader.device_checks import DeviceMemory
from cellfeed.loader.epoch_engine import EpochEngine
from cellfeed.loader.epochs import EpochTracker, RankEpoch
from cellfeed.loader.label_counts import LabelCounter
from cellfeed.loader.media import LocalCopy, Media, Medium
from cellfeed.loader.pipeline import Assembly, Pipeline
from cellfeed.loader.provenance import describe, summarize
from cellfeed.loader.reading import Reading, columns_of
from cellfeed.loader.tokenizing import refuse_tokens
from cellfeed.loader.workers import WorkerGroup
from cellfeed.loader.world import available_threads, find_ranks
from cellfeed.plan import splits
from cellfeed.plan.epoch import World
from cellfeed.plan.permutation import check_seed
from cellfeed.plan.resampling import Resampling
from cellfeed.plan.settings import Settings
from cellfeed.plan.state import COPY
from cellfeed.plan.summary import Plan
from cellfeed.select.gene_names import find_selected, gene_list
from cellfeed.select.labels import read_obs_column
from cellfeed.select.selection import Selection
from cellfeed.stats import Meter
from cellfeed.transforms import SelectGenes

Labels = tuple[npt.NDArray[np.int64], npt.NDArray[Any]]
"""Codes of a column of obs, shape (n_obs,), and the value of each code."""


class Engine(EpochEngine):
    """Plans, reads, counts and resumes the epochs of one dataset.

    Making an engine reads nothing. A pickled copy in another process has its own buffers and counters.

    Parameters
    ----------
    selection, settings
        The cells and genes, and how they are ordered, batched and read.
    meter
        The counters; new ones by default.
    with_joinids
        Whether minibatches are of class :class:`~cellfeed.OrderedMinibatch`.
    local_copy
        The local copy that epochs write and read, if there is one.
    resampling
        How often each cell comes in an epoch; ``None`` if each comes once.

    Attributes
    ----------
    media
        The source and its local copy, with the plans of their epochs.
    epochs
        Counts the epochs and the minibatches that the training loop has received; saves and restores them.
    label_counter
        Counts the labels of these minibatches.
    """

    def __init__(
        self,
        selection: Selection,
        settings: Settings,
        *,
        meter: Meter | None = None,
        with_joinids: bool = False,
        local_copy: LocalCopy | None = None,
        resampling: Resampling | None = None,
    ) -> None:
        self.selection = selection
        self.settings = settings
        self.meter = meter or Meter()
        self.with_joinids = with_joinids
        labels = {name: None if isinstance(codes, JoinIds) else codes for name, codes in selection.codes.items()}
        self.resampling = resampling
        expected = None if resampling is None else resampling.expected
        self.label_counter = LabelCounter(labels, settings.batch_size, expected)
        self.media = Media(selection, settings, local_copy, resampling)
        self.media.source.planner.epoch_order(0)  # raises now, and not later, if memory_budget is too small
        self.epochs: EpochTracker[Medium] = EpochTracker(settings, self.media)
        self._enter_process()

    # ------------------------------------------------------------------ other engines

    def derive(
        self,
        *,
        selection: Selection | None = None,
        with_joinids: bool | None = None,
        resampling: Resampling | None = None,
        **parameters: Any,
    ) -> Engine:
        """Return an engine of another selection or with other parameters; its epochs and counters start at 0.

        Cells in order come once each, also if those of this engine are resampled.
        """
        settings = self.settings.replace(**parameters)
        return Engine(
            self.selection if selection is None else selection,
            settings,
            with_joinids=self.with_joinids if with_joinids is None else with_joinids,
            local_copy=self.media.local_copy,
            resampling=(resampling or self.resampling) if settings.shuffle else None,
        )

    def split(
        self, weights: Mapping[str, float] | Sequence[float], seed: int, *, stratify: str | None, group: str | None
    ) -> list[Engine]:
        """Return an engine per part of the cells; see :meth:`cellfeed.ExperimentDataset.random_split`."""
        self.refuse_resampled("random_split")
        fractions = splits.check_weights(weights)
        parts = splits.split(
            self.selection.n_obs,
            fractions,
            check_seed(seed),
            strata=None if stratify is None else self.labels(stratify),
            groups=None if group is None else self.labels(group),
        )
        names = list(weights) if isinstance(weights, Mapping) else range(len(parts))
        record = {"weights": fractions.tolist(), "seed": int(seed), "stratify": stratify, "group": group}
        return [
            self.derive(selection=self.selection.take(positions, {**record, "part": name}))
            for name, positions in zip(names, parts, strict=True)
        ]

    def refuse_resampled(self, method: str) -> None:
        """Raise an error if cells are resampled: parts of them would not have the planned numbers."""
        if self.resampling is not None:
            raise PlanError(
                f"{method}() of a resampled dataset: call {method}() first, and resample() the part to train on"
            )

    def select_genes(self, genes: Sequence[str], var_column: str | None, missing: str) -> Engine:
        """Return an engine of some genes; see :meth:`cellfeed.ExperimentDataset.select_genes`."""
        refuse_tokens(self.settings, "select_genes")
        genes = gene_list(genes)
        places, names = find_selected(self.selection, genes, var_column, missing)  # -1 for a gene that is missing
        present = np.sort(places[places >= 0])
        with warnings.catch_warnings(action="ignore"):  # find_selected has warned of missing genes
            column_transform = SelectGenes(genes, names[present], missing)
        return self.derive(selection=self.selection.take_vars(present, column_transform))

    # ------------------------------------------------------------------ descriptions

    def labels(self, column: str) -> npt.NDArray[np.int64]:
        """Read a column of obs, and return its values as codes: shape (n_obs,)."""
        return self.factorized(column)[0]

    def factorized(self, column: str) -> Labels:
        """Read a column of obs, and return its values as codes, shape (n_obs,), and the value of each code."""
        codes, values = pd.factorize(read_obs_column(self.selection, column), use_na_sentinel=False)
        return np.asarray(codes, dtype=np.int64), np.asarray(values)

    def plan(self, label: str | None = None, labels: Labels | None = None, device: torch.device | None = None) -> Plan:
        """Return the plan of the next epoch; see :meth:`cellfeed.ExperimentDataset.plan`.

        ``labels`` are those of the column ``label``, if they have been read already by :meth:`factorized`.
        """
        if label is not None and labels is None:
            labels = self.factorized(label)
        shares = None if labels is None else self._shares(*labels)
        world = World(*find_ranks(self.settings.rank, self.settings.world_size))
        medium = self.epochs.next_medium(world.rank, world.world_size)
        in_order = None if labels is None else medium.in_order(labels[0])
        memory = self.device_memory(device)
        plan = medium.planner.report(self.epochs.next, world, label, in_order)
        plan = replace(plan, label_shares=shares, **memory._asdict())
        if self.media.local_copy is None:
            return plan
        n_copied = self.media.local_copy.count(self.selection)
        return replace(plan, n_obs_copied=n_copied, copy_bytes=self.media.source.planner.copy_bytes)

    def _shares(self, codes: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> dict[Any, float]:
        """Return the expected share of each label in an epoch, the largest first."""
        totals = np.bincount(codes, None if self.resampling is None else self.resampling.expected)
        order = np.argsort(-totals.round(6), kind="stable")  # equal shares differ in the last bits
        return {values[k]: float(totals[k] / totals.sum()) for k in order}

    def device_memory(self, device: torch.device | None) -> DeviceMemory:
        """Return the memory for minibatches that are made on a device."""
        return DeviceMemory.of(self.media.source.planner, device)

    def describe(self) -> str:
        """Describe the cells in one line."""
        return describe(self.selection, self.settings)

    def table(self) -> dict[str, str]:
        """Describe the cells and parameters by short texts, for printing."""
        return summarize(self.selection, self.settings, self.resampling)

    # ------------------------------------------------------------------ iteration

    def _feed(self, device: torch.device | None) -> DeviceFeed | None:
        return None if device is None else DeviceFeed(device, self.media.source.planner)

    def _pipeline(self, this: RankEpoch, worker: int, workers: WorkerGroup | None, feed: DeviceFeed | None) -> Pipeline:
        medium = self.media.get(this.medium)
        resources = medium.planner.resources(this.world_layout.num_workers, available_threads())
        reading = Reading(
            medium.selection,
            self.settings,
            resources,
            self.epochs.work(this, worker),
            self.meter,
            monitored=None if workers is None else partial(workers.monitor.watched, worker=worker),
            appender=self.media.appender(medium),
            columns=columns_of(medium.selection),
        )
        return Pipeline(
            Assembly(medium.selection, self.settings, resources.n_threads, self._buffers, feed, this.epoch),
            reading,
            self.meter,
            with_joinids=self.with_joinids,
            count_copied=len if medium.name == COPY else lambda obs: 0,
        )
