"""AnnData on an object store, read through zarr's own store."""

import numpy as np
import pytest

from cellfeed import ExperimentDataset, SelectionError
from tests.support import s3
from tests.support.stores import collect

pytest.importorskip("s3fs")


@pytest.fixture
def server(monkeypatch):
    with s3.s3_server() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{server.endpoint}")
        monkeypatch.setenv("AWS_DEFAULT_REGION", s3.REGION)
        for name, value in s3.KEYS.items():
            monkeypatch.setenv(name.upper(), value)
        yield server


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_copy_on_an_object_store_is_read(store, server, tmp_path):
    """The rows, labels and order are those of the copy on a local disk; a local copy of it is read afterwards."""
    experiment = ExperimentDataset(store, obs_column_names=["label"], seed=1)
    local = experiment.write_copy(tmp_path / "cells.zarr")
    uri = server.upload(local)
    parameters = {"obs_column_names": ["label"], "batch_size": 16, "seed": 1}
    X, obs, sizes = collect(ExperimentDataset(local, **parameters), experiment.shape[1])
    remote = ExperimentDataset(uri, **parameters, local_copy=tmp_path / "again.zarr")
    assert remote._engine.selection.is_remote
    found = collect(remote, experiment.shape[1])
    assert np.array_equal(found[0].sum(axis=0), X.sum(axis=0))
    assert sorted(found[1].tolist()) == sorted(obs.tolist())
    assert len(collect(remote, experiment.shape[1])[0]) == len(X)
    assert remote.stats().n_obs_from_copy == len(X)
    assert sizes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_nothing_at_a_uri_is_an_error(server):
    with pytest.raises(SelectionError, match=r"s3://cells/none\.zarr"):
        ExperimentDataset("s3://cells/none.zarr")
