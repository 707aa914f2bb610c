"""A copy that is written by the workers of dask: the same bytes, whatever happens to a worker."""

import filecmp
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cellfeed import ExperimentDataset
from cellfeed.loader import copying
from tests.support.stores import collect

distributed = pytest.importorskip("distributed")


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(copying, "CELLS_PER_PART", 30)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def files_of(folder):
    return sorted(path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_is_killed_changes_nothing(store, client, tmp_path):
    """Four parts, of which a killed worker had one: each part has the bytes that it has without a kill."""
    dataset = ExperimentDataset(store, obs_column_names=["soma_joinid"], seed=3)
    whole = dataset.write_copy(tmp_path / "whole.zarr", client=client)
    pids = list(client.run(os.getpid).values())

    def kill():
        while not (tmp_path / "killed.zarr.partial").exists():
            time.sleep(0.002)
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    killed = dataset.write_copy(tmp_path / "killed.zarr", client=client)
    killer.join()
    assert files_of(whole) == files_of(killed)
    assert len(list(whole.glob("dataset_*"))) == 4
    assert all(filecmp.cmp(whole / path, killed / path, shallow=False) for path in files_of(whole))
    (X, obs, _), (Y, copied, _) = (
        collect(each, dataset.shape[1])
        for each in (dataset, ExperimentDataset(killed, obs_column_names=["soma_joinid"], seed=3))
    )
    assert sorted(obs[:, 0].tolist()) == sorted(copied[:, 0].tolist()) == list(range(100))
    assert np.array_equal(X[np.argsort(obs[:, 0])], Y[np.argsort(copied[:, 0])])
