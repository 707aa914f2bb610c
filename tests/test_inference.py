"""Results of a model belong to the right cells: in order, each once, from all ranks, and in obsm."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import tiledbsoma as soma
import torch
from hypothesis import given
from hypothesis import strategies as st

import cellfeed
from cellfeed import ExperimentDataPipe, ExperimentDataset, PlanError, SelectionError, inference_dataloader
from cellfeed.loader.inference import even_batch_size
from cellfeed.sources.soma import obsm
from tests.support.processes import torchrun
from tests.support.stores import addressed, labelled_obs, write_experiment

N, G = 100, 30


def rows_of(joinids):
    return addressed(N, G)[joinids].toarray()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("batch_size", [None, 1, 7, 100])
def test_cells_come_in_order_with_their_joinids(store, batch_size, sparse):
    """Over a split of a shuffled dataset that drops its last minibatch: all cells come in order, with their rows."""
    dataset = ExperimentDataset(
        store, obs_column_names=["label"], batch_size=9, seed=3, drop_last=True, return_sparse_X=sparse
    )
    _, test = dataset.random_split([0.6, 0.4], seed=1, stratify="label")
    loader = inference_dataloader(test, batch_size)
    for _ in range(2):  # a second iteration has the same result
        X, obs, joinids = zip(*loader, strict=True)
        assert [len(ids) for ids in joinids[:-1]] == [batch_size or 9] * (len(loader) - 1)
        joinids = torch.cat(joinids)
        assert joinids.tolist() == test.obs_joinids.tolist()
        assert np.array_equal(torch.cat([x.to_dense() for x in X]).numpy(), rows_of(test.obs_joinids))
        labels = dataset.obs_encoders["label"].inverse_transform(torch.cat(obs)[:, 0])
        assert list(labels) == list(labelled_obs(N)["label"].iloc[test.obs_joinids])
    assert test.epoch == 0


def test_a_published_datapipe_is_served_too(store):
    X, obs, joinids = next(iter(inference_dataloader(ExperimentDataPipe(store, obs_column_names=["label"]))))
    assert (X.shape, obs.shape, joinids.tolist()) == ((1, G), (1, 1), [0])


@pytest.mark.parametrize("columns", [["soma_joinid", "label"], ["label", "soma_joinid"], []])
def test_joinids_do_not_change_obs(store, columns):
    """Columns of obs are those of the dataset in their order, with joinids if the user names them."""
    dataset = ExperimentDataset(store, obs_column_names=columns, batch_size=30, seed=0)
    first, ordered = next(iter(dataset)), next(iter(inference_dataloader(dataset)))
    assert first.obs.shape == ordered.obs.shape == (30, len(columns))
    labels = dict(enumerate(columns))
    for k, name in labels.items():
        wanted = ordered.joinids if name == "soma_joinid" else torch.arange(30) % 3
        assert torch.equal(ordered.obs[:, k], wanted)


def test_workers_would_bring_cells_out_of_order(store):
    with pytest.raises(PlanError, match="num_workers=2.*takes 0"):
        inference_dataloader(ExperimentDataset(store), num_workers=2)
    with pytest.raises(PlanError, match="inference_dataloader does not take shuffle=True"):
        inference_dataloader(ExperimentDataset(store), shuffle=True)


@given(st.integers(0, 300), st.integers(1, 7), st.integers(1, 40))
def test_all_ranks_make_as_many_steps(n_obs, world_size, batch_size):
    """If each rank has a cell, all ranks make the same number of steps, and none has more cells than ``batch_size``."""
    size = even_batch_size(n_obs, world_size, batch_size)
    assert 1 <= size <= batch_size
    share = n_obs // world_size
    if size > 1 and share:
        assert -(-share // size) == -(-(share + (n_obs % world_size > 0)) // size)


@pytest.mark.slow
def test_ranks_put_their_pieces_together(make_store, tmp_path):
    """Two ranks of 101 cells and a model with buffers: every rank ends with every embedding, in order."""
    store = make_store(101)
    torchrun(2, "tests.programs.inferring", store, tmp_path)
    ranks = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2)]
    assert ranks[0]["n_minibatches"] == ranks[1]["n_minibatches"]
    sums = addressed(101, 3).sum(axis=1).A1.tolist()
    for rank in ranks:
        assert rank["joinids"] == list(range(101))
        assert rank["sums"] == sums


def test_gathering_refuses_what_is_not_row_for_row():
    with pytest.raises(PlanError, match="soma_joinid 4 occurs more than once"):
        cellfeed.gather_ordered([4, 1, 4], torch.zeros(3, 2))
    with pytest.raises(PlanError, match="must have equally many rows"):
        cellfeed.gather_ordered([4, 1], torch.zeros(3, 2))
    ids, rows = cellfeed.gather_ordered([torch.tensor([5, 6]), torch.tensor([2])], [torch.eye(2), torch.ones(1, 2)])
    assert (ids.tolist(), rows.tolist()) == ([2, 5, 6], [[1, 1], [1, 0], [0, 1]])


@pytest.fixture
def writable(tmp_path):
    joinids = np.arange(20) * 3 + 1
    return write_experiment(tmp_path / "own.soma", addressed(20, 4), labelled_obs(20), joinids=joinids), joinids


def test_an_embedding_is_read_back_with_its_cells(writable):
    """Rows may be written in any order and for some cells only; zeros are values, and the other cells have none."""
    uri, joinids = writable
    ids = joinids[[7, 2, 11]]
    embeddings = np.array([[0.0, 1.5], [2.0, -1.0], [0.25, 0.0]])
    for name in ("X_first", "X_second"):  # obsm is made where it is missing, and kept where it is not
        cellfeed.write_obsm(uri, name, ids, embeddings)
    with soma.open(uri) as experiment:
        query = experiment.axis_query("RNA", obs_query=soma.AxisQuery(coords=(ids,)))
        table = query.obsm("X_second").tables().concat().to_pandas()
        assert sorted(experiment.ms["RNA"].obsm) == ["X_first", "X_second"]
        assert experiment.ms["RNA"].obsm["X_first"].shape == (joinids[-1] + 1, 2)
    assert len(table) == 6
    read = table.pivot(index="soma_dim_0", columns="soma_dim_1", values="soma_data")
    assert np.array_equal(read.loc[ids].to_numpy(), embeddings)


def read_obsm(uri, name):
    with soma.open(uri) as experiment:
        array = experiment.ms["RNA"].obsm[name]
        table = array.read().tables().concat().to_pandas()
        return array.shape, table.pivot(index="soma_dim_0", columns="soma_dim_1", values="soma_data")


def test_an_embedding_is_replaced_where_that_is_asked_for(writable):
    """An embedding may be replaced, also by other cells and dimensions; nothing of the earlier one remains."""
    uri, joinids = writable
    for n_dims in (3, 2, 4):
        cellfeed.write_obsm(uri, "X a/b", joinids[n_dims:], np.full((20 - n_dims, n_dims), n_dims), overwrite=True)
        shape, read = read_obsm(uri, "X a/b")
        assert shape == (joinids[-1] + 1, n_dims)
        assert read.index.tolist() == joinids[n_dims:].tolist()
        assert (read.to_numpy() == n_dims).all()
    with soma.open(uri) as experiment:
        assert list(experiment.ms["RNA"].obsm) == ["X a/b"]


def test_an_embedding_that_was_not_written_to_its_end_is_not_in_obsm(writable, monkeypatch):
    """The name is assigned last: after a failure the earlier embedding remains, and the next attempt succeeds."""
    uri, _ = writable
    cellfeed.write_obsm(uri, "X_a", [1], [[7.0]])

    def killed(*arguments):
        raise KeyboardInterrupt

    for name in ("X_a", "X_b"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(obsm, "_write", killed)
            cellfeed.write_obsm(uri, name, [1], [[8.0]], overwrite=True)
    assert read_obsm(uri, "X_a")[1].to_numpy().tolist() == [[7.0]]
    cellfeed.write_obsm(uri, "X_b", [1], [[9.0]])
    assert read_obsm(uri, "X_b")[1].to_numpy().tolist() == [[9.0]]


@pytest.mark.parametrize("mode", ["r", "w", "closed"])
def test_an_experiment_may_be_a_handle(writable, mode):
    """The handle may be open or closed: its URI and its context are used, and it stays open or closed."""
    uri, joinids = writable
    context = soma.SOMATileDBContext()
    with soma.open(uri, "w" if mode == "w" else "r", context=context) as experiment:
        if mode == "closed":
            experiment.close()
        cellfeed.write_obsm(experiment, "X_a", joinids, np.ones((20, 2)))
        cellfeed.write_obsm(experiment, "X_a", joinids, np.zeros((20, 3)), overwrite=True)
        assert experiment.closed == (mode == "closed")
        with pytest.raises(SelectionError, match="context= goes with a URI; a tiledbsoma.Experiment brings its own"):
            cellfeed.write_obsm(experiment, "X_b", [1], [[1.0]], context=context)
    shape, read = read_obsm(uri, "X_a")
    assert shape == (joinids[-1] + 1, 3)
    assert (read.to_numpy() == 0).all()


def test_changes_of_obsm_have_times_of_their_own(writable, monkeypatch):
    """TileDB does not order changes within a millisecond: an embedding that is replaced could be lost."""
    uri, _ = writable
    waits = []
    wait = obsm._await_next_millisecond
    monkeypatch.setattr(obsm, "_await_next_millisecond", lambda: waits.append((time.time_ns(), wait(), time.time_ns())))
    for value in range(5):
        cellfeed.write_obsm(uri, "X_a", [1], [[value]], overwrite=True)
    assert len(waits) == 2 * 4  # before and after a replaced array is removed
    assert all(begin // 10**6 < end // 10**6 for begin, _, end in waits)
    times = [path.name.split("_")[2] for path in Path(uri.removeprefix("file://"), "ms/RNA/obsm/__group").iterdir()]
    assert len(times) == len(set(times)) >= 9


def test_an_embedding_is_written_at_the_timestamp_of_the_context_of_a_handle(writable):
    """A handle opened at a timestamp is a view of that time, and the embedding is written now."""
    uri, _ = writable
    with soma.open(uri) as experiment:
        before = experiment.tiledb_timestamp_ms
    later = before + 10**9
    with soma.open(uri, tiledb_timestamp=before) as experiment:
        cellfeed.write_obsm(experiment, "X_now", [1], [[1.0]])
        assert "obsm" not in experiment.ms["RNA"]
    with soma.open(uri, context=soma.SOMATileDBContext(timestamp=later)) as experiment:
        cellfeed.write_obsm(experiment, "X_later", [1], [[1.0]])
    with soma.open(uri) as experiment:
        assert list(experiment.ms["RNA"].obsm) == ["X_now"]
    with soma.open(uri, tiledb_timestamp=later) as experiment:
        assert sorted(experiment.ms["RNA"].obsm) == ["X_later", "X_now"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_embedding_is_written_as_a_model_returns_it(writable, dtype):
    """With its gradient, and in a type that NumPy lacks, as under autocast."""
    uri, joinids = writable
    embeddings = torch.linspace(-2, 2, 40, requires_grad=True).reshape(20, 2).to(dtype)
    cellfeed.write_obsm(uri, "X_a", torch.from_numpy(joinids), embeddings)
    assert np.array_equal(read_obsm(uri, "X_a")[1].to_numpy(), embeddings.detach().float().numpy())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_an_embedding_that_is_not_finite_as_float32_is_refused(writable, value):
    """A model that diverged writes nothing; the message names the first cell."""
    uri, _ = writable
    embeddings = np.zeros((3, 2))
    embeddings[1, 0] = value
    with pytest.raises(SelectionError, match=r"row of joinid 4 is \[.*not finite as float32 \(1 of 3 rows"):
        cellfeed.write_obsm(uri, "X_a", [7, 4, 1], embeddings)
    with soma.open(uri) as experiment:
        assert "obsm" not in experiment.ms["RNA"]


def test_an_embedding_that_fits_no_cells_is_refused(writable):
    uri, joinids = writable
    with pytest.raises(SelectionError, match="obs has no soma_joinid 2 "):
        cellfeed.write_obsm(uri, "X_a", [1, 2], np.zeros((2, 3)))
    with pytest.raises(SelectionError, match="more than once"):
        cellfeed.write_obsm(uri, "X_a", [1, 1], np.zeros((2, 3)))
    with pytest.raises(SelectionError, match="a row per joinid"):
        cellfeed.write_obsm(uri, "X_a", joinids, np.zeros((2, 3)))
    with pytest.raises(SelectionError, match="measurement_name='RNA2'.*'RNA'"):
        cellfeed.write_obsm(uri, "X_a", [1], np.zeros((1, 3)), measurement_name="RNA2")
    cellfeed.write_obsm(uri, "X_a", [1], np.zeros((1, 3)))
    with pytest.raises(SelectionError, match="name='X_a' is in obsm already.*overwrite=True"):
        cellfeed.write_obsm(uri, "X_a", [1], np.zeros((1, 3)))
    with pytest.raises(SelectionError, match="name=3 must be text"):
        cellfeed.write_obsm(uri, 3, [1], np.zeros((1, 3)))
    with pytest.raises(SelectionError, match="overwrite='yes' must be True or False"):
        cellfeed.write_obsm(uri, "X_a", [1], np.zeros((1, 3)), overwrite="yes")
