"""Situations in which other loaders silently yield nothing, or the wrong data."""

import subprocess
import sys
import time

import numpy as np
import pytest
import tiledbsoma as soma
import torch

from cellfeed import ExperimentDataset, PlanError, SelectionError
from cellfeed.transforms import Compose, Log1p
from tests.support.processes import PATIENCE_S


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_a_transform_that_loses_rows_or_returns_nothing_is_an_error(store, sparse, batch_size):
    """Rows of X would belong to other cells than those of obs, as after a filter of cells inside a transform."""

    def in_place(X):
        (X.values() if sparse else X).neg_()

    def filtered(X):
        return X.to_dense()[:0]

    for transform, message in {
        in_place: "in_place.* returned None; it must return X",
        filtered: "must return one row per cell",
        torch.sum: "must return one row per cell",
        Compose(Log1p(), filtered): "must return one row per cell",
    }.items():
        dataset = ExperimentDataset(store, transform=transform, batch_size=batch_size, return_sparse_X=sparse, seed=0)
        with pytest.raises(PlanError, match=message):
            next(iter(dataset))


def test_a_transform_may_return_rows_of_any_width_and_type(store):
    for transform in (lambda X: X[:, :3], lambda X: X.numpy(), lambda X: X.sum(1), lambda X: (X, X.sum(1))):
        assert sum(len(obs) for _, obs in ExperimentDataset(store, transform=transform, seed=0)) == 100


def test_no_genes_and_parts_without_cells_are_errors(store):
    """A loop over them would do nothing."""
    dataset = ExperimentDataset(store, seed=0)
    with pytest.raises(SelectionError, match="genes=\\[\\] selects nothing"):
        dataset.select_genes([])
    with pytest.raises(PlanError, match=r"part 1 of \[0.999, 0.001\] would have none of 100 cells"):
        dataset.random_split([0.999, 0.001])
    assert [part.shape[0] for part in dataset.random_split([1.0, 0.0])] == [100, 0]


@pytest.mark.parametrize("sign", "#?;")
def test_a_path_that_tiledb_cannot_read_is_named(tmp_path, sign):
    with pytest.raises(SelectionError, match=f"has '[{sign}]' in its path, where TileDB ends the path"):
        ExperimentDataset(tmp_path / f"my{sign}store")


def test_threads_of_random_numbers_are_left_alone(store):
    """Neither do the user's generators change the order, nor does the dataset change them."""
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - what users seed
    expected = torch.rand(1), np.random.rand()  # noqa: NPY002
    orders = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        dataset = ExperimentDataset(store, obs_column_names=["soma_joinid"], seed=0)
        orders.append([obs[:, 0].tolist() for _, obs in dataset])
        if seed == 3:
            assert (torch.rand(1), np.random.rand()) == expected  # noqa: NPY002
    assert orders[0] == orders[1]


def test_what_the_user_does_to_a_minibatch_stays_in_it(store):
    """In place, held in part, or as NumPy's view: later minibatches are made in other memory."""
    dataset = ExperimentDataset(store, obs_column_names=["soma_joinid"], batch_size=8, seed=0)
    with soma.open(f"{store}/ms/RNA/X/raw") as array:
        truth = array.read((slice(0, 99),)).coos((100, 30)).concat().to_scipy().toarray()
    kept = []
    for X, obs in dataset:
        assert np.array_equal(X.numpy(), truth[obs[:, 0].numpy()])
        kept.append((X[:2].numpy(), obs[:2, 0].numpy()))
        X[2:].mul_(-1)
    for X, joinids in kept:
        assert np.array_equal(X, truth[joinids])


def test_checks_of_sparse_tensors_may_be_on(store):
    """As users of sparse gradients have them for their whole process."""
    with torch.sparse.check_sparse_tensor_invariants():
        dataset = ExperimentDataset(store, return_sparse_X=True, X_dtype="float16", seed=0)
        assert sum(len(X) for X, _ in dataset) == 100


def test_a_store_written_later_than_this_machine_thinks_it_is_is_named(store, monkeypatch):
    """Clocks of a cluster differ, and TileDB does not see what will be written."""
    with pytest.raises(
        SelectionError, match=r"was written at 20.*after 1970-01-01 00:00:01.000.*timestamp of context="
    ):
        ExperimentDataset(store, context=soma.SOMATileDBContext(timestamp=1000))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86400)
    with pytest.raises(SelectionError, match=r"the time of this machine.*or set the clock"):
        ExperimentDataset(store)


NO_FOLDER = """
import os, sys, tempfile, cellfeed, tiledbsoma  # Python itself imports some packages from no such folder
folder = tempfile.mkdtemp()
os.chdir(folder)
os.rmdir(folder)
try:
    cellfeed.ExperimentDataset(sys.argv[1])
except cellfeed.SelectionError as error:
    print(error)
"""

NO_MEMORY = """
import resource, sys, cellfeed, tiledbsoma
tiledbsoma.open(sys.argv[1]).close()
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    cellfeed.ExperimentDataset(sys.argv[1])
except cellfeed.SelectionError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a folder in use cannot be removed, or RLIMIT_AS is unknown")
@pytest.mark.parametrize(
    ("program", "message"),
    [
        (NO_FOLDER, "The working folder of this process does not exist any more"),
        (NO_MEMORY, "There is not enough memory"),
    ],
)
def test_what_tiledb_lacks_when_it_starts_is_named(store, program, message):
    """A folder of scratch that was cleaned, and a limit of addresses that its buffers exceed."""
    done = subprocess.run([sys.executable, "-c", program, store], capture_output=True, text=True, timeout=PATIENCE_S)
    assert message in done.stdout, done.stdout + done.stderr
    assert "cellfeed.obs_filter" not in done.stdout
