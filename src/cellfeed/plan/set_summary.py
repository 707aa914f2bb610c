"""The figures of an epoch of sets before X is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cellfeed._checks import format_bytes
from cellfeed._tabular import Tabular


@dataclass(frozen=True)
class SetsPlan(Tabular):
    """The result of :meth:`cellfeed.CellSets.plan`; printed, and shown in a notebook, as a table.

    Attributes
    ----------
    n_obs, n_controls
        Perturbed cells of an epoch, each counted once, and controls that match them.
    n_groups, n_sets
        Groups that have sets, and sets of an epoch, of all ranks.
    n_minibatches
        Minibatches per epoch of this rank.
    set_size
        Cells in a set.
    n_padded
        Places of an epoch that have a repeated cell, whose mask is False.
    n_left_out
        Perturbed cells in no set of an epoch, with ``remainder="drop"``.
    held_bytes
        Bytes of the cells in memory. Before they are read it is an estimate from metadata for counts up to 255, and an
        upper limit if only some genes are selected.
    minibatch_bytes
        Bytes of the minibatches in memory.
    memory_budget
        Bytes that the dataset may hold; half of it is for the cells, and half for reading, and then for minibatches.

    Examples
    --------
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=0)
    >>> sets = dataset.group_batches(by=["phase"], set_size=16, control="G1")
    >>> sets.plan().n_sets, sets.plan().n_padded
    (14, 25)
    """

    n_obs: int
    n_controls: int
    n_groups: int
    n_sets: int
    n_minibatches: int
    set_size: int
    n_padded: int
    n_left_out: int
    held_bytes: int
    minibatch_bytes: int
    memory_budget: int

    def _table(self) -> Mapping[str, str]:
        rest = f"{self.n_padded:,} places padded, {self.n_left_out:,} cells left out"
        return {
            "cells": f"{self.n_obs:,} perturbed, {self.n_controls:,} controls",
            "sets": f"{self.n_sets:,} of {self.set_size:,} cells, in {self.n_groups:,} groups; {rest}",
            "minibatches": f"{self.n_minibatches:,} per epoch of this rank",
            "memory": f"up to {format_bytes(self.held_bytes)} of cells and {format_bytes(self.minibatch_bytes)} of "
            f"minibatches, within {format_bytes(self.memory_budget)}",
        }
