"""Tokens: those of references in NumPy, whatever the source, the workers, the ranks and the point of a restore."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

import cellfeed
from cellfeed import ExperimentDataset, PlanError, SelectionError, experiment_dataloader
from cellfeed.tokens import BinnedTokens, RankTokens, SampledTokens, TopKTokens, Vocabulary
from cellfeed.tokens.assembler import TokenAssembler
from cellfeed.transforms import Compose, Log1p
from tests.support.rows import cell_rows
from tests.support.sources import KINDS, Cells

N_VARS = 300
NAMES = np.array([f"G{j}" for j in range(N_VARS)], object)
IDS = {"<pad>": 0, "<cls>": 1, "<eos>": 2} | {name: 3 + (7 * j) % N_VARS for j, name in enumerate(NAMES)}
VOCABULARY = Vocabulary(IDS, cls_token="<cls>", eos_token="<eos>")
TOKENS = VOCABULARY.ids_of(NAMES)
MEDIANS = dict(zip(NAMES, np.exp(np.random.default_rng(0).normal(0, 1, N_VARS)), strict=True))
SCALES = np.array([MEDIANS[name] for name in NAMES], np.float32)


# ------------------------------------------------------------------ references


def ranked(columns, values, scales):
    """Columns by value over scale, the largest first; of equal ones, the first column is first."""
    is_positive = values > 0
    columns, keys = columns[is_positive], values[is_positive].astype(np.float32) / scales[columns[is_positive]]
    order = np.argsort(-keys, kind="stable")
    return columns[order], keys[order]


def binned(columns, values, n_bins, room):
    """Columns in order, and the number of the bin of each value; the largest values if there is no room for all."""
    is_positive = values > 0
    columns, values = columns[is_positive], values[is_positive].astype(np.float64)
    if not len(values):
        return columns, values
    bins = np.digitize(values, np.quantile(values, np.linspace(0, 1, n_bins - 1)))
    chosen = np.sort(np.argsort(-values, kind="stable")[:room])
    return columns[chosen], bins[chosen]


def mixed(number):
    """SplitMix64's function of a number, in integers of Python."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number = (number ^ (number >> shift)) * factor % 2**64
    return number ^ (number >> 31)


STEP = 0x9E3779B97F4A7C15


def uniforms(seed, epoch, joinid, n):
    """The first ``n`` random numbers of a cell."""
    key = mixed(mixed((mixed((seed + STEP) % 2**64) + epoch) % 2**64) ^ mixed((joinid + STEP) % 2**64))
    return np.array([(mixed((key + (k + 1) * STEP) % 2**64) >> 11) * 2.0**-53 for k in range(n)])


def rows_of(X, k):
    """Columns and values of a row."""
    part = slice(X.indptr[k], X.indptr[k + 1])
    return X.indices[part], X.data[part]


def tokens_of(tokenizer, X, *, seed=0, epoch=0, joinids=None, n_threads=2):
    """The tokens of the rows of a matrix."""
    joinids = np.arange(X.shape[0]) if joinids is None else joinids
    bound = tokenizer._of_genes(NAMES, N_VARS)
    assembler = TokenAssembler(bound, joinids, seed, epoch, n_threads=n_threads)
    try:
        return assembler.tensor(cell_rows(X))
    finally:
        assembler.close()


def check(tokenizer, X, expected):
    """Compare the tokens of each row with the columns and values that ``expected`` returns for it."""
    ids, values, mask = (part.numpy() for part in tokens_of(tokenizer, X))
    for k in range(X.shape[0]):
        columns, figures = expected(*rows_of(X, k))
        n = len(columns)
        assert ids[k, : n + 2].tolist() == [1, *TOKENS[columns], 2]
        assert values[k, : n + 2].tolist() == [0, *np.float32(figures), 0]
        assert mask[k].tolist() == [True] * (n + 2) + [False] * (mask.shape[1] - n - 2)
        assert (ids[k, n + 2 :] == 0).all()
        assert (values[k, n + 2 :] == 0).all()


# ------------------------------------------------------------------ kernels


