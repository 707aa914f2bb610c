"""The dataset over real stores: epochs, splits, ranks, plans, contexts and errors."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tiledbsoma as soma

from cellfeed import ExperimentDataPipe, ExperimentDataset
from cellfeed.errors import PlanError, ReadError
from tests.support.processes import PATIENCE_S
from tests.support.stores import addressed, assert_canonical, collect, labelled_obs, write_experiment

pytestmark = pytest.mark.usefixtures("reading_path")


def joinids_of(dataset):
    return [int(j) for minibatch in dataset for j in np.atleast_2d(minibatch[1].numpy())[:, -1]]


def test_epochs_differ_and_set_epoch_reproduces_them(store):
    """Two epochs differ without a call of ``set_epoch`` (the successor of the published loader repeats one order)."""
    dataset = ExperimentDataset(store, obs_column_names=["soma_joinid"], seed=5, batch_size=10)
    epochs = [joinids_of(dataset) for _ in range(3)]
    assert len(set(map(tuple, epochs))) == 3
    dataset.set_epoch(1)
    assert joinids_of(dataset) == epochs[1]
    assert joinids_of(dataset) == epochs[2]
    dataset.set_epoch(0)
    assert dataset.epoch == 0
    assert joinids_of(dataset) == epochs[0]


@pytest.mark.slow
def test_determinism_in_another_process(store):
    code = (
        "import sys, cellfeed, numpy as np\n"
        f"ds = cellfeed.ExperimentDataset({store!r}, obs_column_names=['soma_joinid'], seed=5, batch_size=10)\n"
        "print([int(j) for _, obs in ds for j in obs[:, 0]])"
    )
    here = joinids_of(ExperimentDataset(store, obs_column_names=["soma_joinid"], seed=5, batch_size=10))
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert json.loads(there.stdout) == here


def test_without_a_seed_orders_differ_and_the_seed_can_be_had(store):
    a, b = (ExperimentDataset(store, obs_column_names=["soma_joinid"]) for _ in range(2))
    again = ExperimentDataset(store, obs_column_names=["soma_joinid"], seed=a.seed)
    order = joinids_of(a)
    assert order == joinids_of(again)
    assert order != joinids_of(b)


def test_fetching_ahead_does_not_change_what_comes(store):
    one, two = (
        ExperimentDataset(store, obs_column_names=["soma_joinid"], seed=5, use_eager_fetch=e) for e in (True, False)
    )
    assert joinids_of(one) == joinids_of(two)


def test_scattered_cells_and_genes_empty_rows_and_silent_genes(tmp_path):
    """Gaps in both axes, cells without a value, genes without one; columns follow ascending var joinids."""
    X = addressed(60, 20, 0.2).tolil()
    X[::7] = 0
    X[:, ::5] = 0
    X = X.tocsr()
    X.eliminate_zeros()
    joinids, var_joinids = np.arange(60) * 11 + 5, np.arange(20) * 3 + 2
    uri = write_experiment(tmp_path / "gaps", X, joinids=joinids, var_joinids=var_joinids)
    cells, genes = [0, 1, 7, 13, 40, 41, 59], [0, 4, 5, 11, 19]
    dataset = ExperimentDataset(
        uri,
        obs_query=soma.AxisQuery(coords=(joinids[cells].tolist(),)),
        var_query=soma.AxisQuery(coords=(var_joinids[genes].tolist(),)),
        obs_column_names=["soma_joinid"],
        batch_size=3,
        shuffle=False,
    )
    ours, obs, _ = collect(dataset, len(genes))
    assert obs[:, 0].tolist() == joinids[cells].tolist()
    assert np.array_equal(ours, X.toarray()[np.ix_(cells, genes)])
    assert dataset.var_joinids.tolist() == var_joinids[genes].tolist()
    assert dataset.obs_joinids.tolist() == joinids[cells].tolist()


def test_fragments_that_overlap_give_sorted_rows(tmp_path):
    X = addressed(30, 12, 0.8)
    shuffled = X.tocoo()
    order = np.random.default_rng(0).permutation(shuffled.nnz)
    shuffled.row, shuffled.col, shuffled.data = shuffled.row[order], shuffled.col[order], shuffled.data[order]
    for duplicates in (True, False):
        uri = write_experiment(
            tmp_path / f"fragments {duplicates}", shuffled, n_fragments=4, allows_duplicates=duplicates
        )
        dataset = ExperimentDataset(uri, batch_size=30, shuffle=False, return_sparse_X=True)
        (sparse, _) = next(iter(dataset))
        assert np.array_equal(sparse.to_dense().numpy(), X.toarray())
        assert_canonical(sparse)


def test_duplicates_in_the_store_are_an_error_with_its_cause(tmp_path):
    X = addressed(10, 4)
    uri = write_experiment(tmp_path / "twice", X)
    with soma.open(f"{uri}/ms/RNA/X/raw", "w") as array:
        import pyarrow as pa

        array.write(pa.table({"soma_dim_0": [3], "soma_dim_1": [int(X[3].indices[0])], "soma_data": np.float32([9])}))
    with pytest.raises(ReadError, match="more than one value for soma_joinid 3"):
        list(ExperimentDataset(uri))


def test_from_query_and_an_open_experiment_and_a_uri_agree(store):
    parameters = {"obs_column_names": ["soma_joinid"], "seed": 3, "batch_size": 8}
    with soma.open(store) as experiment:
        query = soma.AxisQuery(value_filter="label == 'type 1'")
        of_query = ExperimentDataset.from_query(experiment.axis_query("RNA", obs_query=query), **parameters)
        pipe_of_query = ExperimentDataPipe.from_query(experiment.axis_query("RNA", obs_query=query), **parameters)
        of_open = ExperimentDataset(experiment, obs_query=query, **parameters)
    of_uri = ExperimentDataset(store, obs_query=query, **parameters)
    assert isinstance(pipe_of_query, ExperimentDataPipe)
    assert joinids_of(of_query) == joinids_of(pipe_of_query) == joinids_of(of_open) == joinids_of(of_uri)


def test_a_split_reads_its_own_cells_only_and_keeps_them_over_epochs(store):
    """The published loader's split masks positions of a newly shuffled stream: test cells are used for training."""
    dataset = ExperimentDataset(store, obs_column_names=["label", "soma_joinid"], seed=0, batch_size=7)
    parts = dataset.random_split({"train": 0.7, "val": 0.2, "test": 0.1}, seed=4)
    cells = [[set(joinids_of(part)) for _ in range(3)] for part in parts]
    assert all(a == b == c for a, b, c in cells)
    assert [len(a) for a, _, _ in cells] == [70, 20, 10]
    assert set.union(*(a for a, _, _ in cells)) == set(range(100))
    assert parts[1].stats().n_obs == 60
    halves = parts[0].random_split([0.5, 0.5], seed=4)
    assert set(joinids_of(halves[0])) | set(joinids_of(halves[1])) == cells[0][0]
    assert halves[0].obs_encoders["label"] is dataset.obs_encoders["label"]


