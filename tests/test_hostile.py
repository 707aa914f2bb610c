"""Hostile input: a public function returns a right result for any argument, or raises an error of cellfeed."""

import contextlib
import datetime
import decimal
import io
import warnings

import numpy as np
import pandas as pd
import pytest
import tiledbsoma as soma
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cellfeed
from cellfeed import CellfeedError, ExperimentDataPipe, ExperimentDataset, LabelEncoder
from cellfeed.command.cli import main
from cellfeed.sources.retry import Retries
from cellfeed.sources.soma.address import ArrayAddress


def examples(n):
    """1,000 over all functions."""
    return settings(max_examples=10 * n)


N_OBS, N_VARS = 100, 30


class Awkward:
    """Equal to nothing, true of nothing, of no length."""

    def __eq__(self, other):
        raise RuntimeError("not comparable")

    def __bool__(self):
        raise RuntimeError("neither true nor false")

    def __len__(self):
        return -1

    __hash__ = None


texts = st.sampled_from(
    [
        "",
        " ",
        "RNA",
        "raw",
        "label",
        "nope",
        "a\0b",
        "\ud800",
        "'",
        '"',
        "label ==",
        "1 GiB",
        "1e9 GiB",
        "0 B",
        "-1 MiB",
    ]
    + [
        "9" * 400 + " GiB",
        "drop",
        "pad",
        "float16",
        "store",
        "s3://",
        "file:///nowhere",
        "tiledb://x",
        "/",
        "..",
        "日本",
    ]
    + ["x" * 10_000, "{}"]
)
numbers = st.sampled_from(
    [0, 1, 2, 3, 7, 100, 101, -1, -(2**63), 2**31, 2**32, 2**53, 2**62, 2**63, 2**64, 2**70, 10**40]
    + [0.0, -0.0, 0.5, 1.0, 1.5, -1.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf")]
)
others = st.sampled_from(
    [None, True, False, b"", b"raw", 1j, (), [], {}, set(), ["label"], ("label", "label"), {"label"}, [None], [[]]]
    + [["nope", 3], {"label": 1}, np.int64(3), np.uint8(0), np.float32("nan"), np.bool_(True), np.str_("raw")]
    + [np.array(3), np.arange(3), np.array(["a", "b"]), np.empty((0, 2)), pd.NA, pd.NaT, pd.Series([1, 2])]
    + [pd.DataFrame({"label": [1]}), torch.ones(2), pd.Categorical(["a"]), datetime.date(2026, 1, 1), range(3)]
    + [decimal.Decimal("NaN"), object(), Awkward(), int, len, iter("ab"), slice(1, 2), Ellipsis, Exception("x")]
    + [LabelEncoder("label"), [LabelEncoder("label")], [LabelEncoder("nope")], soma.AxisQuery()]
    + [soma.AxisQuery(coords=(slice(3, 9),)), soma.AxisQuery(coords=(np.array([5, 5, 2**40]),))]
    + [soma.AxisQuery(value_filter=text) for text in ("number > 500", "\0", "f(", "label")]
)
junk = texts | numbers | others

DATASET = (
    "measurement_name", "X_name", "obs_query", "var_query", "obs_column_names", "encoders", "batch_size", "shuffle",
    "seed", "drop_last", "return_sparse_X", "X_dtype", "soma_chunk_size", "shuffle_chunk_count", "memory_budget",
    "mixing", "use_eager_fetch", "rank_remainder", "rank", "world_size",
    "retry_deadline_s",
)  # fmt: skip
GOOD = {
    "batch_size": [1, 7, 200],
    "seed": [0, 5],
    "shuffle": [False],
    "soma_chunk_size": [3],
    "shuffle_chunk_count": [2],
    "memory_budget": ["100 KiB", "1 MiB", 10**6],
    "mixing": [0.5, 1.0],
    "X_dtype": ["stored"],
    "return_sparse_X": [True],
    "rank_remainder": ["pad", "uneven"],
    "rank": [0, 1],
    "world_size": [2],
    "retry_deadline_s": [0, 3.5],
}


@contextlib.contextmanager
def only_ours():
    """Suppress errors of cellfeed, and no others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except CellfeedError as error:
            assert len(error.args) == 1
            assert len(str(error)) > 20


@st.composite
def parameters(draw, names=DATASET, least=1):
    chosen = draw(st.lists(st.sampled_from(names), min_size=least, max_size=3, unique=True))
    return {name: draw(junk | st.sampled_from(GOOD[name]) if name in GOOD else junk) for name in chosen}


@pytest.fixture(scope="module", autouse=True)
def _impatient():
    """Requests to object stores that do not exist end soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArrayAddress, "retries", lambda self, n_threads=1, **_: Retries(0.1, n_threads=n_threads))
        yield


