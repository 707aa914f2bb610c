"""The small store that is read from S3 under faults, and the dataset that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiledbsoma as soma
from tests.support.stores import addressed, labelled_obs, write_experiment

import cellfeed

N_OBS, N_VARS, DENSITY = 8_192, 1_000, 0.1
MEMORY_BUDGET = "9 MB"  # room for a few hundred cells, so that reading lasts until the end of an epoch
READING_PATHS = {
    "direct": {"CELLFEED_DIRECT": "1", "CELLFEED_PUBLIC_API": "0"},
    "private": {"CELLFEED_DIRECT": "0", "CELLFEED_PUBLIC_API": "0"},
    "public": {"CELLFEED_DIRECT": "0", "CELLFEED_PUBLIC_API": "1"},
}
"""Ways of reading: the array's files, tiledbsoma's private query, and its public API."""


def write(folder: Path | str, n_obs: int = N_OBS) -> Path:
    """Write the store: its values encode their row and column."""
    path = Path(folder) / "cells.soma"
    write_experiment(
        path, addressed(n_obs, N_VARS, DENSITY), labelled_obs(n_obs), extent=64, column_extent=N_VARS, capacity=4096
    )
    return path


def open_dataset(uri: str, config: dict[str, str], **options: Any) -> cellfeed.ExperimentDataset:
    """Open a store and make a dataset of all of it."""
    experiment = soma.open(uri, context=soma.SOMATileDBContext(tiledb_config=config))
    return cellfeed.ExperimentDataset(
        experiment,
        obs_column_names=["soma_joinid"],
        batch_size=128,
        seed=1,
        return_sparse_X=True,
        memory_budget=MEMORY_BUDGET,
        **options,
    )
