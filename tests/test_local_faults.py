"""Faults of a local store while it is read: the result is an error with its cause, or exactly the right cells."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tiledbsoma as soma

import cellfeed
from cellfeed import CellfeedError, ExperimentDataset, ReadError
from tests.support.processes import PATIENCE_S
from tests.support.stores import addressed, labelled_obs, write_experiment

N_OBS, N_VARS = 400, 30


@pytest.fixture(params=["direct", "tiledb"])
def reader(request, monkeypatch):
    monkeypatch.setenv("CELLFEED_DIRECT", "1" if request.param == "direct" else "0")
    return request.param


@pytest.fixture
def uri(tmp_path):
    return write_experiment(tmp_path / "cells", addressed(N_OBS, N_VARS), labelled_obs(N_OBS), n_fragments=2)


def make(uri):
    """A dataset that reads a few chunks ahead of the loop, and never the whole store at once."""
    chunks = {"soma_chunk_size": 8, "shuffle_chunk_count": 2, "memory_budget": "100 KB"}
    return ExperimentDataset(uri, obs_column_names=["soma_joinid"], batch_size=10, seed=3, **chunks)


def all_right(minibatches):
    """Check each cell, and return the number of cells."""
    expected = addressed(N_OBS, N_VARS).toarray()
    seen = []
    for X, obs in minibatches:
        np.testing.assert_array_equal(X.numpy(), expected[obs[:, 0].numpy()])
        seen += obs[:, 0].tolist()
    assert len(set(seen)) == len(seen)
    return len(seen)


def data_files(uri, name="*.tdb"):
    return sorted(Path(uri, "ms/RNA/X/raw/__fragments").glob(f"*/{name}"))


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_store_deleted_while_training(uri, reader, num_workers):
    """Cells that were read before the deletion are right; the epoch then ends in an error, as do the next epochs."""
    loader = cellfeed.experiment_dataloader(make(uri), num_workers)
    iterator = iter(loader)
    next(iterator)
    shutil.rmtree(uri)
    with pytest.raises(ReadError, match="soma_joinid"):
        all_right(iterator)
    for _ in range(1 if num_workers else 2):  # starting a worker takes seconds
        with pytest.raises(ReadError):
            list(loader)


def test_a_store_deleted_before_the_labels_are_read(uri, reader):
    dataset = make(uri)
    shutil.rmtree(uri)
    for ask in (lambda: dataset.random_split([0.5, 0.5], stratify="label"), lambda: dataset.plan("label")):
        with pytest.raises(CellfeedError, match=r"column 'label' of .* cannot be read"):
            ask()


def test_a_store_overwritten_while_training(uri, reader, tmp_path):
    """The values of another experiment at the same place are never yielded."""
    other = write_experiment(tmp_path / "other", addressed(N_OBS, N_VARS) * 1000, labelled_obs(N_OBS), n_fragments=2)
    dataset = make(uri)
    iterator = iter(dataset)
    next(iterator)
    shutil.rmtree(uri)
    shutil.move(other, uri)
    with pytest.raises(ReadError):
        all_right(iterator)
    with pytest.raises(ReadError, match="is not the one from which cells were selected"):
        all_right(dataset)


def test_values_written_later_do_not_come(uri, reader):
    """The timestamp at which the experiment was opened is kept."""
    dataset = make(uri)
    with soma.open(f"{uri}/ms/RNA/X/raw", "w") as array:
        import pyarrow as pa

        column = np.zeros(1, np.int64)
        array.write(pa.table({"soma_dim_0": column, "soma_dim_1": column + 1, "soma_data": np.ones(1, np.float32)}))
    assert all_right(dataset) == N_OBS


@pytest.mark.parametrize("name", ["a0.tdb", "d0.tdb", "d1.tdb", "__fragment_metadata.tdb"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_fragments(uri, reader, name, kept):
    dataset = make(uri)
    for file in data_files(uri, name):
        os.truncate(file, int(file.stat().st_size * kept))
    with pytest.raises(ReadError) as caught:
        all_right(dataset)
    assert uri in str(caught.value)


@pytest.mark.parametrize("folder", ["__schema", "__commits", "__fragments"])
def test_lost_folders(uri, reader, folder):
    dataset = make(uri)
    shutil.rmtree(Path(uri, "ms/RNA/X/raw", folder))
    if (reader, folder) == ("direct", "__schema"):  # known since the dataset was made
        assert all_right(dataset) == N_OBS
    else:
        with pytest.raises(ReadError):
            all_right(dataset)


UNREADABLE = """
import os, sys, cellfeed
uri, *files = sys.argv[1:]
dataset = cellfeed.ExperimentDataset(uri, batch_size=10, seed=3)
sparse = cellfeed.ExperimentDataset(uri, batch_size=10, seed=3, return_sparse_X=True)
list(sparse)  # all that is needed is loaded
for file in files:
    os.chmod(file, 0)
