"""The dataset over real stores: the behaviours of the published loader's tests, and what goes beyond them."""

import gc
import inspect
import json
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import tiledbsoma as soma
import torch
from torch.utils.data import IterDataPipe

from cellfeed import BatchEncoder, Encoder, ExperimentDataPipe, ExperimentDataset, LabelEncoder, experiment_dataloader
from cellfeed.errors import EncodeError, PlanError, ReadError
from cellfeed.plan.settings import PARAMETERS, Settings
from tests.support.stores import addressed, collect, labelled_obs, write_experiment

pytestmark = pytest.mark.usefixtures("reading_path")
eager = pytest.mark.parametrize("use_eager_fetch", [True, False])


# ---------------------------------------------------------------- the published behaviours


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
        torch.sparse_csr_tensor(
            sparse.crow_indices(),
            sparse.col_indices(),
            sparse.values(),
            size=sparse.shape,
            check_invariants=True,
        )


def test_sparse_with_batch_size_one_keeps_both_dimensions(make_store):
    X, obs = next(iter(ExperimentDataPipe(make_store(6), obs_column_names=["label"], return_sparse_X=True)))
    assert X.shape == (1, 3)
    assert obs.shape == (1,)


def test_chunks_smaller_than_a_minibatch_are_joined(make_store):
    pipe = ExperimentDataPipe(make_store(10), batch_size=3, soma_chunk_size=4, shuffle_chunk_count=1)
    assert collect(pipe, 3)[2] == [3, 3, 3, 1]


def test_default_encoders(store):
    dataset = ExperimentDataset(store, obs_column_names=["label", "text", "flag"], batch_size=100, shuffle=False)
    _, obs = next(iter(dataset))
    expected = labelled_obs(100)
    for k, name in enumerate(["label", "text", "flag"]):
        assert dataset.obs_encoders[name].inverse_transform(obs[:, k]).tolist() == expected[name].tolist()
    assert list(dataset.obs_encoders) == ["label", "text", "flag"]
    assert obs.dtype == torch.int64


def test_batch_encoder(make_store):
    pipe = ExperimentDataPipe(make_store(3), encoders=[BatchEncoder(["number", "text"])], batch_size=3, shuffle=False)
    _, obs = next(iter(pipe))
    assert pipe.obs_encoders["batch"].inverse_transform(obs[:, 0]).tolist() == ["0t0", "10t0", "20t1"]


class Halves(Encoder):
    """A user's own: the half of the store that a cell is in, as text columns would not have it."""

    name = "half"
    columns = ("number",)

    def fit(self, obs):
        self.n = obs["number"].max()

    def transform(self, obs):
        return (obs["number"] > self.n // 2).astype(int)

    def inverse_transform(self, codes):
        return np.array(["low", "high"])[np.asarray(codes)]


def test_custom_encoders(store):
    dataset = ExperimentDataset(
        store, encoders=[Halves(), LabelEncoder("label", name="kind")], batch_size=100, shuffle=False
    )
    _, obs = next(iter(dataset))
    assert obs.shape == (100, 2)
    assert dataset.obs_encoders["half"].inverse_transform(obs[[0, 99], 0]).tolist() == ["low", "high"]
    assert list(dataset.obs_encoders) == ["half", "kind"]


def test_parameters_are_those_of_settings(store):
    """A parameter is written once: the signature has the names and defaults of settings, and each takes effect."""
    signature = inspect.signature(ExperimentDataset).parameters
    assert all(signature[name].default is getattr(Settings, name) for name in PARAMETERS)
    changed = {
        "batch_size": 7, "shuffle": False, "seed": 5, "drop_last": True, "return_sparse_X": True, "X_dtype": "float16",
        "soma_chunk_size": 3, "shuffle_chunk_count": 2, "memory_budget": 1 << 26, "use_eager_fetch": False,
        "verify": False, "rank_remainder": "uneven", "rank": 1, "world_size": 2, "transform": torch.neg,
    }  # fmt: skip
    settings = ExperimentDataset(store, **changed)._engine.settings
    assert {name: getattr(settings, name) for name in changed} == changed
    assert {*changed, "mixing"} == set(PARAMETERS)


def test_encoders_exclude_columns_and_duplicates(store):
    with pytest.raises(ValueError, match="exclude each other"):
        ExperimentDataset(store, encoders=[LabelEncoder("label")], obs_column_names=["text"])
    with pytest.raises(ValueError, match="two encoders have the name 'label'"):
        ExperimentDataset(store, encoders=[LabelEncoder("label"), LabelEncoder("text", name="label")])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint16, np.int8])
