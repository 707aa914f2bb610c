"""The behaviours that the tests of the published loader require."""

import numpy as np
import pytest
import tiledbsoma as soma
import torch
from torch.utils.data import IterDataPipe

from cellfeed import ExperimentDataPipe, ExperimentDataset
from tests.support.stores import addressed, assert_canonical, collect, write_experiment

pytestmark = pytest.mark.usefixtures("reading_path")

eager = pytest.mark.parametrize("use_eager_fetch", [True, False])


@eager
def test_batch_size_one_is_rank_one(make_store, use_eager_fetch):
    pipe = ExperimentDataPipe(make_store(6), obs_column_names=["label"], shuffle=False, use_eager_fetch=use_eager_fetch)
    minibatches = list(pipe)
    assert len(minibatches) == 6
    X, obs = minibatches[0]
    assert X.shape == (3,)
    assert obs.shape == (1,)
    assert X.tolist() == addressed(6, 3)[0].toarray()[0].tolist()


@eager
@pytest.mark.parametrize("sparse", [True, False])
def test_minibatches_span_chunks(make_store, use_eager_fetch, sparse):
    pipe = ExperimentDataPipe(
        make_store(9),
        obs_column_names=["soma_joinid"],
        batch_size=3,
        shuffle=False,
        soma_chunk_size=2,
        shuffle_chunk_count=1,
        return_sparse_X=sparse,
        use_eager_fetch=use_eager_fetch,
    )
    X, obs, sizes = collect(pipe, 3)
    assert sizes == [3, 3, 3]
    assert obs[:, 0].tolist() == list(range(9))
    assert np.array_equal(X, addressed(9, 3).toarray())


@eager
@pytest.mark.parametrize(("n", "batch", "sizes"), [(6, 3, [3, 3]), (5, 3, [3, 2]), (3, 3, [3]), (10, 4, [4, 4, 2])])
def test_sizes_and_end(make_store, use_eager_fetch, n, batch, sizes):
    pipe = ExperimentDataPipe(make_store(n), batch_size=batch, use_eager_fetch=use_eager_fetch)
    minibatches = iter(pipe)
    assert [len(next(minibatches)[0]) for _ in sizes] == sizes
    with pytest.raises(StopIteration):
        next(minibatches)
    assert len(pipe) == len(sizes)


def test_drop_last(make_store):
    dataset = ExperimentDataset(make_store(10), batch_size=4, drop_last=True)
    assert [len(X) for X, _ in dataset] == [4, 4]
    assert len(dataset) == 2


@eager
def test_joinids_far_from_zero_come_once_each(tmp_path, use_eager_fetch):
    joinids = np.arange(100_000_000, 100_000_020) * 3
    uri = write_experiment(tmp_path / "far", addressed(20, 3), joinids=joinids)
    pipe = ExperimentDataPipe(uri, obs_column_names=["soma_joinid"], use_eager_fetch=use_eager_fetch)
    assert sorted(int(obs[0]) for _, obs in pipe) == joinids.tolist()


@eager
def test_a_query_that_selects_nothing_ends_at_once(make_store, use_eager_fetch):
    dataset = ExperimentDataset(
        make_store(10),
        obs_query=soma.AxisQuery(value_filter="label == 'none'"),
        obs_column_names=["label"],
        use_eager_fetch=use_eager_fetch,
        allow_empty=True,
    )
    assert dataset.shape == (0, 3)
    assert len(dataset) == 0
    assert list(dataset) == []
    assert dataset.plan().n_minibatches == 0


@eager
def test_sparse_equals_dense_and_is_canonical(store, use_eager_fetch):
    make = lambda sparse: ExperimentDataset(  # noqa: E731
        store, batch_size=7, seed=1, return_sparse_X=sparse, use_eager_fetch=use_eager_fetch
    )
    for (dense, _), (sparse, _) in zip(make(False), make(True), strict=True):
        assert sparse.layout == torch.sparse_csr
        assert torch.equal(sparse.to_dense(), dense)
        assert_canonical(sparse)


def test_sparse_with_batch_size_one_keeps_both_dimensions(make_store):
    X, obs = next(iter(ExperimentDataPipe(make_store(6), obs_column_names=["label"], return_sparse_X=True)))
    assert X.shape == (1, 3)
    assert obs.shape == (1,)


def test_chunks_smaller_than_a_minibatch_are_joined(make_store):
    pipe = ExperimentDataPipe(make_store(10), batch_size=3, soma_chunk_size=4, shuffle_chunk_count=1)
    assert collect(pipe, 3)[2] == [3, 3, 3, 1]


@eager
def test_shuffle_keeps_X_with_obs(store, use_eager_fetch):
    dataset = ExperimentDataset(
        store, obs_column_names=["soma_joinid"], batch_size=9, seed=0, use_eager_fetch=use_eager_fetch
    )
    X, obs, _ = collect(dataset, 30)
    assert sorted(obs[:, 0]) == list(range(100))
    assert obs[:, 0].tolist() != list(range(100))
    assert np.array_equal(X, addressed(100, 30).toarray()[obs[:, 0]])


@pytest.mark.parametrize(
    ("n", "worker", "expected"),
    [(6, None, [2, 3]), (12, (1, 2), [6, 7])],
)
def test_distributed(make_store, monkeypatch, n, worker, expected):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    if worker:
        info = torch.utils.data._utils.worker.WorkerInfo(id=worker[0], num_workers=worker[1], seed=0, dataset=None)
        monkeypatch.setattr(torch.utils.data._utils.worker, "_worker_info", info)
    pipe = ExperimentDataPipe(
        make_store(n),
        obs_column_names=["soma_joinid"],
        soma_chunk_size=2,
        shuffle_chunk_count=1,
        shuffle=False,
    )
    assert [int(obs[0]) for _, obs in pipe] == expected


def test_datapipe_is_one_and_takes_the_published_positions(store):
    pipe = ExperimentDataPipe(store, "RNA", "raw", None, None, ["label"], 5, False, 3, True, 4, False, 2, None)
    assert isinstance(pipe, IterDataPipe)
    X, obs = next(iter(pipe))
    assert X.layout == torch.sparse_csr
    assert obs.shape == (5, 1)
    assert pipe.plan().chunk_rows == 4