if os.geteuid() == 0:
    os.seteuid(65534)  # root may read everything
from cellfeed.sources.soma.tiles.index import _load_fragments
_load_fragments.cache_clear()
try:
    list(sparse)
except cellfeed.ReadError as error:
    print("ReadError", error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
@pytest.mark.parametrize("name", ["a0.tdb", "__fragment_metadata.tdb"])
def test_unreadable_files(reader, name):
    """A process that may not read a file says so."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        uri = write_experiment(Path(folder) / "cells", addressed(40, 5))
        command = [sys.executable, "-c", UNREADABLE, uri, *map(str, data_files(uri, name))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.startswith("ReadError"), done.stdout + done.stderr
    assert "ermission" in done.stdout or "annot open" in done.stdout


NO_MEMORY = """
import gc, resource, sys, cellfeed
uri, form = sys.argv[1:]
parameters = {"seed": 3, "return_sparse_X": form == "sparse", "memory_budget": "8 GiB"}
dataset = cellfeed.ExperimentDataset(uri, batch_size=4000, **parameters)
next(iter(cellfeed.ExperimentDataset(uri, batch_size=10, **parameters)))  # compiled, and threads have their stacks
gc.collect()  # memory that is freed later would be enough
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), used + (1 << 20)))
held = []
try:
    while True:
        held.append(bytearray(1 << 20))  # what was freed before
except MemoryError:
    del held[-2:]
try:
    n = sum(len(X) for X, obs in dataset)
    print("right" if n == 4000 else "wrong", n)
except cellfeed.CellfeedError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    X = addressed(4000, 12_000, density=0.05)
    return write_experiment(
        tmp_path_factory.mktemp("wide") / "cells", X, extent=500, column_extent=12_000, capacity=100_000
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_too_little_memory_for_the_budget(wide, reader, form):
    """A budget that exceeds the memory of the machine ends in an error that says so, not in a hang."""
    command = [sys.executable, "-c", NO_MEMORY, wide, form]
    one_heap = {**os.environ, "MALLOC_ARENA_MAX": "1"}  # heaps of other threads have reserves, which may be enough
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=one_heap)
    assert done.stdout.startswith("ReadError"), done.stdout + done.stderr
    assert any(word in done.stdout for word in ("memory", "alloc", "thread"))


def _lacking_memory(error):
    def transform(X):
        raise error

    return transform


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=["Python", "PyTorch"]
)
def test_too_little_memory_for_a_minibatch(uri, error):
    dataset = ExperimentDataset(uri, transform=_lacking_memory(error), batch_size=16, memory_budget="1 GiB")
    message = r"out of memory while making a minibatch \(.*memory_budget=1 GiB.*batch_size=16.*reduce memory_budget"
    with pytest.raises(ReadError, match=message) as caught:
        list(dataset)
    assert caught.value.__cause__ is error