def test_split_by_columns_that_no_encoder_holds(store):
    dataset = ExperimentDataset(store, obs_column_names=["soma_joinid"], batch_size=7)
    obs = labelled_obs(100)
    train, test = dataset.random_split([0.6, 0.4], 1, group="donor")
    donors = [set(obs["donor"].iloc[joinids_of(part)]) for part in (train, test)]
    assert not donors[0] & donors[1]
    train, test = dataset.random_split([0.5, 0.5], 1, stratify="label")
    counts = [obs["label"].iloc[joinids_of(part)].value_counts() for part in (train, test)]
    assert (counts[0] - counts[1]).abs().max() <= 2
    with pytest.raises(ValueError, match="no column 'donr'; did you mean 'donor'"):
        dataset.random_split([0.5, 0.5], group="donr")
    with pytest.raises(PlanError, match="group= names a column of 2 distinct values; 3 parts"):
        dataset.random_split([0.5, 0.25, 0.25], group="flag")


def test_pickled_datasets_read_the_same_cells(store):
    dataset = ExperimentDataset(store, obs_column_names=["label", "soma_joinid"], seed=2)
    copy = pickle.loads(pickle.dumps(dataset))
    assert joinids_of(copy) == joinids_of(dataset)
    pipe = pickle.loads(pickle.dumps(ExperimentDataPipe(store, seed=2, obs_column_names=["soma_joinid"])))
    assert isinstance(pipe, ExperimentDataPipe)
    assert sorted(joinids_of(pipe)) == list(range(100))


def test_plan_says_what_happens_before_it_does(store):
    dataset = ExperimentDataset(store, batch_size=8)
    plan = dataset.plan()
    assert (plan.n_obs, plan.n_vars, plan.n_minibatches) == (100, 30, 13)
    assert plan.chunk_rows == 100 / 13  # row-blocks of 8
    assert plan.chunks_per_block == plan.n_chunks == 13
    assert plan.effective_batch_size == 8
    assert "minibatches" in str(plan)
    assert dataset.stats().nnz == 0
    small = ExperimentDataset(store, batch_size=8, soma_chunk_size=2, shuffle_chunk_count=5).plan()
    assert (small.chunk_rows, small.chunks_per_block, small.n_chunks) == (2, 5, 50)
    assert small.decode_amplification > plan.decode_amplification


