"""Memory and threads of a dataset: reused, bounded by the budget, and released."""

import gc
import threading

import numpy as np
import pytest

from cellfeed import ExperimentDataset
from cellfeed.errors import PlanError, ReadError
from tests.support.stores import addressed, labelled_obs, write_experiment

pytestmark = pytest.mark.usefixtures("reading_path")


def test_a_tensor_that_is_held_never_changes(store):
    """Memory of a minibatch is reused only if nothing refers to it: keep every minibatch, and views of some."""
    dataset = ExperimentDataset(store, obs_column_names=["soma_joinid"], batch_size=5, seed=0)
    expected = addressed(100, 30).toarray()
    for _ in range(3):
        held = [(X, X[1:3], X.numpy(), obs[:, 0]) for X, obs in dataset]
        for X, view, array, joinids in held:
            wanted = expected[joinids]
            assert np.array_equal(X, wanted)
            assert np.array_equal(view, wanted[1:3])
            assert np.array_equal(array, wanted)


def test_a_view_alone_keeps_its_memory(store):
    dataset = ExperimentDataset(store, obs_column_names=["soma_joinid"], batch_size=5, seed=0)
    rows = [(X[0], int(obs[0, 0])) for X, obs in dataset]
    gc.collect()
    list(dataset)
    assert all(np.array_equal(row, addressed(100, 30)[joinid].toarray()[0]) for row, joinid in rows)


def test_buffers_are_used_again(store):
    dataset = ExperimentDataset(store, batch_size=5, seed=0)
    places = {X.data_ptr() for X, _ in dataset}
    assert len(places) <= 5


@pytest.fixture
def ours():
    """A function that returns the threads of cellfeed which have begun during this test."""
    earlier = set(threading.enumerate())
    return lambda: [t for t in threading.enumerate() if t.name.startswith("cellfeed") and t not in earlier]


@pytest.mark.parametrize("how", ["break", "exception", "garbage"])
def test_no_thread_outlives_its_iterator(store, how, ours):
    dataset = ExperimentDataset(store, batch_size=2, soma_chunk_size=4, shuffle_chunk_count=2)
    if how == "break":
        for _ in dataset:
            break
    elif how == "exception":
        with pytest.raises(KeyError):
            for _ in dataset:
                raise KeyError
    else:
        kept = iter(dataset)
        next(kept)
        assert ours()
        del kept
    gc.collect()
    assert not ours()


def test_a_store_that_is_gone_is_an_error_with_its_cause(tmp_path, ours):
    import shutil

    uri = write_experiment(tmp_path / "gone", addressed(20, 3))
    dataset = ExperimentDataset(uri)
    shutil.rmtree(uri)
    with pytest.raises(ReadError, match="reading soma_joinid .* failed") as caught:
        list(dataset)
    assert caught.value.__cause__ is not None
    assert not ours()


def test_a_smaller_budget_shuffles_fewer_chunks_together(tmp_path):
    uri = write_experiment(tmp_path / "long", addressed(4000, 10), extent=50, capacity=200)
    small, large = (ExperimentDataset(uri, batch_size=4, memory_budget=budget).plan() for budget in ("400 KB", "2 GiB"))
    assert small.chunks_per_block < large.chunks_per_block == large.n_chunks


@pytest.mark.slow
def test_nnz_in_obs_bounds_memory(tmp_path):
    """If obs has nnz, a window in joinid order is sized by the neighbours with the largest nnz, not by the mean."""
    X = addressed(400, 50, 0.05).tolil()
    X[300:] = addressed(100, 50, 1.0)
    X = X.tocsr()
    obs = labelled_obs(400)
    flat = write_experiment(tmp_path / "flat", X, obs, extent=50, capacity=1000)
    obs["nnz"] = np.diff(X.indptr)
    counted = write_experiment(tmp_path / "counted", X, obs, extent=50, capacity=1000)

    def chunks(uri, budget):
        try:
            return ExperimentDataset(uri, shuffle=False, batch_size=1, memory_budget=budget).plan().chunks_per_block
        except PlanError:
            return 0

    pairs = [(chunks(counted, budget), chunks(flat, budget)) for budget in range(200_000, 3_000_000, 50_000)]
    assert all(a <= b for a, b in pairs)
    assert any(0 < a < b for a, b in pairs)
    assert ExperimentDataset(counted)._engine.selection.nnz.dtype == np.uint16
