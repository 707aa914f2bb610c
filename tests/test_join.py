"""Joins: several datasets as one, of every kind of source, with the guarantees of one dataset."""

from __future__ import annotations

import functools
import itertools
import json
import pickle
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import cellfeed
from cellfeed import (
    EncodeError,
    ExperimentDataset,
    LabelEncoder,
    PlanError,
    SelectionError,
    StateError,
    experiment_dataloader,
    join,
)
from cellfeed.tokens import TopKTokens, Vocabulary
from cellfeed.transforms import Compose, Log1p, SelectGenes
from tests.support.sources import KINDS, Cells
from tests.support.stores import addressed, write_experiment

SIZES = {"human": 60, "mouse": 33, "own": 20}
GENES = {"human": "ABCDEFGH", "mouse": "cdefxy", "own": "HGFECB"}
ORTHOLOGS = {"mouse": {name: name.upper() for name in "cdef"}}
COLUMNS = ["soma_joinid", "label"]
EVEN = {"human": 0.3, "mouse": 0.3, "own": 0.4}


def cells_of(name: str) -> Cells:
    """Cells whose labels differ between datasets, and values say the dataset, the row and the gene."""
    n_obs, genes = SIZES[name], list(GENES[name])
    offset = 10_000 * (1 + list(SIZES).index(name))
    X = addressed(n_obs, len(genes), 0.5)
    X.data += offset
    var = pd.DataFrame({"feature_id": genes, "length": np.arange(len(genes))})
    labels = [f"type {(i + len(name)) % 3 + (name == 'own')}" for i in range(n_obs)]
    obs = pd.DataFrame({"label": labels, name: np.arange(n_obs), "flag": np.arange(n_obs) % 2 == 0})
    return Cells(X, obs, var, np.arange(n_obs) * 3 + 2)