def test_a_dataset_prints_as_a_table_and_represents_itself_in_a_line(store):
    dataset = ExperimentDataset(store, obs_column_names=["label", "soma_joinid"], seed=2, return_sparse_X=True)
    shown = dict(line.split("  ", 1) for line in str(dataset).splitlines())
    assert {name: value.strip() for name, value in shown.items()} == {
        "cells x genes": "100 x 30",
        "X": "RNA/raw, sparse, float32",
        "obs": "label, soma_joinid",
        "minibatches": "128 cells each",
        "order": "shuffled, seed=2",
        "transform": "none",
    }
    assert repr(dataset) == "ExperimentDataset(100 cells x 30 genes of RNA/raw, batch_size=128, seed=2)"


def test_parts_are_told_apart_by_what_they_print(store):
    """Each has its name, and the arguments that made it."""
    train, test = ExperimentDataset(store, seed=2).random_split({"train": 0.8, "test": 0.2}, seed=1, stratify="label")
    assert "train (weights=[0.8, 0.2], seed=1, stratify='label')\n" in str(train)
    assert "test (weights=[0.8, 0.2], seed=1, stratify='label')\n" in str(test)
    inner, outer = next(train.folds(5, seed=3))
    assert "train (weights=[0.8, 0.2], seed=1, stratify='label'); test (folds=5, seed=3, fold=0)\n" in str(outer)
    assert "resampled to 50 cells per epoch" in str(inner.resample(n_obs=50))


def test_the_users_context_and_timestamp_are_used_again(tmp_path, reading_path):
    """Settings of the user are kept, defaults are added, and later writes are not read."""
    uri = write_experiment(tmp_path / "pinned", addressed(20, 3))
    config = {
        "vfs.s3.region": "eu-west-9",
        "vfs.s3.endpoint_override": "localhost:1",
        "sm.mem.malloc_trim": "true",
    }
    context = soma.SOMATileDBContext(tiledb_config=config)
    with soma.open(uri, context=context) as experiment:
        dataset = ExperimentDataset(experiment, batch_size=20, shuffle=False)
        pinned = experiment.tiledb_timestamp_ms
    address = dataset._engine.selection.source.X
    assert address.timestamp_ms == pinned
    array = address.open(1 << 20)
    opened = array.context.tiledb_config
    array.close()
    if reading_path == "public":  # it cannot show that the user has set TileDB's default
        del config["sm.mem.malloc_trim"]
    assert {key: opened[key] for key in config} == config
    import pyarrow as pa

    with soma.open(f"{uri}/ms/RNA/X/raw", "w", tiledb_timestamp=pinned + 1) as target:
        target.write(pa.table({"soma_dim_0": [0], "soma_dim_1": [0], "soma_data": np.float32([77])}))
    X, _, _ = collect(dataset, 3)
    assert np.array_equal(X, addressed(20, 3).toarray())


def test_secrets_of_the_context_are_not_shown(tmp_path):
    uri = write_experiment(tmp_path / "secret", addressed(5, 3))
    context = soma.SOMATileDBContext(tiledb_config={"vfs.s3.aws_secret_access_key": "hunter2"})
    dataset = ExperimentDataset(uri, context=context)
    assert "hunter2" not in repr(dataset) + repr(dataset._engine.selection) + str(dataset.plan()) + str(dataset.stats())


def test_ranks_are_found_when_iteration_begins(store, monkeypatch):
    """A dataset that is made before ranks are known yields the cells of its rank (a peer fixes its rank too early)."""
    dataset = ExperimentDataset(store, obs_column_names=["soma_joinid"], batch_size=10, seed=0)
    cells = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        dataset.set_epoch(3)
        assert len(dataset) == 5
        cells.append(set(joinids_of(dataset)))
    assert not cells[0] & cells[1]
    assert len(cells[0] | cells[1]) == 100
    explicit = ExperimentDataset(store, obs_column_names=["soma_joinid"], seed=0, rank=0, world_size=4)
    assert len(joinids_of(explicit)) == 25  # given ranks win over the environment


def test_padded_ranks_say_which_cells_repeat(store, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    real = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        dataset = ExperimentDataset(
            store, obs_column_names=["soma_joinid"], batch_size=10, seed=0, rank_remainder="pad", return_sparse_X=True
        )
        minibatches = list(dataset)
        assert sum(len(m.mask) for m in minibatches) == 34
        real += [int(j) for m in minibatches for j in m.obs[m.mask, 0]]
    assert sorted(real) == list(range(100))


def test_plan_knows_how_little_the_order_of_joinids_mixes(store):
    dataset = ExperimentDataset(store, obs_column_names=["donor"], shuffle=False, batch_size=8)
    predicted = dataset.plan(label="donor").effective_batch_size
    assert dataset.plan().effective_batch_size < 2  # in the worst case, each row-block of 8 has one label
    for _ in dataset:
        pass
    assert predicted == pytest.approx(dataset.stats().effective_batch_sizes["donor"])