@pytest.fixture(scope="module")
def experiment(store):
    with soma.open(store) as opened:
        yield opened


@pytest.fixture(scope="module")
def dataset(experiment):
    return ExperimentDataset(experiment, obs_column_names=["soma_joinid", "label"], batch_size=16, seed=1)


def first_minibatch_is_right(dataset):
    """Values encode their row and column: those of the first minibatch must be in their places."""
    iterator = iter(dataset)
    minibatch = next(iterator, None)
    if hasattr(iterator, "close"):
        iterator.close()
    if minibatch is None:
        return
    X = minibatch[0].to_dense() if minibatch[0].layout == torch.sparse_csr else minibatch[0]
    genes = dataset.var_joinids
    X = X.to(torch.float64).numpy().reshape(-1, len(genes))
    at, column = np.nonzero(X)
    if len(at) and dataset._engine.settings.X_dtype not in ("float16", "bfloat16"):
        rows, columns = np.divmod(X[at, column].astype(np.int64) - 1, N_VARS)
        assert (columns == genes[column]).all()
        assert np.isin(rows, dataset.obs_joinids).all()
        assert all(len(set(rows[at == k])) == 1 for k in set(at))


@given(parameters())
@examples(40)
def test_datasets(experiment, parameters):
    with only_ours():
        first_minibatch_is_right(ExperimentDataset(experiment, **parameters))


@given(parameters())
@examples(10)
def test_datapipes(experiment, parameters):
    with only_ours():
        first_minibatch_is_right(ExperimentDataPipe(experiment, **parameters))


@given(junk | st.just("query"), parameters(["X_name", "encoders", "batch_size", "obs_column_names", "rank"], least=0))
@examples(6)
def test_from_query(experiment, axis_query, parameters):
    with only_ours():
        query = experiment.axis_query("RNA") if isinstance(axis_query, str) and axis_query == "query" else axis_query
        first_minibatch_is_right(ExperimentDataset.from_query(query, **parameters))


@given(junk, junk)
@examples(6)
def test_what_is_no_experiment(experiment, context):
    with only_ours():
        ExperimentDataset(experiment, context=context)


weights = st.sampled_from([[0.5, 0.5], {"train": 0.8, "test": 0.2}, [1.0], [0.5, float("nan")], [2, -1], [[1]], ["1"]])


@given(weights | junk, junk, junk | st.none(), junk | st.none())
@examples(8)
def test_random_split(dataset, weights, seed, stratify, group):
    with only_ours():
        parts = dataset.random_split(weights, seed, stratify=stratify, group=group)
        assert sorted(np.concatenate([part.obs_joinids for part in parts])) == list(range(N_OBS))


@given(junk, junk)
@examples(6)
def test_epochs_and_plans(dataset, epoch, label):
    with only_ours():
        dataset.set_epoch(epoch)
        first_minibatch_is_right(dataset)
    dataset.set_epoch(0)
    with only_ours():
        print(dataset.plan(label), file=io.StringIO())


STATE_PATHS = [
    ("version",), ("epoch",), ("rank",), ("segments",), ("fingerprint",), ("fingerprint", "n_obs"), ("segments", 0),
    ("segments", 0, "world_size"), ("segments", 0, "num_workers"), ("segments", 0, "mixing"),
    ("segments", 0, "received"),
    ("segments", 0, "mixing", "warmup_chunks"),
]  # fmt: skip


