"""A copy that is written by the workers of dask: the same bytes, whatever happens to a worker."""

import filecmp
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cellfeed import ExperimentDataset
from cellfeed.command.cli import main
from cellfeed.loader import copying
from tests.support.stores import collect

distributed = pytest.importorskip("distributed")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(copying, "CELLS_PER_PART", 30)


@pytest.fixture
def client():
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def files_of(folder):
    return sorted(path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())


def values_of(dataset):
    """X of all 100 cells in the order of their joinids, each once."""
    X, obs, _ = collect(dataset, dataset.shape[1])
    assert sorted(obs[:, 0].tolist()) == list(range(100))
    return X[np.argsort(obs[:, 0])]


@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_is_killed_changes_nothing(store, client, tmp_path):
    """Four parts, of which a killed worker had one: each part has the bytes that it has without a kill."""
    dataset = ExperimentDataset(store, obs_column_names=["soma_joinid"], seed=3)
    whole = dataset.write_copy(tmp_path / "whole.zarr", client=client)
    pids = list(client.run(os.getpid).values())

    def kill():
        while not any((tmp_path / f"killed.zarr{ending}").exists() for ending in (".partial", "")):
            time.sleep(0.002)
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    killed = dataset.write_copy(tmp_path / "killed.zarr", client=client)
    killer.join()
    assert files_of(whole) == files_of(killed)
    assert len(list(whole.glob("dataset_*"))) == 4
    assert all(filecmp.cmp(whole / path, killed / path, shallow=False) for path in files_of(whole))
    assert np.array_equal(values_of(dataset), values_of(ExperimentDataset(killed, obs_column_names=["soma_joinid"])))


@pytest.mark.filterwarnings("ignore")
def test_the_command_starts_workers(store, tmp_path, capsys):
    """Two processes write a collection of four parts, which has each cell once, and all values."""
    assert main(["copy", store, str(tmp_path / "copy.zarr"), "--workers", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(list((tmp_path / "copy.zarr").glob("dataset_*"))) == 4
    source, copied = (
        values_of(ExperimentDataset(path, obs_column_names=["soma_joinid"])) for path in (store, result["path"])
    )
    assert np.array_equal(source, copied)
    assert result["nnz"] == np.count_nonzero(source)


def test_workers_without_dask_name_its_extra(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["copy", store, str(tmp_path / "copy.zarr"), "--workers", "2"]) == 2
    assert '--workers=2 needs dask, which is not installed: pip install "cellfeed[dask]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
