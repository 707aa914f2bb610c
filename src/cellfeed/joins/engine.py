"""The engine behind a join: it reads the datasets together, and counts and resumes its epochs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from cellfeed._checks import format_bytes
from cellfeed._digests import digest_of_names
from cellfeed.joins.dataset_reader import DatasetReader
from cellfeed.joins.media import JoinEpochs, JoinMedia
from cellfeed.joins.reading import JoinReading
from cellfeed.loader.device import DeviceFeed
from cellfeed.loader.device_checks import DeviceMemory
from cellfeed.loader.engine import Engine
from cellfeed.loader.epoch_engine import EpochEngine
from cellfeed.loader.epochs import RankEpoch
from cellfeed.loader.label_counts import LabelCounter
from cellfeed.loader.pipeline import Assembly, Pipeline
from cellfeed.loader.workers import WorkerGroup
from cellfeed.loader.world import available_threads, find_ranks
from cellfeed.plan.join_planner import JoinPlanner
from cellfeed.plan.join_schedule import JoinSchedule
from cellfeed.plan.layout import first_layout
from cellfeed.plan.settings import Settings
from cellfeed.plan.state import COPY, Fingerprint
from cellfeed.rows.columns import Columns
from cellfeed.select.selection import Selection
from cellfeed.stats import Meter
from cellfeed.transforms import name_of


class JoinEngine(EpochEngine):
    """Plans, reads, counts and resumes the epochs of a join.

    Parameters
    ----------
    parts
        The engines of the datasets by name; they have the genes of the join only, and leave no cell out.
    columns
        The columns of these genes in the join, by dataset.
    selection, settings
        The cells of all datasets, one dataset after another, and how they are batched.
    shares, length
        As for :class:`~cellfeed.plan.join_planner.JoinPlanner`.
    gene_names
        The names of the columns of X, before the transform.
    """

    makes_on_devices = False

    def __init__(
        self,
        parts: Mapping[str, Engine],
        columns: Mapping[str, Columns],
        selection: Selection,
        settings: Settings,
        shares: tuple[int, ...] | None,
        length: str | int,
        gene_names: list[str],
    ) -> None:
        self.parts, self.columns, self.selection, self.settings = parts, columns, selection, settings
        self.gene_names = gene_names
        self.meter = Meter()
        planners = {name: part.media.source.planner for name, part in parts.items()}
        self.planner = JoinPlanner(planners, settings, shares, length)
        self.media = JoinMedia(parts, self.planner, self._fingerprint)
        self.epochs: JoinEpochs = JoinEpochs(settings, self.media)
        self.label_counter = LabelCounter(
            {name: codes[:] if name in selection.encoders else None for name, codes in selection.codes.items()},
            settings.batch_size,
            self._expected(),
        )
        self._enter_process()

    @property
    def _fingerprint(self) -> Fingerprint:
        """What the order of an epoch depends on, beside the datasets."""
        shares = self.planner.shares
        return {
            "shares": "numbers of cells" if shares is None else ":".join(map(str, shares)),
            "genes": digest_of_names(self.gene_names),
            "epoch_length": self.planner.length,
            "batch_size": self.settings.batch_size,
            "drop_last": self.settings.drop_last,
            # An epoch of a dataset continues in the next epoch of the join, in the windows that fit in its memory.
            **{f"memory_budget of {name!r}": part.settings.memory_budget for name, part in self.parts.items()},
        }

    @property
    def _schedule(self) -> JoinSchedule:
        """The minibatches of this rank in an epoch that begins now."""
        return self.planner.schedule(find_ranks(self.settings.rank, self.settings.world_size)[1])

    def _expected(self) -> Any:
        """Return the expected copies of each cell in an epoch; ``None`` if each comes once."""
        are_resampled = any(part.resampling for part in self.parts.values())
        if self.planner.shares is None and not are_resampled:
            return None
        schedule = self._schedule
        shares = np.array(schedule.weights) / np.array(schedule.sizes)
        parts = []
        for share, part in zip(shares / shares.min(), self.parts.values(), strict=True):
            own = None if part.resampling is None else part.resampling.expected
            parts.append(np.full(part.selection.n_obs, share) if own is None else own * share)
        return np.concatenate(parts)

    # ------------------------------------------------------------------ descriptions

    def device_memory(self, device: torch.device | None) -> DeviceMemory:
        """Return no memory: minibatches are moved to a device."""
        return DeviceMemory(0, 0)

    @property
    def shares(self) -> dict[str, float]:
        """The share of each dataset in a minibatch, by name."""
        weights = self._schedule.weights
        return {name: weight / sum(weights) for name, weight in zip(self.parts, weights, strict=True)}

    def describe(self) -> str:
        """Describe the cells in one line."""
        shares = ", ".join(f"{name} {share:.3g}" for name, share in self.shares.items())
        n_obs, n_vars = self.shape
        return f"{n_obs:,} cells x {n_vars:,} genes; {shares}; batch_size={self.settings.batch_size}"

    def table(self) -> dict[str, str]:
        """Describe the cells and parameters by short texts, for printing."""
        settings, (n_obs, n_vars) = self.settings, self.shape
        layout = "sparse" if settings.return_sparse_X else "dense"
        return {
            "cells x genes": f"{n_obs:,} x {n_vars:,}",
            **{
                f"of {name}": f"{share:.3g} of each minibatch; {self.parts[name].selection.n_obs:,} cells"
                for name, share in self.shares.items()
            },
            "X": f"{layout}, {settings.X_dtype}",
            "obs": ", ".join(self.selection.codes),
            "minibatches": f"{len(self._schedule):,} per epoch, of {settings.batch_size:,} cells",
            "memory_budget": f"{format_bytes(settings.memory_budget)} of all datasets",
            "transform": name_of(settings.transform) or "none",
        }

    # ------------------------------------------------------------------ iteration

    def _pipeline(self, this: RankEpoch, worker: int, workers: WorkerGroup | None, feed: DeviceFeed | None) -> Pipeline:
        first = first_layout(this.segments, this.world_layout)
        medium, schedule = self.media.get(this.medium), self.planner.schedule(first.world_size)
        monitored = None if workers is None else partial(workers.monitor.watched, worker=worker)
        readers = [
            DatasetReader(
                k, part, self.columns[name], self._value_dtypes, self._first_positions[name],
                medium.begun[name], medium.later[name], schedule, this, self.meter, monitored,
            )
            for k, (name, part) in enumerate(self.parts.items())
        ]  # fmt: skip
        runs = [(run, [reader.cells(run) for reader in readers]) for run in self.epochs.work(this, worker)]
        n_threads = max(1, available_threads() // this.world_layout.num_workers)
        reading = JoinReading(schedule, this.epoch, runs)
        return Pipeline(
            Assembly(self.selection, self.settings, n_threads, self._buffers, feed, this.epoch),
            reading,
            self.meter,
            count_copied=partial(_count, codes=[k for k, own in enumerate(medium.later.values()) if own.name == COPY]),
        )

    @cached_property
    def _first_positions(self) -> dict[str, int]:
        """The position of the first cell of each dataset, by name."""
        n_obs = [part.selection.n_obs for part in self.parts.values()]
        return dict(zip(self.parts, np.cumsum([0, *n_obs]).tolist(), strict=False))

    @cached_property
    def _value_dtypes(self) -> list[np.dtype[Any]]:
        """For each matrix, a type that has the wide values of all datasets."""
        of_parts = []
        for part in self.parts.values():
            resources = part.media.source.planner.resources(1, 1)
            of_parts.append([own.pool_dtype for own in (resources, *resources.further)])
        return [np.result_type(*dtypes) for dtypes in zip(*of_parts, strict=True)]


def _count(obs: torch.Tensor, codes: list[int]) -> int:
    """Return how many cells of a minibatch are of some datasets."""
    return sum(int((obs[:, -1] == code).sum()) for code in codes)