CELLS = {name: cells_of(name) for name in SIZES}
SOURCES = {"human": "soma", "mouse": "zarr3", "own": "local copy"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Arguments of each dataset: an experiment, an AnnData, and a local copy."""
    return {name: KINDS[kind](CELLS[name], tmp_path_factory.mktemp(name)) for name, kind in SOURCES.items()}


@pytest.fixture
def parts(sources):
    """Make the datasets of a join."""

    def parts(names=tuple(SIZES), **parameters: Any) -> dict[str, ExperimentDataset]:
        defaults = {"obs_column_names": COLUMNS, "batch_size": 8, "soma_chunk_size": 4, "shuffle_chunk_count": 3}
        made = {}
        for k, name in enumerate(names):
            made[name] = ExperimentDataset(**sources[name], **{**defaults, "seed": k, **parameters})
        return made

    return parts


@pytest.fixture
def make(parts):
    """Make a join of all datasets."""

    def make(options: Any = None, **parameters: Any):
        return join(parts(**parameters), **{"orthologs": ORTHOLOGS, "genes": "union", **(options or {})})

    return make


def keys(minibatches: Any) -> list[list[tuple[int, int]]]:
    """(source, joinid) of the cells of each minibatch."""
    return [list(zip(m.obs[:, -1].tolist(), m.obs[:, 0].tolist(), strict=True)) for m in minibatches]


def check_cells(joined: Any, minibatches: Any) -> None:
    """Check the genes and labels of each cell."""
    names = joined.gene_names().tolist()
    for minibatch in minibatches:
        X = minibatch.X.to_dense() if minibatch.X.layout == torch.sparse_csr else minibatch.X
        for x, (joinid, label, source) in zip(X, minibatch.obs.tolist(), strict=True):
            name = joined.obs_encoders["source"].inverse_transform([source])[0]
            cells, row = CELLS[name], (joinid - 2) // 3
            expected = dict.fromkeys(names, 0.0)
            for gene, value in zip(GENES[name], cells.X[row].toarray()[0], strict=True):
                gene = ORTHOLOGS.get(name, {}).get(gene, gene)
                if gene in expected:
                    expected[gene] = value
            assert x.tolist() == list(expected.values())
            assert joined.obs_encoders["label"].inverse_transform([label])[0] == cells.obs["label"][row]


# Genes, labels and sources


@pytest.mark.parametrize(
    ("genes", "expected"),
    [("intersection", "CEF"), ("union", "ABCDEFGHxy"), (["x", "F", "A"], "xFA")],
)
@pytest.mark.parametrize("return_sparse_X", [False, True])
def test_genes_and_labels_are_those_of_the_cell(make, genes, expected, return_sparse_X):
    joined = make({"genes": genes}, return_sparse_X=return_sparse_X)
    assert joined.gene_names().tolist() == list(expected)
    assert joined.shape == (sum(SIZES.values()), len(expected))
    assert list(joined.obs_encoders["label"].classes_) == ["type 0", "type 1", "type 2", "type 3"]
    minibatches = list(joined)
    if return_sparse_X:
        for X in (minibatch.X for minibatch in minibatches):
            assert X.crow_indices().dtype == torch.int32
            torch.sparse_csr_tensor(X.crow_indices(), X.col_indices(), X.values(), X.shape, check_invariants=True)
    check_cells(joined, minibatches)


@pytest.mark.parametrize("X_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("return_sparse_X", [False, True])
def test_values_of_stores_with_other_types_are_exact(tmp_path, X_dtype, return_sparse_X):
    """The genes of the second store are in another order, and values are small and large, whole and not."""
    datasets, expected = {}, {}
    for k, (name, dtype) in enumerate({"a": np.float32, "b": np.float64, "c": np.int32}.items()):
        values = np.random.default_rng(k).choice([0, 1, 2.5, 300, 60_000], (30, 6)).astype(dtype)
        genes = list("ABCDEF" if k != 1 else "FCBEDA")
        var = pd.DataFrame({"feature_id": genes})
        uri = write_experiment(tmp_path / name, sp.csr_matrix(values), var=var, dtype=dtype)
        datasets[name] = ExperimentDataset(
            uri, obs_column_names=["soma_joinid"], batch_size=20, seed=0, X_dtype=X_dtype, verify=False,
            return_sparse_X=return_sparse_X,
        )  # fmt: skip
        expected[k] = torch.from_numpy(values[:, np.argsort(genes)]).to(getattr(torch, X_dtype))
    for X, obs in join(datasets):
        rows = X.to_dense() if return_sparse_X else X
        assert torch.equal(rows, torch.stack([expected[source][joinid] for joinid, source in obs.tolist()]))


def test_a_gene_that_a_dataset_lacks_is_told_apart_from_a_zero(make):
    joined = make()
    names, has_gene = joined.gene_names().tolist(), joined.has_gene
    for k, name in enumerate(joined.sources):
        own = {ORTHOLOGS.get(name, {}).get(gene, gene) for gene in GENES[name]}
        assert has_gene[k].tolist() == [gene in own for gene in names]
    for X, obs in joined:
        assert (X[~has_gene[obs[:, -1]]] == 0).all()


def test_masks_of_measured_genes_are_joined(parts):
    lacking = {name: pd.DataFrame([[True] * len(GENES[name])] * 2, [True, False], list(GENES[name])) for name in SIZES}
    made = {}
    for name, genes in lacking.items():
        genes.index.name = "flag"
        genes.loc[True, genes.columns[0]] = False
        made |= parts((name,), measured=genes)
    joined = join(made, genes="union", orthologs=ORTHOLOGS)
    for minibatch in joined:
        for mask, (joinid, _, source) in zip(minibatch.measured, minibatch.obs.tolist(), strict=True):
            first = joined.gene_names().tolist().index(list(GENES.values())[source][0].upper())
            expected = joined.has_gene[source].clone()
            expected[first] &= bool((joinid - 2) // 3 % 2)
            assert mask.tolist() == expected.tolist()


def test_columns_of_obs_are_those_of_all_datasets(parts):
    made = {}
    for name in SIZES:
        made |= parts((name,), obs_column_names=["label", name, "soma_joinid"])
    joined = join(made, orthologs=ORTHOLOGS, label="species")
    assert list(joined.obs_encoders) == ["label", "species"]
    assert next(iter(joined)).obs.shape[1] == 3


def test_unlabelled_cells_keep_their_code(tmp_path):
    datasets = {}
    for name, labels in {"a": ["x", None] * 5, "b": ["y", "x"] * 5}.items():
        obs = pd.DataFrame({"label": pd.Categorical(labels)})
        uri = write_experiment(tmp_path / name, addressed(10, 4), obs)
        encoder = LabelEncoder("label", handle_unknown="use_encoded_value", unknown_value=-100)
        with warnings.catch_warnings(action="ignore"):  # that cells have no label
            datasets[name] = ExperimentDataset(uri, encoders=[encoder], batch_size=20, seed=0)
    (batch,) = join(datasets)
    assert Counter(map(tuple, batch.obs.tolist())) == {(0, 0): 5, (-100, 0): 5, (1, 1): 5, (0, 1): 5}


# Shares and epochs


def test_by_default_an_epoch_has_each_cell_once(make):
    joined = make()
    for _ in range(2):
        counts = Counter(itertools.chain.from_iterable(keys(joined)))
        assert counts == {(k, 3 * i + 2): 1 for k, n in enumerate(SIZES.values()) for i in range(n)}


def test_shares_are_exact_and_each_dataset_comes_equally_often(make):
    shares = {"human": 0.2, "mouse": 0.55, "own": 0.25}
    joined = make({"shares": shares, "epoch_length": 25})
    assert joined.shares == pytest.approx(shares)
    seen: Counter[tuple[int, int]] = Counter()
    for _ in range(4):
        taken = np.zeros(3)
        for k, minibatch in enumerate(keys(joined), start=1):
            sources = [source for source, _ in minibatch]
            assert sources == sorted(sources)
            taken += np.bincount(sources, minlength=3)
            assert (np.abs(taken - 8 * k * np.array(list(shares.values()))) < 1).all()
            seen.update(minibatch)
        for source, n in enumerate(SIZES.values()):
            own = [seen[source, 3 * i + 2] for i in range(n)]
            assert max(own) - min(own) <= 1


@pytest.mark.parametrize(("length", "n_minibatches"), [("longest", 23), ("shortest", 8), (5, 5)])
def test_an_epoch_ends_with_the_longest_the_shortest_or_a_number(make, length, n_minibatches):
    joined = make({"shares": {"human": 0.34, "mouse": 0.33, "own": 0.33}, "epoch_length": length})
    assert len(joined) == len(list(joined)) == n_minibatches


def test_the_order_of_a_dataset_is_its_own(make, parts):
    orders = keys(make())
    for k, dataset in enumerate(parts().values()):
        own = [int(joinid) for _, obs in dataset for joinid in obs[:, 0]]
        assert [joinid for batch in orders for source, joinid in batch if source == k] == own


# Determinism, seek and resume


def test_epochs_are_functions_of_seeds_and_epoch(make):
    options = {"shares": {"human": 0.5, "mouse": 0.3, "own": 0.2}}
    joined = make(options)
    first, second, third = keys(joined), keys(joined), keys(joined)
    assert first != second != third
    other = make(options, use_eager_fetch=False)
    other.set_epoch(2)
    assert keys(other) == third
    assert other.epoch == 3
    assert keys(pickle.loads(pickle.dumps(make(options)))) == first


def test_the_rest_is_equal_at_every_step(make):
    options = {"shares": {"human": 0.3, "mouse": 0.5, "own": 0.2}, "epoch_length": 10}
    joined = make(options)
    whole, following = keys(joined), keys(joined)
    joined, restored = make(options), make(options)
    iterator = iter(joined)
    for k in range(len(whole) + 1):
        restored.load_state_dict(json.loads(json.dumps(joined.state_dict())))
        if k < len(whole):
            assert len(restored) == len(whole)
            assert keys(restored) == whole[k:]
        assert keys(restored) == following
        next(iterator, None)


def test_a_restore_in_a_later_epoch_continues_there(make):
    options = {"shares": {"human": 0.3, "mouse": 0.5, "own": 0.2}}
    joined = make(options)
    joined.set_epoch(3)
    whole = keys(joined)
    joined.set_epoch(3)
    loader = experiment_dataloader(joined)
    _ = keys(itertools.islice(loader, 4))
    restored = experiment_dataloader(make(options))
    restored.load_state_dict(loader.state_dict())
    assert keys(restored) == whole[4:]


@pytest.mark.parametrize("is_restored", [False, True])
def test_an_epoch_of_a_dataset_continues_in_the_medium_where_it_began(tmp_path, is_restored):
    """The first epoch of the join ends within an epoch of a dataset, of which a copy is complete then."""

    def datasets() -> dict[str, ExperimentDataset]:
        made = {}
        for name, n in {"a": 24, "b": 40}.items():
            if not (tmp_path / name).exists():
                write_experiment(tmp_path / name, addressed(n, 4))
            copied = {"local_copy": tmp_path / f"{name}.copy"} if name == "b" else {}
            made[name] = ExperimentDataset(
                str(tmp_path / name), obs_column_names=["soma_joinid"], batch_size=8, seed=0, **copied
            )
        return made

    options = {"shares": {"a": 0.5, "b": 0.5}, "epoch_length": 7}
    joined = join(datasets(), **options)
    seen: Counter[tuple[int, int]] = Counter()
    for epoch in range(8):
        seen.update(itertools.chain.from_iterable(keys(joined)))
        if epoch == 0:
            copied = datasets()["b"]
            _ = list(copied)  # writes the rest of the copy
            assert copied.plan().n_obs_copied == 40
            if is_restored:
                state = joined.state_dict()
                joined = join(datasets(), **options)
                joined.load_state_dict(state)
        for source, n in enumerate((24, 40)):
            own = [seen[source, joinid] for joinid in range(n)]
            assert max(own) - min(own) <= 1
    assert joined.stats().n_obs_from_copy > 100


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_first_epoch_writes_local_copies_that_later_ones_read(tmp_path, num_workers):
    datasets = {}
    for name, n in {"a": 24, "b": 40}.items():
        uri = write_experiment(tmp_path / name, addressed(n, 4))
        copied = {"local_copy": tmp_path / f"{name}.copy"} if name == "b" else {}
        datasets[name] = ExperimentDataset(uri, obs_column_names=["soma_joinid"], batch_size=8, seed=0, **copied)
    joined = join(datasets)
    loader = experiment_dataloader(joined, num_workers=num_workers)
    for _ in range(3):
        assert Counter(itertools.chain.from_iterable(keys(loader))) == {
            (k, joinid): 1 for k, n in enumerate((24, 40)) for joinid in range(n)
        }
    assert datasets["b"].plan().n_obs_copied == 40
    if not num_workers:
        assert joined.stats().n_obs_from_copy == 80


# Ranks, loaders and devices


@pytest.mark.parametrize("rank_remainder", ["drop", "pad"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_get_equal_steps_and_other_cells(make, rank_remainder, world_size):
    ranks = [make(rank=rank, world_size=world_size, rank_remainder=rank_remainder) for rank in range(world_size)]
    received = [list(joined) for joined in ranks]
    assert {len(minibatches) for minibatches in received} == {len(joined) for joined in ranks}
    real = [
        key
        for minibatches in received
        for minibatch, batch in zip(minibatches, keys(minibatches), strict=True)
        for key, is_real in zip(batch, getattr(minibatch, "mask", torch.ones(len(batch))).tolist(), strict=True)
        if is_real
    ]
    assert len(set(real)) == len(real)
    assert len(real) >= sum(SIZES.values()) - (rank_remainder == "drop") * 3 * (world_size - 1)


LAYOUTS = [((1, 1), (3, 1)), ((1, 3), (1, 1)), ((2, 1), (1, 3)), ((2, 2), (3, 1)), ((3, 1), (2, 2)), ((1, 2), (1, 2))]
"""Ranks and workers, before and after a restore."""


def received(make_rank: Any, world_size: int, num_workers: int, state: Any, n: int | None = None) -> Any:
    """Minibatches that each rank receives after a state, at most ``n``, and the state then.

    Workers are those of a loader, one after another: each yields what it makes, and the ranks have the same state.
    """
    ranks, after = [], None
    for rank in range(world_size):
        joined = make_rank(rank=rank, world_size=world_size)
        if state is not None:
            joined.load_state_dict(state)
        engine = joined._engine
        this = engine.epochs.begin(num_workers)
        streams = [engine._pipeline(this, worker, None, None).minibatches() for worker in range(num_workers)]
        turns = (next(stream, None) for stream in itertools.cycle(streams))
        n_expected = engine.planner.assign(this.epoch, this.segments, this.world_layout).n_minibatches(rank, 8)
        in_turn = (minibatch for minibatch in itertools.islice(turns, 10_000) if minibatch is not None)
        counted = engine.counted(itertools.islice(in_turn, n_expected), this)
        ranks.append(list(itertools.islice(counted, n)))
        for stream in streams:
            stream.close()
        after = joined.state_dict() if rank == 0 else after
    return ranks, after


@pytest.mark.parametrize(("before", "now"), LAYOUTS)
@pytest.mark.parametrize("n_received", [1, 4])
def test_an_epoch_continues_on_other_ranks_and_workers(make, before, now, n_received):
    """Each remaining cell comes once, and ranks get equal numbers of minibatches."""
    options = {"shares": {"human": 0.5, "mouse": 0.3, "own": 0.2}, "epoch_length": 6}
    make_rank = functools.partial(make, options)
    whole, _ = received(make_rank, *before, None)
    first, state = received(make_rank, *before, None, n_received)
    rest, after = received(make_rank, *now, json.loads(json.dumps(state)))
    assert len({len(minibatches) for minibatches in rest}) == 1
    expected = Counter(key for minibatches in whole for key in itertools.chain.from_iterable(keys(minibatches)))
    got = Counter(key for minibatches in first + rest for key in itertools.chain.from_iterable(keys(minibatches)))
    assert got == expected
    if before == now:
        assert [keys(one) + keys(other) for one, other in zip(first, rest, strict=True)] == list(map(keys, whole))
    assert after["epoch"] == 0
    following = make_rank(rank=0, world_size=1)
    following.load_state_dict(after)
    assert following.epoch == 1


@pytest.mark.slow
def test_worker_processes_make_the_same_minibatches(make):
    joined = make()
    loader = experiment_dataloader(make(), num_workers=2)
    expected, found = list(joined), list(loader)
    assert len(found) == len(loader) == len(expected)
    assert sorted(keys(found)) == sorted(keys(expected))
    check_cells(joined, found)
    loader = experiment_dataloader(make(), num_workers=2)
    first = keys(itertools.islice(loader, 5))
    rest = make()
    rest.load_state_dict(loader.state_dict())
    assert sorted(first + keys(rest)) == sorted(keys(expected))


def test_a_loader_has_the_minibatches_on_its_device(make):
    expected, loader = list(make()), experiment_dataloader(make(), device="cpu")
    assert len(loader) == len(expected)
    for one, other in zip(loader, expected, strict=True):
        assert torch.equal(one.X, other.X)
        assert torch.equal(one.obs, other.obs)


@pytest.mark.parametrize("padding", ["max_length", None, "longest"])
def test_tokens_of_several_datasets_are_joined(parts, padding):
    vocabulary = Vocabulary(
        {"<pad>": 0, "<cls>": 1} | {g: k for k, g in enumerate("ABCDEFGHcdefxy", 2)}, cls_token="<cls>"
    )
    tokens = TopKTokens(vocabulary, max_length=4, padding=padding)
    joined = join(parts(transform=tokens))
    again = join(parts(), transform=tokens, genes="union")
    for (X, obs), (other, _), batch in zip(joined, again, keys(join(parts(transform=tokens))), strict=True):
        assert len(batch) == X.shape[0] == len(obs)
        assert all(map(torch.equal, X, other))
        rows = X.nested()[0].unbind() if padding is None else X.input_ids
        for row, (source, joinid) in zip(rows, batch, strict=True):
            name = joined.sources[source]
            values = CELLS[name].X[(joinid - 2) // 3].toarray()[0]
            best = sorted(
                np.flatnonzero(values), key=lambda k: (-values[k], joined.gene_names().tolist().index(GENES[name][k]))
            )
            expected = [1, *(vocabulary.ids_of([GENES[name][k]])[0] for k in best[:3])]
            assert row.tolist() == (expected if padding is None else expected + [0] * (len(row) - len(expected)))


def test_tokens_of_other_values_are_refused_before_anything_is_read(parts):
    tokens = TopKTokens(Vocabulary({"<pad>": 0, "C": 1}), max_length=4)
    with pytest.raises(PlanError, match="makes tokens of an X that other transforms changed"):
        join(parts(), transform=Compose([Log1p(), tokens]))
    with pytest.raises(PlanError, match="with X_dtype='float16': tokens are made of float32"):
        join(parts(X_dtype="float16"), transform=tokens)


def test_tokens_have_the_names_of_orthologs(parts):
    vocabulary = Vocabulary({"<pad>": 0} | {gene: k for k, gene in enumerate("ABCDEFGH", 1)})
    tokens = TopKTokens(vocabulary, max_length=8)
    joined = join(parts(), transform=tokens, orthologs=ORTHOLOGS)
    for X, obs in joined:
        for row, (joinid, _, source) in zip(X.input_ids, obs.tolist(), strict=True):
            name = joined.sources[source]
            values = dict(zip(GENES[name], CELLS[name].X[(joinid - 2) // 3].toarray()[0], strict=True))
            names = {ORTHOLOGS.get(name, {}).get(gene, gene) for gene, value in values.items() if value}
            assert {"ABCDEFGH"[token - 1] for token in row.tolist() if token} == names & set("ABCDEFGH")


def test_further_content_is_joined(parts):
    plain, joined = (join(parts(**more), genes="union") for more in ({}, {"joinids": True, "obs_values": ["flag"]}))
    for one, other in zip(plain, joined, strict=True):
        assert torch.equal(one.obs, other.obs)
        assert torch.equal(other.joinids, other.obs[:, 0])
        assert torch.equal(other.obs_values[:, 0], 1.0 - (other.joinids - 2) // 3 % 2)


# Errors, before anything is read


def test_arguments_are_checked(parts, make):
    made = parts()

    def refused(error: type[Exception], message: str, datasets: Any = made, **options: Any) -> None:
        with pytest.raises(error, match=message):
            join(datasets, **{"orthologs": ORTHOLOGS, **options})

    human = {"human": made["human"]}
    refused(PlanError, "two or more datasets", human)
    refused(PlanError, "two or more datasets", list(made.values()))
    refused(PlanError, "is a str", {**human, "mouse": "uri"})
    refused(PlanError, "a share for each dataset", shares={"human": 1.0})
    refused(PlanError, "above 0 and below 1", shares={"human": 1.5, "mouse": -0.25, "own": -0.25})
    refused(PlanError, r"sum to 0\.9;", shares={"human": 0.3, "mouse": 0.3, "own": 0.3})
    refused(PlanError, 'must be "intersection"', genes="all")
    refused(SelectionError, "1 of 2 genes are in none of the datasets: 'Z'", genes=["A", "Z"])
    refused(SelectionError, "'mouse' has none of the 2 genes", genes=["A", "B"])
    refused(SelectionError, "no common genes .* orthologs=", orthologs=None)
    refused(SelectionError, "none of the genes of the dataset", orthologs={"mouse": {"Cd3d": "CD3D"}})
    refused(SelectionError, "several genes of the same name: 'C'", orthologs={"mouse": {"c": "C", "d": "C"}})
    refused(PlanError, "must be a name; leave out", orthologs={"mouse": {"c": None}})
    refused(PlanError, "did you mean 'mouse'", orthologs={"mous": {"c": "C"}})
    refused(PlanError, "label='label' is a column", label="label")
    for length in (0, "largest", 2.0, True):
        refused(PlanError, "epoch_length=", epoch_length=length)
    with pytest.raises(PlanError, match="is a JoinedDataset"):
        cellfeed.inference_dataloader(make())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"batch_size": 9}, "has batch_size=8, and 'mouse' has batch_size=9"),
        ({"X_dtype": "float16"}, "X_dtype='float32', and 'mouse' has X_dtype='float16'"),
        ({"return_sparse_X": True}, "return_sparse_X"),
        ({"joinids": True}, "joinids"),
        ({"obs_values": ["flag"]}, "obs_values"),
        ({"transform": SelectGenes(["c"], list("cdefxy"))}, "selects genes"),
        ({"transform": TopKTokens(Vocabulary({"<pad>": 0, "c": 1}), max_length=4)}, "transform"),
    ],
)
def test_datasets_that_differ_are_refused(parts, parameters, message):
    with pytest.raises(PlanError, match=message):
        join(parts(("human",)) | parts(("mouse",), **parameters), genes="union")


def test_genes_are_named_by_a_column_of_each_dataset(tmp_path):
    datasets = {}
    for name, column in {"a": "feature_id", "b": "symbol"}.items():
        var = pd.DataFrame({"feature_id": [f"{name}{k}" for k in range(4)], "symbol": list("DCBA")})
        var[column] = list("ABCD")
        uri = write_experiment(tmp_path / name, addressed(10, 4), var=var)
        datasets[name] = ExperimentDataset(uri, batch_size=20, seed=0)
    joined = join(datasets, var_column={"b": "symbol"})
    assert joined.gene_names().tolist() == list("ABCD")
    with pytest.raises(SelectionError, match="'a': var has no column 'name'"):
        join(datasets, var_column={"a": "name"})
    with pytest.raises(PlanError, match="var_column has 'c', which is not a dataset"):
        join(datasets, var_column={"c": "symbol"})


def test_other_encoders_must_be_shared(parts):
    encoders = [cellfeed.BatchEncoder(["label", "flag"], name="batch") for _ in range(2)]
    made = {}
    for name, encoder in zip(SIZES, encoders, strict=False):
        made |= parts((name,), obs_column_names=(), encoders=[encoder])
    with pytest.raises(EncodeError, match="has a BatchEncoder"):
        join(made, orthologs=ORTHOLOGS)
    encoded = parts(("mouse",), obs_column_names=(), encoders=[LabelEncoder("soma_joinid")])
    with pytest.raises(EncodeError, match="'soma_joinid' of 'human' has no encoder"):
        join(parts(("human",)) | encoded, genes="union")


def test_states_of_other_joins_are_refused(make, parts):
    state = make().state_dict()
    with pytest.raises(StateError, match="genes"):
        make({"genes": "intersection"}).load_state_dict(state)
    for name, options in {"shares": {"shares": EVEN}, "epoch_length": {"epoch_length": 5}}.items():
        with pytest.raises(StateError, match=f"the state was saved with {name}="):
            make(options).load_state_dict(state)
    with pytest.raises(StateError, match="seed of 'human'=0, and this dataset has seed of 'human'=7"):
        make(seed=7).load_state_dict(state)
    for wrong in (
        None,
        {},
        {**state, "segments": None},
        {**state, "epoch": None},
        parts()["human"].state_dict(),
    ):
        with pytest.raises(StateError):
            make().load_state_dict(wrong)