def test_X_is_float32_with_exact_values(tmp_path, dtype):
    X = addressed(11, 3)
    uri = write_experiment(tmp_path / "typed", X, dtype=dtype)
    ours, _, _ = collect(ExperimentDataset(uri, batch_size=4, shuffle=False), 3)
    assert ours.dtype == np.float32
    assert np.array_equal(ours, X.toarray().astype(dtype).astype(np.float32))


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


# ---------------------------------------------------------------- guarantees beyond them


def joinids_of(dataset):
    return [int(j) for minibatch in dataset for j in np.atleast_2d(minibatch[1].numpy())[:, -1]]


def test_epochs_differ_and_set_epoch_reproduces_them(store):
    """Two passes differ with nothing called (the successor of the published loader repeats one order)."""
    dataset = ExperimentDataset(store, obs_column_names=["soma_joinid"], seed=5, batch_size=10)
    passes = [joinids_of(dataset) for _ in range(3)]
    assert len(set(map(tuple, passes))) == 3
    dataset.set_epoch(1)
    assert joinids_of(dataset) == passes[1]
    assert joinids_of(dataset) == passes[2]
    dataset.set_epoch(0)
    assert dataset.epoch == 0
    assert joinids_of(dataset) == passes[0]


@pytest.mark.slow
def test_determinism_in_another_process(store):
    code = (
        "import sys, cellfeed, numpy as np\n"
        f"ds = cellfeed.ExperimentDataset({store!r}, obs_column_names=['soma_joinid'], seed=5, batch_size=10)\n"
        "print([int(j) for _, obs in ds for j in obs[:, 0]])"
    )
    here = joinids_of(ExperimentDataset(store, obs_column_names=["soma_joinid"], seed=5, batch_size=10))
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
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
        torch.sparse_csr_tensor(
            sparse.crow_indices(),
            sparse.col_indices(),
            sparse.values(),
            size=sparse.shape,
            check_invariants=True,
        )


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
    """The published loader's split masks positions of a stream that is shuffled anew: its test cells are trained on."""
    dataset = ExperimentDataset(store, obs_column_names=["label", "soma_joinid"], seed=0, batch_size=7)
    parts = dataset.random_split({"train": 0.7, "val": 0.2, "test": 0.1}, seed=4)
    met = [[set(joinids_of(part)) for _ in range(3)] for part in parts]
    assert all(a == b == c for a, b, c in met)
    assert [len(a) for a, _, _ in met] == [70, 20, 10]
    assert set.union(*(a for a, _, _ in met)) == set(range(100))
    assert parts[1].stats().n_obs == 60
    halves = parts[0].random_split([0.5, 0.5], seed=4)
    assert set(joinids_of(halves[0])) | set(joinids_of(halves[1])) == met[0][0]
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


def test_a_tensor_that_is_held_never_changes(store):
    """Dense buffers are used again only when nobody holds them: keep every minibatch, and views of some."""
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


def ours():
    return [t for t in threading.enumerate() if t.name.startswith("cellfeed")]


@pytest.mark.parametrize("how", ["break", "exception", "garbage"])
def test_no_thread_outlives_its_iterator(store, how):
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


def test_a_store_that_is_gone_is_an_error_with_its_cause(tmp_path):
    import shutil

    uri = write_experiment(tmp_path / "gone", addressed(20, 3))
    dataset = ExperimentDataset(uri)
    shutil.rmtree(uri)
    with pytest.raises(ReadError, match="reading soma_joinid .* failed") as caught:
        list(dataset)
    assert caught.value.__cause__ is not None
    assert not ours()


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
    assert all(f">{value.strip()}</td>" in dataset._repr_html_() for value in shown.values())
    assert repr(dataset) == "ExperimentDataset(100 cells x 30 genes of RNA/raw, batch_size=128, seed=2)"


def test_a_smaller_budget_shuffles_fewer_chunks_together(tmp_path):
    uri = write_experiment(tmp_path / "long", addressed(4000, 10), extent=50, capacity=200)
    small, large = (ExperimentDataset(uri, batch_size=4, memory_budget=budget).plan() for budget in ("400 KB", "2 GiB"))
    assert small.chunks_per_block < large.chunks_per_block == large.n_chunks


def test_the_users_context_and_timestamp_are_used_again(tmp_path, reading_path):
    """Settings of the user are kept, ours fill the gaps, and later writes stay unseen."""
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
    if reading_path == "public":  # it does not show that the user has set what is TileDB's default
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