@given(st.none() | st.sampled_from(STATE_PATHS), junk)
@examples(8)
def test_states(experiment, path, value):
    dataset = ExperimentDataset(experiment, batch_size=16, seed=1)
    next(iter(dataset))
    state = dataset.state_dict()
    if path is None:
        state = value
    else:
        *way, last = path
        target = state
        for step in way:
            target = target[step]
        target[last] = value
    with only_ours():
        dataset.load_state_dict(state)
        len(dataset)
        first_minibatch_is_right(dataset)


LOADER = (
    "num_workers", "timeout", "pin_memory", "prefetch_factor", "persistent_workers", "batch_size", "sampler",
    "collate_fn", "worker_init_fn", "multiprocessing_context", "generator", "drop_last", "shuffle", "no_such",
)  # fmt: skip


@given(st.just(None) | junk, st.dictionaries(st.sampled_from(LOADER), junk, max_size=2))
@examples(6)
def test_loaders(dataset, given_dataset, arguments):
    if isinstance(arguments.get("num_workers"), int):
        arguments["num_workers"] = "many"  # processes cost seconds; other tests start them
    with only_ours():
        cellfeed.experiment_dataloader(dataset if given_dataset is None else given_dataset, **arguments)


frames = st.sampled_from(
    [
        pd.DataFrame({"label": ["a", "b"], "other": [1, 2]}),
        pd.DataFrame({"label": ["a", 1, None, [1]]}),
        pd.DataFrame({"label": [object(), Awkward()]}),
        pd.DataFrame({"label": pd.Categorical([1, "a"])}),
        pd.DataFrame({"label": [1j, 2j], "other": [{}, []]}),
        pd.DataFrame({"label": []}),
    ]
)


@given(junk | st.just("label"), junk, junk, frames | junk, junk, st.booleans())
@examples(8)
def test_encoders(column, name, unknown, obs, codes, several):
    with only_ours():
        if several:
            encoder = cellfeed.BatchEncoder([column, "label"], name=name, separator=unknown)
        else:
            encoder = LabelEncoder(column, name=name, handle_unknown="use_encoded_value", unknown_value=unknown)
    encoder = cellfeed.BatchEncoder(["label"]) if several else LabelEncoder("label")
    with only_ours():
        encoder.inverse_transform(codes)
    with only_ours():
        encoder.fit(obs)
        encoder.transform(obs)
        encoder.inverse_transform(codes)
    with only_ours():
        encoder.transform(obs)


@given(junk | st.dictionaries(texts | numbers | st.sampled_from([None, b"", (), pd.NA]), junk, max_size=2))
@examples(6)
def test_filters(experiment, columns):
    with only_ours():
        ExperimentDataset(experiment, obs_query=soma.AxisQuery(value_filter=cellfeed.obs_filter(columns)))


OPTIONS = (
    "--obs-filter", "--batch-size", "--memory-budget", "--seed", "--x-name", "--measurement-name", "--label",
    "--mixing", "--seconds", "--json", "--sparse", "--picture", "--epochs", "--no-such",
)  # fmt: skip
printable = st.sampled_from(
    ["", "0", "1", "-1", "7", "nan", "inf", "1e300", "2**3", "raw", "label", "label =="]
    + ["number < 0", "1 GiB", "0 B", "/nowhere/x.png"]
)


@given(
    st.sampled_from(["demo", "plan", "bench", "calibrate", "fly"]),
    st.sampled_from(["store", "", "nowhere", "a\0b", "s3://"]),
    st.lists(st.tuples(st.sampled_from(OPTIONS), printable), max_size=2),
)
@examples(6)
def test_command_line(store, command, uri, options):
    uri = store if uri == "store" else uri
    line = [command, *(["--uri", uri] if command == "demo" else [uri]), *(word for pair in options for word in pair)]
    line += {"demo": ["--epochs", "1", "--label", "label"], "bench": ["--seconds", "0.01"]}.get(command, [])
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        assert main(line) in (0, 2)