@st.composite
def matrices(draw):
    """Rows of counts or of other values, some of them empty, with ties, zeros in the store, and values of any width."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_obs, density = draw(st.integers(1, 12)), draw(st.sampled_from([0.0, 0.02, 0.3, 1.0]))
    highest = draw(st.sampled_from([1, 3, 200, 60_000, 10_000_000]))
    is_stored = rng.random((n_obs, N_VARS)) < density * rng.choice([0, 1, 1], (n_obs, 1))
    values = rng.integers(0, highest, (n_obs, N_VARS), endpoint=True).astype(np.float32)
    if draw(st.booleans()):
        values = np.exp(rng.normal(0, draw(st.sampled_from([0.001, 1, 15])), values.shape)).astype(np.float32)
    if draw(st.booleans()):
        values[:, 0] = [-1, np.inf, np.nan, 1e-45][draw(st.integers(0, 3))]
    rows, columns = np.nonzero(is_stored)
    return sp.csr_matrix((values[rows, columns], (rows, columns)), shape=values.shape)


@given(matrices(), st.integers(3, N_VARS + 5))
def test_ranks_are_those_of_the_reference(X, max_length):
    tokenizer = RankTokens(VOCABULARY, MEDIANS, max_length=max_length)
    check(tokenizer, X, lambda *row: [part[: max_length - 2] for part in ranked(*row, SCALES)])


@given(matrices(), st.integers(3, N_VARS + 5))
def test_the_largest_values_are_those_of_the_reference(X, max_length):
    tokenizer = TopKTokens(VOCABULARY, max_length=max_length)
    check(tokenizer, X, lambda *row: [part[: max_length - 2] for part in ranked(*row, np.ones(N_VARS, np.float32))])


@given(matrices(), st.integers(3, N_VARS + 5), st.integers(3, 60))
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's quantiles of infinite values
def test_bins_are_those_of_the_reference(X, max_length, n_bins):
    X.data = np.where(np.isinf(X.data), 1, X.data)
    tokenizer = BinnedTokens(VOCABULARY, n_bins=n_bins, max_length=max_length)
    check(tokenizer, X, lambda *row: binned(*row, n_bins, max_length - 2))


def test_a_hundred_thousand_rows_equal_the_reference():
    rng = np.random.default_rng(1)
    X = sp.random(100_000, N_VARS, 0.1, "csr", np.float32, rng, lambda n: rng.geometric(0.4, n))
    X.data[::97] = 0
    X.sort_indices()
    n_wanted = 20
    ids, values, _ = (part.numpy() for part in tokens_of(RankTokens(VOCABULARY, MEDIANS, max_length=n_wanted + 2), X))
    keys = np.where(X.data > 0, X.data / SCALES[X.indices], -1).astype(np.float32)
    rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    order = np.lexsort((X.indices, -keys, rows))
    place = np.arange(X.nnz) - X.indptr[:-1].repeat(np.diff(X.indptr))
    order, place, row = (part[(place < n_wanted) & (keys[order] > 0)] for part in (order, place, rows))
    expected_ids, expected = np.zeros((2, X.shape[0], n_wanted + 1), np.float32)
    expected_ids[row, place], expected[row, place] = TOKENS[X.indices[order]], keys[order]
    expected_ids[np.arange(X.shape[0]), (expected > 0).sum(axis=1)] = 2
    assert np.array_equal(ids[:, 1:], expected_ids)
    assert np.array_equal(values[:, 1:], expected)


def test_keys_of_a_narrow_range_are_sorted_from_any_order():
    values = np.random.default_rng(0).permutation(np.linspace(1, 1.0005, N_VARS, dtype=np.float32))
    values[5] = 1e30  # digits are those of the range of all keys
    X = sp.csr_matrix(values)
    check(TopKTokens(VOCABULARY, max_length=N_VARS + 2), X, lambda *row: ranked(*row, np.ones(N_VARS, np.float32)))


@pytest.mark.parametrize("highest", [1.0001, 1.1])  # all digits are equal, some are equal
def test_keys_of_equal_digits_are_sorted(highest):
    values = np.linspace(1, highest, N_VARS, dtype=np.float32)
    values[5] = 1e30  # digits are those of the range of all keys
    X = sp.csr_matrix(values)
    check(TopKTokens(VOCABULARY, max_length=N_VARS + 2), X, lambda *row: ranked(*row, np.ones(N_VARS, np.float32)))


@pytest.mark.parametrize("padding", ["max_length", "longest", None])
def test_paddings_have_the_same_tokens(padding):
    X = sp.random(40, N_VARS, 0.1, "csr", np.float32, 0, lambda n: np.arange(n) % 5)  # zeros in the store
    X.data[X.indptr[3] : X.indptr[4]] = 0
    tokenizer = TopKTokens(VOCABULARY, max_length=30, padding=padding)
    tokens = tokens_of(tokenizer, X)
    rows = [[1, *TOKENS[ranked(*rows_of(X, k), np.ones(N_VARS))[0][:28]], 2] for k in range(40)]
    if padding is None:
        assert tokens.offsets.diff().tolist() == list(map(len, rows))
        assert tokens.input_ids.tolist() == list(itertools.chain(*rows))
        assert [row.tolist() for row in tokens.nested()[0].unbind()] == rows
        assert len(tokens.values) == len(tokens.input_ids)
    else:
        assert tokens.shape == (40, 30)
        assert [row[kept].tolist() for row, kept in zip(tokens.input_ids, tokens.attention_mask, strict=True)] == rows


def test_the_longest_row_gives_the_length():
    X = sp.csr_matrix(np.eye(4, N_VARS, dtype=np.float32))
    assert tokens_of(TopKTokens(VOCABULARY, max_length=30, padding="longest"), X).shape == (4, 3)


def test_draws_are_those_of_the_reference():
    rng = np.random.default_rng(2)
    X = sp.random(50, N_VARS, 0.2, "csr", np.float32, rng, lambda n: rng.geometric(0.01, n) * 1.0)
    X.data[::9] += 0.5
    X.sort_indices()
    joinids = rng.integers(0, 2**60, 50)
    ids, values, _ = tokens_of(SampledTokens(VOCABULARY, max_length=200), X, seed=7, epoch=3, joinids=joinids)
    for k in range(50):
        columns, row = rows_of(X, k)
        totals = np.cumsum(np.log1p(row.astype(np.float64)))
        drawn = np.searchsorted(totals, uniforms(7, 3, int(joinids[k]), 198) * totals[-1], side="right")
        assert ids[k, 1:-1].tolist() == TOKENS[columns[drawn]].tolist()
        assert values[k, 1:-1].tolist() == row[drawn].tolist()


def test_genes_are_drawn_in_proportion_to_their_logarithms():
    X = sp.csr_matrix(np.repeat([[1, 3, 15, 0] + [0] * (N_VARS - 4)], 200, axis=0).astype(np.float32))
    ids = tokens_of(SampledTokens(VOCABULARY, max_length=502), X).input_ids[:, 1:-1]
    shares = [float((ids == token).float().mean()) for token in TOKENS[:4]]
    assert np.allclose(shares, [1 / 7, 2 / 7, 4 / 7, 0], atol=0.006)  # 4.5 standard deviations


def test_any_gene_may_be_chosen_and_all_equally_often():
    X = sp.csr_matrix(np.ones((2_000, 10), np.float32), shape=(2_000, 10))
    X.resize(2_000, N_VARS)
    tokens = tokens_of(BinnedTokens(VOCABULARY, n_bins=3, max_length=6, choice="random"), X)
    numbers = [int((tokens.input_ids == token).sum()) for token in TOKENS[:10]]
    assert sum(numbers) == 8_000
    assert min(numbers) > 800 - 4.5 * 22  # 22: a standard deviation
    columns = np.argsort(TOKENS)[tokens.input_ids[:, 1:5] - 3]
    assert (np.diff(columns, axis=1) > 0).all()  # in the order of var, none twice


# ------------------------------------------------------------------ datasets

CELLS = Cells.make(60, 24)
OWN = Vocabulary({"<pad>": 0} | {f"G{j}": 1 + j for j in range(0, 24, 2)} | {"other": 50})  # every second gene


def expected_ranks(joinid, n_wanted):
    """The tokens of a cell of a dataset, by value."""
    values = CELLS.rows[joinid][::2]
    order = np.argsort(-values, kind="stable")
    return (1 + 2 * order[values[order] > 0])[:n_wanted].tolist()


def read(minibatches):
    """The tokens of each cell, without padding, by joinid."""
    return {
        joinid: ids[mask].tolist()
        for X, _, *_, joinids in map(in_order, minibatches)
        for joinid, ids, mask in zip(joinids.tolist(), X.input_ids, X.attention_mask, strict=True)
    }


def in_order(minibatch):
    return minibatch.X, minibatch.obs, minibatch.joinids


@pytest.fixture(scope="module", params=KINDS)
def source(request, tmp_path_factory):
    return KINDS[request.param](CELLS, tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize("max_length", [4, 100])
def test_tokens_of_every_source(source, max_length):
    tokenizer = TopKTokens(OWN, max_length=max_length)
    source = {**source, "local_copy": None}  # the copy has other genes
    dataset = ExperimentDataset(**source, transform=tokenizer, batch_size=16, seed=0, joinids=True)
    assert dataset.shape == (60, max_length)
    assert read(dataset) == {joinid: expected_ranks(joinid, max_length) for joinid in CELLS.joinids.tolist()}


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return CELLS.write_soma(tmp_path_factory.mktemp("tokens") / "cells.soma")


def make(uri, transform, **parameters):
    return ExperimentDataset(uri, transform=transform, batch_size=7, seed=3, joinids=True, **parameters)


RANDOM = [SampledTokens(OWN, max_length=9), BinnedTokens(OWN, n_bins=4, max_length=3, choice="random")]


@pytest.mark.parametrize("tokenizer", RANDOM)
def test_random_tokens_depend_on_seed_epoch_and_cell_only(uri, tokenizer):
    dataset = make(uri, tokenizer)
    epochs = [read(dataset), read(dataset)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != read(ExperimentDataset(uri, transform=tokenizer, batch_size=7, seed=4, joinids=True))
    assert epochs[0] == read(make(uri, tokenizer, memory_budget="1 MiB"))
    ranks = [make(uri, tokenizer, rank=rank, world_size=2, rank_remainder="uneven") for rank in range(2)]
    assert epochs[0] == read(ranks[0]) | read(ranks[1])
    for step in range(1, 9):
        begun, resumed = make(uri, tokenizer), make(uri, tokenizer)
        iterator = iter(begun)
        first = read(next(iterator) for _ in range(step))
        resumed.load_state_dict(begun.state_dict())
        assert epochs[0] == first | read(resumed)


@pytest.mark.slow
def test_worker_processes_make_the_same_tokens(uri):
    loader = experiment_dataloader(make(uri, RANDOM[0]), num_workers=2)
    assert read(loader) == read(make(uri, RANDOM[0]))


def test_tokens_are_moved_to_a_device(uri):
    loader = experiment_dataloader(make(uri, RANDOM[0]), device="cpu")
    assert read(loader) == read(make(uri, RANDOM[0]))
    moved = next(iter(make(uri, RANDOM[0]))).to("cpu")
    assert moved.X.input_ids.shape == (7, 9)


def test_a_minibatch_that_is_held_does_not_change(uri):
    held = list(make(uri, RANDOM[0]))
    assert read(held) == read(make(uri, RANDOM[0]))


def test_layers_stay_matrices_beside_tokens(tmp_path):
    uri = CELLS.write_soma(tmp_path / "cells.soma", layers=("raw", "other"))
    minibatch = next(iter(make(uri, RANDOM[0], layers=["other"])))
    assert minibatch.X.input_ids.shape == (7, 9)
    assert minibatch.layers["other"].shape == (7, 12)


def test_a_local_copy_has_the_genes_of_the_vocabulary(uri, tmp_path):
    dataset = make(uri, RANDOM[0], local_copy=tmp_path / "copy.zarr")
    epochs = [read(dataset), read(dataset)]
    assert dataset.stats().n_obs_from_copy == 60
    reread = make(uri, RANDOM[0])
    assert epochs == [read(reread), read(reread)]
    assert ExperimentDataset(tmp_path / "copy.zarr").shape == (60, 12)


def test_counts_of_genes_are_in_the_description(uri):
    assert "12 of 24 genes" in repr(make(uri, RANDOM[0])._engine.settings.transform)
    assert "12 of 24 genes" in json.dumps(make(uri, RANDOM[0]).provenance())


# ------------------------------------------------------------------ vocabulary


def test_a_vocabulary_is_read_from_json_and_text(tmp_path):
    (tmp_path / "v.json").write_text(json.dumps({"<pad>": 5, "A": 7}))
    (tmp_path / "v.txt").write_text("<pad>\nA\nB\n")
    assert Vocabulary.from_file(tmp_path / "v.json").ids_of(["A", "<pad>", "B"]).tolist() == [7, -1, -1]
    assert Vocabulary.from_file(str(tmp_path / "v.txt"), eos_token="B").ids_of(["A", "B"]).tolist() == [1, -1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": ["A"]}, "ids must be a mapping"),
        ({"ids": {"<pad>": 0, "A": 1.5}}, r"ids\['A'\]=1.5 must be an integer"),
        ({"ids": {"<pad>": 0, "A": -1}}, r"ids\['A'\]=-1 must be an integer of at least 0"),
        ({"ids": {"<pad>": 0, "A": 1, "B": 1}}, "the token 1 for 'A', 'B'"),
        ({"ids": {"A": 1}}, "pad_token='<pad>' is not in ids"),
        ({"ids": {"<pad>": 0}, "cls_token": "<cls>"}, "cls_token='<cls>' is not in ids"),
        ({"ids": {"<pad>": 0}, "unknown": "keep"}, "unknown='keep' must be"),
    ],
)
def test_an_invalid_vocabulary_is_refused(arguments, message):
    with pytest.raises(SelectionError, match=message):
        Vocabulary(**arguments)


@pytest.mark.parametrize(("name", "text"), [("v.pkl", ""), ("v.json", "{"), ("none.json", None)])
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path, name, text):
    path = Path(tmp_path, name)
    if text is not None:
        path.write_text(text)
    with pytest.raises(SelectionError, match="pickle" if name == "v.pkl" else "cannot be read as a vocabulary"):
        Vocabulary.from_file(path)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (Vocabulary({"<pad>": 0, "X1": 1}), "knows none of the 24 genes"),
        (Vocabulary({"<pad>": 0, "G1": 1}, unknown="error"), "23 of 24 genes are not in the vocabulary: 'G0'"),
        (Vocabulary({"<pad>": 0, "G1": 1}, var_column="symbol"), "var has no column 'symbol'"),
    ],
)
def test_a_vocabulary_of_other_genes_is_refused(uri, vocabulary, message):
    with pytest.raises(SelectionError, match=message):
        make(uri, TopKTokens(vocabulary, max_length=5))


def test_a_name_of_several_genes_is_refused(tmp_path):
    cells = Cells(CELLS.X, CELLS.obs, CELLS.var.assign(feature_id="G0"), CELLS.joinids)
    with pytest.raises(SelectionError, match="'G0' stand for several columns"):
        make(cells.write_soma(tmp_path / "cells.soma"), TopKTokens(OWN, max_length=5))


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (TopKTokens, {"vocabulary": IDS, "max_length": 5}, r"TopKTokens\(Vocabulary\(ids\), ...\)"),
        (TopKTokens, {"max_length": 2}, "max_length=2 must be an integer of at least 3"),
        (TopKTokens, {"max_length": 10.0}, "max_length=10.0 must be an integer"),
        (TopKTokens, {"max_length": 5, "padding": "left"}, "padding='left' must be one of"),
        (RankTokens, {"medians": [1.0]}, "medians must be a mapping"),
        (BinnedTokens, {"n_bins": 2}, "n_bins=2 must be an integer of at least 3"),
        (BinnedTokens, {"choice": "first"}, "choice='first' must be"),
    ],
)
def test_invalid_arguments_are_refused(kind, arguments, message):
    with pytest.raises(PlanError, match=message):
        kind(**{"vocabulary": VOCABULARY, **arguments})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"transform": Compose([Log1p(), RANDOM[0]])}, "makes tokens of an X that other transforms changed"),
        ({"transform": RANDOM[0], "X_dtype": "float16"}, "X_dtype='float16': tokens are made of float32"),
        ({"transform": RANDOM[0], "measured": pd.DataFrame()}, "measured"),
    ],
)
def test_tokens_of_something_else_are_refused(uri, parameters, message):
    with pytest.raises((PlanError, SelectionError), match=message):
        make(uri, **parameters)


def test_genes_of_tokens_are_those_of_the_vocabulary(uri):
    with pytest.raises(PlanError, match=r"select_genes\(\) of a dataset of tokens"):
        make(uri, RANDOM[0]).select_genes(["G0"])
    with pytest.raises(PlanError, match="not of a tensor"):
        RANDOM[0](torch.ones(2, 2))
    with pytest.raises(SelectionError, match="medians has none of the 12 genes"):
        make(uri, RankTokens(OWN, {"A": 1.0}))


def test_a_gene_without_a_median_is_not_read(uri):
    medians = pd.Series({"G0": 1.0, "G2": np.nan, "G4": 0.0, "G6": 2.0})
    tokens = read(make(uri, RankTokens(OWN, medians, max_length=5)))
    assert set().union(*tokens.values()) == {1, 7}


# ------------------------------------------------------------------ medians


def expected_medians(cells, target):
    X = cells.X.toarray().astype(np.float64)
    scaled = X * (target / X.sum(axis=1, keepdims=True))
    return [np.median(column[column > 0]) if (column > 0).any() else np.nan for column in scaled.T]


@pytest.mark.parametrize("is_exact", [True, False])
def test_medians_are_exact_or_within_a_percent(tmp_path, monkeypatch, is_exact):
    X = CELLS.X.copy()
    X.data[X.indices == 3] = 0
    X.eliminate_zeros()
    cells = Cells(X, CELLS.obs, CELLS.var, CELLS.joinids)
    dataset = ExperimentDataset(cells.write_soma(tmp_path / "cells.soma"), transform=Log1p(), seed=0)
    expected = expected_medians(cells, 1e4)
    if is_exact:
        medians = cellfeed.gene_medians(dataset)
        assert np.allclose(medians, expected, rtol=1e-6, equal_nan=True)
    else:
        monkeypatch.setattr("cellfeed.loader.gene_medians.BYTES_PER_VALUE", 1 << 40)
        with pytest.warns(UserWarning, match="within 1 % of a value in the middle"):
            medians = cellfeed.gene_medians(dataset)
        lowest = [
            column[column > 0] if (column > 0).any() else [np.nan]
            for column in (X.toarray() * (1e4 / X.toarray().sum(axis=1, keepdims=True))).T
        ]
        middles = [np.sort(values)[(len(values) - 1) // 2] for values in lowest]
        assert np.allclose(medians, middles, rtol=0.0101, equal_nan=True)
    assert medians.index.tolist() == CELLS.var["feature_id"].tolist()
    assert np.isnan(medians["G3"])


def test_medians_of_no_cells_are_missing(uri):
    dataset = ExperimentDataset(uri, obs_query="label == 'none'", allow_empty=True, seed=0)
    assert cellfeed.gene_medians(dataset).isna().all()


def test_medians_of_scaled_values_are_refused(tmp_path):
    cells = Cells(CELLS.X * -1, CELLS.obs, CELLS.var, CELLS.joinids)
    with pytest.raises(SelectionError, match="negative values"):
        cellfeed.gene_medians(ExperimentDataset(cells.write_soma(tmp_path / "cells.soma"), seed=0))