def test_an_encoder_that_fails_is_named(store):
    class Bad(Halves):
        name = "bad"

        def transform(self, obs):
            return obs["number"] / 3

    with pytest.raises(EncodeError, match="'bad': transform must return one integer per cell"):
        ExperimentDataset(store, encoders=[Bad()])


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("X_dtype", ["float32", "float16", "bfloat16", "stored"])
@pytest.mark.parametrize("stored", [np.float32, np.float64, np.int64, np.uint8])
def test_X_dtype(tmp_path, sparse, X_dtype, stored):
    """Halves are what PyTorch rounds to; the store's own type holds every value."""
    X = addressed(20, 7)
    X.data = (X.data % 200).astype(np.float64)
    if np.dtype(stored).kind == "f":
        X.data[::3] += 1 / 3
    elif stored is np.int64:
        X.data[::3] += 2**40 if X_dtype != "float16" else 2**15  # more than 65,504 is an error
    uri = write_experiment(tmp_path / "typed", X, dtype=stored)
    dataset = ExperimentDataset(uri, batch_size=20, shuffle=False, return_sparse_X=sparse, X_dtype=X_dtype)
    (ours, _) = next(iter(dataset))
    wanted = torch.from_numpy(X.toarray().astype(stored))
    wanted = wanted if X_dtype == "stored" else wanted.to(torch.float32).to(getattr(torch, X_dtype))
    assert ours.dtype == wanted.dtype
    if sparse:
        assert torch.equal(ours.values(), wanted[wanted != 0])
    else:
        assert torch.equal(ours, wanted)


def test_ranks_are_found_when_iteration_begins(store, monkeypatch):
    """Built before the launch, a dataset still takes its rank's share and no more (a peer freezes the rank)."""
    dataset = ExperimentDataset(store, obs_column_names=["soma_joinid"], batch_size=10, seed=0)
    met = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        dataset.set_epoch(3)
        assert len(dataset) == 5
        met.append(set(joinids_of(dataset)))
    assert not met[0] & met[1]
    assert len(met[0] | met[1]) == 100
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


@pytest.mark.slow
def test_nnz_in_obs_bounds_memory(tmp_path):
    """Where obs has nnz, a window in joinid order is sized by its deepest stretch, not by the mean."""
    X = addressed(400, 50, 0.05).tolil()
    X[300:] = addressed(100, 50, 1.0)
    X = X.tocsr()
    obs = labelled_obs(400)
    flat = write_experiment(tmp_path / "flat", X, obs, extent=50, capacity=1000)
    obs["nnz"] = np.diff(X.indptr)
    told = write_experiment(tmp_path / "told", X, obs, extent=50, capacity=1000)

    def chunks(uri, budget):
        try:
            return ExperimentDataset(uri, shuffle=False, batch_size=1, memory_budget=budget).plan().chunks_per_block
        except PlanError:
            return 0

    pairs = [(chunks(told, budget), chunks(flat, budget)) for budget in range(200_000, 3_000_000, 50_000)]
    assert all(a <= b for a, b in pairs)
    assert any(0 < a < b for a, b in pairs)
    assert ExperimentDataset(told)._engine.selection.nnz.dtype == np.uint16


def test_plan_knows_how_little_the_order_of_joinids_mixes(store):
    dataset = ExperimentDataset(store, obs_column_names=["donor"], shuffle=False, batch_size=8)
    foretold = dataset.plan(label="donor").effective_batch_size
    assert dataset.plan().effective_batch_size < 2  # at worst: row-blocks of 8 are a label each
    for _ in dataset:
        pass
    assert foretold == pytest.approx(dataset.stats().effective_batch_sizes["donor"])


def test_integers_of_numpy_are_integers(store):
    """Wherever a whole number is asked for; what is saved is plain JSON."""
    given = {
        "batch_size": np.int64(8), "seed": np.uint32(3), "soma_chunk_size": np.int32(4),
        "shuffle_chunk_count": np.uint8(2), "memory_budget": np.int64(1 << 30), "rank": np.int16(0),
        "world_size": np.int64(2),
    }  # fmt: skip
    dataset = ExperimentDataset(store, obs_column_names=["donor"], **given)
    plain = ExperimentDataset(store, obs_column_names=["donor"], **{name: int(value) for name, value in given.items()})
    loader = experiment_dataloader(dataset, num_workers=np.int64(0))
    assert torch.equal(torch.cat([obs for _, obs in loader]), torch.cat([obs for _, obs in plain]))
    for saved in (dataset.provenance(), dataset.state_dict()):
        json.dumps(saved)
    assert dataset.plan() == plain.plan()


@pytest.mark.parametrize("given", [torch.float16, "float16", np.float16, np.dtype("float16")], ids=repr)
def test_types_of_pytorch_and_numpy_name_themselves(store, given):
    (X, _) = next(iter(ExperimentDataset(store, X_dtype=given)))
    assert X.dtype == torch.float16


def test_a_share_may_be_a_percentage(store):
    assert (
        ExperimentDataset(store, mixing="90%", batch_size=4, seed=0).plan()
        == ExperimentDataset(store, mixing=0.9, batch_size=4, seed=0).plan()
    )
