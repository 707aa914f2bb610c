"""The seam between cellfeed and stores: another kind of source needs no change of plan, rows or loader."""

import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cellfeed import ExperimentDataset, ReadError
from cellfeed.sources.retry import NO_RETRY
from cellfeed.sources.source import OpenReader
from tests.support.fakes import FakeReader
from tests.support.stores import addressed, collect, labelled_obs, write_experiment

N_OBS, N_VARS = 90, 12


@dataclass(frozen=True, eq=False)
class MatrixSource:
    """A source in memory: a matrix and two data frames, whose row ``i`` is joinid ``i``."""

    X: Any
    obs: pd.DataFrame
    var: pd.DataFrame
    geometry: Any
    is_remote: bool = False
    timestamp_ms: int = 0
    identity: None = None

    def __str__(self):
        return "memory"

    def read_obs(self, joinids, what, choose):
        return self.obs[choose(list(self.obs))].iloc[joinids].reset_index(drop=True)

    def read_var(self, joinids, what, choose):
        return self.var[choose(list(self.var))].iloc[joinids].reset_index(drop=True)

    def retries(self, *, n_threads, meter):
        return NO_RETRY

    def open_reader(self, selection, resources, *, verify, meter, retries):
        return OpenReader(FakeReader(self.X[:, selection.var_joinids]), rows_per_read=20, n_reads=2)


def in_memory(path, X, obs):
    """A dataset of an experiment that is deleted; a source in memory takes its place."""
    var = pd.DataFrame({"feature_id": [f"G{k}" for k in range(N_VARS)]})
    uri = write_experiment(path, addressed(N_OBS, N_VARS), obs, var=var)
    dataset = ExperimentDataset(uri, obs_column_names=["label", "soma_joinid"], batch_size=16, seed=3)
    source = MatrixSource(X, obs, var, dataset._engine.selection.geometry)
    object.__setattr__(dataset._engine.selection, "source", source)
    shutil.rmtree(path)
    return dataset


def test_another_source_feeds_the_same_loader(tmp_path):
    """Order, rows, labels, names of genes, splits and the plan."""
    X, obs = addressed(N_OBS, N_VARS), labelled_obs(N_OBS)
    obs["nnz"] = np.diff(X.indptr)
    dataset = in_memory(tmp_path / "s", X, obs)
    rows, codes, sizes = collect(dataset, N_VARS)
    assert np.array_equal(rows, X.toarray()[codes[:, 1]])
    assert sorted(codes[:, 1].tolist()) == list(range(N_OBS))
    assert sizes == [16] * 5 + [10]
    assert dataset.gene_names().tolist() == [f"G{k}" for k in range(N_VARS)]
    train, test = dataset.random_split({"train": 0.8, "test": 0.2}, seed=1, group="donor")
    assert len(collect(train, N_VARS)[0]) + len(collect(test, N_VARS)[0]) == N_OBS
    assert dataset.plan("label").n_obs == N_OBS


def test_rows_of_another_source_are_verified(tmp_path):
    X, obs = addressed(N_OBS, N_VARS), labelled_obs(N_OBS)
    obs["nnz"] = np.diff(X.indptr)
    damaged = X.tolil()
    damaged[17, np.flatnonzero(X[17].toarray())[0]] = 0
    with pytest.raises(ReadError, match="for soma_joinid 17, but obs has nnz="):
        list(in_memory(tmp_path / "s", damaged.tocsr(), obs))
