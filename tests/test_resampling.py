"""Resampled epochs: how often each cell comes, and that copies of a cell leave in different minibatches."""

import json
import re
from collections import Counter

import anndata
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cellfeed
from cellfeed import ExperimentDataset
from cellfeed.errors import PlanError, SelectionError, StateError
from cellfeed.plan.copies import chunks_of_copies, deal
from cellfeed.plan.epoch import EpochOrder, World
from cellfeed.plan.resampling import Resampling, capped, expected_copies, shares
from cellfeed.plan.schedule import ShufflePlan
from tests.support.fakes import cells
from tests.support.stores import addressed, labelled_obs, write_experiment

# Numbers of copies


@st.composite
def resamplings(draw):
    n = draw(st.integers(1, 60))
    weights = np.array(draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 1.7, 40.0]), min_size=n, max_size=n)))
    weights[draw(st.integers(0, n - 1))] = 1.0
    labels = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    n_obs = draw(st.integers(1, 300))
    expected = expected_copies(weights, labels, draw(st.sampled_from([0.0, 0.5, 1.0])), n_obs)
    return Resampling(expected, labels, n_obs, {})


@settings(max_examples=300)
@given(resampling=resamplings(), seed=st.integers(0, 2**32), epoch=st.integers(0, 2**40))
def test_copies_have_the_exact_sum_and_are_expected_ones_rounded(resampling, seed, epoch):
    copies = resampling.copies(seed, epoch)
    assert copies.sum() == resampling.n_obs
    assert (np.abs(copies - resampling.expected) < 1).all()
    assert (copies[resampling.expected == 0] == 0).all()
    by_label = np.bincount(resampling.strata, copies - resampling.expected)
    assert (np.abs(by_label) < 1 + 1e-6).all()
    assert np.array_equal(copies, resampling.copies(seed, epoch))


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5), cap=st.integers(1, 10), epoch=st.integers(0, 99))
def test_a_label_has_exactly_its_cap(sizes, cap, epoch):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    expected = capped(np.ones(len(labels)), labels, cap, None)
    copies = Resampling(expected, labels, round(expected.sum()), {}).copies(3, epoch)
    assert np.bincount(labels, copies).tolist() == np.minimum(sizes, cap).tolist()


@given(n=st.integers(2, 300), n_obs=st.integers(1, 300), first=st.integers(0, 10**6), seed=st.integers(0, 99))
def test_every_cell_comes_within_a_few_epochs(n, n_obs, first, seed):
    n_obs = min(n, n_obs)
    resampling = Resampling(np.full(n, n_obs / n), np.zeros(n, np.int64), n_obs, {})
    n_epochs = int(np.ceil(3 * n / n_obs))
    assert (sum(resampling.copies(seed, first + epoch) for epoch in range(n_epochs)) > 0).all()


def test_other_cells_come_in_the_next_epoch():
    resampling = Resampling(np.full(1000, 0.3), np.zeros(1000, np.int64), 300, {})
    first, second = (resampling.copies(0, epoch) > 0 for epoch in range(2))
    assert (first & second).sum() == 0
    assert not np.array_equal(first, resampling.copies(1, 0) > 0)


def test_temperature_interpolates_between_equal_shares_and_those_of_cells():
    sizes = np.array([1.0, 0.0, 10.0, 1000.0])
    assert np.allclose(shares(sizes, 0), [1 / 3, 0, 1 / 3, 1 / 3])
    assert np.allclose(shares(sizes, 1), sizes / sizes.sum())
    assert np.allclose(shares(sizes, 0.5), np.sqrt(sizes) / np.sqrt(sizes).sum())


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 20), st.integers(1, 100))
def test_caps_give_to_other_labels_what_a_label_loses(sizes, cap, n_obs):
    labels = np.arange(len(sizes))
    totals = np.array(sizes, np.float64)
    if totals.sum() == 0:
        return
    totals *= n_obs / totals.sum()
    if cap * np.count_nonzero(totals) < n_obs:
        with pytest.raises(PlanError, match="permits"):
            capped(totals, labels, cap, n_obs)
        return
    limited = capped(totals, labels, cap, n_obs)
    assert limited.sum() == pytest.approx(n_obs)
    assert (limited <= cap + 1e-9).all()
    assert (limited >= np.minimum(totals, cap) - 1e-9).all()


# Chunks, slices and minibatches of copies


@given(copies=st.lists(st.integers(0, 9), min_size=1, max_size=60), chunk=st.integers(1, 12))
def test_chunks_have_all_copies_and_similar_sizes(copies, chunk):
    bounds = np.append(np.arange(0, len(copies), chunk), len(copies))
    chunks = chunks_of_copies(np.array(copies), bounds)
    new, cells_of = chunks.bounds, chunks.cells
    assert np.bincount(cells_of, minlength=len(copies)).tolist() == copies
    assert (np.diff(new) > 0).all()
    assert np.diff(new).max(initial=0) < 2 * len(copies) / (len(bounds) - 1) + 1
    home = np.searchsorted(bounds, cells_of, side="right")
    for low, high in zip(new[:-1], new[1:], strict=True):
        assert (np.diff(cells_of[low:high]) >= 0).all()
        assert len(set(home[low:high])) == 1


@given(data=st.data(), n_hands=st.integers(1, 12), size=st.integers(1, 8), seed=st.integers(0, 999))
def test_no_hand_gets_a_cell_twice_if_there_are_enough_hands(data, n_hands, size, seed):
    n = n_hands * size
    copies = []
    while sum(copies) < n:
        copies.append(min(n - sum(copies), data.draw(st.integers(1, n_hands))))
    dealt_cells, hands = np.repeat(np.arange(len(copies)), copies), np.repeat(np.arange(n_hands), size)
    bits = np.random.default_rng(seed).integers(0, 2**63, (2, n), dtype=np.uint64)
    same = np.zeros(n, np.bool_)
    places = deal(dealt_cells, hands, bits, rank_of_copy=same, rank_of_place=same)
    assert sorted(places.tolist()) == list(range(n))
    assert Counter(zip(dealt_cells, hands[places], strict=True)).most_common(1)[0][1] == 1


def repeats(order):
    """Number of cells that are in a minibatch more than once, over all minibatches."""
    yielded = cells(order, World())
    minibatches = [yielded[k : k + order.batch_size] for k in range(0, len(yielded), order.batch_size)]
    return sum(len(minibatch) - len(np.unique(minibatch)) for minibatch in minibatches)


@settings(max_examples=300)
@given(resampling=resamplings(), chunk=st.integers(1, 20), batch_size=st.integers(1, 30), seed=st.integers(0, 99))
def test_no_minibatch_has_a_cell_twice_if_memory_holds_the_epoch(resampling, chunk, batch_size, seed):
    copies = resampling.copies(seed, 0)
    if copies.max() > max(1, resampling.n_obs // batch_size):
        return
    bounds = np.append(np.arange(0, len(copies), chunk), len(copies))
    chunks = chunks_of_copies(copies, bounds)
    plan = ShufflePlan(len(chunks))
    assert repeats(EpochOrder(chunks.bounds, seed, 0, True, batch_size, plan, cells=chunks.cells)) == 0


@pytest.mark.parametrize("n_slices", [6, 16])
def test_few_minibatches_have_a_cell_twice_if_memory_holds_a_part(n_slices):
    """With windows of several minibatches: none in the middle of an epoch, and few at its ends."""
    rng = np.random.default_rng(1)
    copies = rng.choice([0, 1, 1, 2, 3], 40_000)
    chunks = chunks_of_copies(copies, np.arange(0, 40_001, 200))
    order = EpochOrder(chunks.bounds, 0, 0, True, 100, ShufflePlan(4, n_slices), cells=chunks.cells)
    yielded = cells(order, World())
    n = len(yielded) // 100
    repeated = np.array([100 - len(np.unique(yielded[100 * k : 100 * (k + 1)])) for k in range(n)])
    assert repeated[n // 5 : -n // 5].sum() == 0
    assert (repeated > 0).mean() < 0.02
    rows = np.argsort(yielded, kind="stable")
    gaps = np.diff(rows)[np.diff(yielded[rows]) == 0]
    assert np.median(gaps) > 500  # copies of a cell are minibatches apart


# Datasets


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """400 cells: 300 of type 0, 80 of type 1, 20 of type 2."""
    obs = labelled_obs(400)
    obs["cell_type"] = np.repeat(["common", "some", "rare"], [300, 80, 20])
    obs["weight"] = np.linspace(0, 2, 400)
    obs["one"] = "same"
    return write_experiment(tmp_path_factory.mktemp("resampled") / "cells", addressed(400, 12), obs, extent=16)


COLUMNS = ["soma_joinid", "cell_type"]


def make(store, **parameters):
    return ExperimentDataset(store, obs_column_names=COLUMNS, **{"batch_size": 10, "seed": 3, **parameters})


def joinids_of(dataset):
    return [obs[:, 0].tolist() for _, obs in dataset]


@pytest.mark.usefixtures("reading_path")
@pytest.mark.parametrize("sparse", [False, True])
def test_each_copy_has_the_row_and_labels_of_its_cell(store, sparse):
    expected = addressed(400, 12).toarray()
    balanced = make(store, return_sparse_X=sparse).resample(balance="cell_type")
    n_seen = Counter()
    for X, obs in balanced:
        assert np.array_equal(X.to_dense() if sparse else X, expected[obs[:, 0]])
        assert len(obs[:, 0].unique()) == len(obs)
        n_seen.update(balanced.obs_encoders["cell_type"].inverse_transform(obs[:, 1]).tolist())
    assert sum(n_seen.values()) == 400
    assert set(n_seen.values()) <= {133, 134}


@pytest.mark.parametrize("remainder", ["drop", "pad", "uneven"])
def test_ranks_and_workers_share_the_copies(store, remainder):
    whole = Counter(
        joinid for minibatch in joinids_of(make(store).resample(balance="cell_type")) for joinid in minibatch
    )
    ranks = [
        make(store, rank=r, world_size=3, rank_remainder=remainder).resample(balance="cell_type") for r in range(3)
    ]
    together, lengths = Counter(), set()
    for rank in ranks:
        minibatches = list(rank)
        assert len(minibatches) == len(rank)
        real = [obs[mask[0]] if mask else obs for _, obs, *mask in minibatches]
        lengths.add(sum(len(obs) for _, obs, *_ in minibatches))
        together.update(joinid for obs in real for joinid in obs[:, 0].tolist())
    assert not together - whole
    assert (whole - together).total() <= (2 if remainder == "drop" else 0)
    assert len(lengths) == 1 or remainder == "uneven"


@pytest.mark.slow
def test_worker_processes_yield_the_copies(store):
    dataset = make(store).resample(weights="weight", n_obs=500)
    expected = Counter(joinid for minibatch in joinids_of(dataset) for joinid in minibatch)
    dataset.set_epoch(0)
    loader = cellfeed.experiment_dataloader(dataset, num_workers=2)
    assert Counter(joinid for minibatch in joinids_of(loader) for joinid in minibatch) == expected


def test_the_rest_is_equal_at_every_step(store):
    dataset = make(store, soma_chunk_size=8, shuffle_chunk_count=6).resample(balance="cell_type", n_obs=330)
    whole = joinids_of(dataset)
    dataset.set_epoch(0)
    states = []
    for _ in dataset:
        states.append(json.loads(json.dumps(dataset.state_dict())))
    for k, state in enumerate(states[:-1], start=1):
        resumed = make(store, soma_chunk_size=8, shuffle_chunk_count=6).resample(balance="cell_type", n_obs=330)
        resumed.load_state_dict(state)
        assert joinids_of(resumed) == whole[k:]
    other = make(store, soma_chunk_size=8, shuffle_chunk_count=6).resample(balance="cell_type", temperature=0.5)
    with pytest.raises(StateError, match="resampling"):
        other.load_state_dict(states[0])


def test_chunks_without_a_copy_are_not_read(store):
    weights = np.zeros(400)
    weights[100:120] = 1
    dataset = make(store).resample(weights=weights, n_obs=15)
    assert dataset.plan().n_chunks <= 3
    joinids = np.concatenate(joinids_of(dataset))
    assert len(joinids) == 15
    assert set(joinids) <= set(range(100, 120))


def test_a_local_copy_is_written_and_read(store, tmp_path):
    dataset = make(store, local_copy=tmp_path / "copy").resample(max_per_label={"cell_type": 100})
    expected, epoch = addressed(400, 12).toarray(), 0
    while dataset.plan().n_obs_copied < 400:
        assert epoch < 10
        for X, obs in dataset:
            assert np.array_equal(X, expected[obs[:, 0]])
        epoch += 1
    n_copied = dataset.stats().n_obs_from_copy
    for X, obs in dataset:
        assert np.array_equal(X, expected[obs[:, 0]])
    assert dataset.stats().n_obs_from_copy == n_copied + 200


def test_a_local_copy_has_a_cell_once_that_a_minibatch_repeats(store, tmp_path):
    parameters = {"local_copy": tmp_path / "copy", "soma_chunk_size": 2, "shuffle_chunk_count": 1}
    dataset = make(store, **parameters).resample(weights="weight", n_obs=900)
    minibatches = joinids_of(dataset)
    assert any(len(set(minibatch)) < len(minibatch) for minibatch in minibatches)
    written = [anndata.read_zarr(part).obs["soma_joinid"] for part in (tmp_path / "copy").glob("dataset_*")]
    assert sorted(np.concatenate(written)) == sorted({joinid for minibatch in minibatches for joinid in minibatch})


def test_the_plan_predicts_shares_and_distinct_cells(store):
    plan = make(store).resample(balance="cell_type", temperature=0.5).plan("cell_type")
    roots = np.sqrt([300, 80, 20])
    assert list(plan.label_shares) == ["common", "some", "rare"]
    assert np.allclose(list(plan.label_shares.values()), roots / roots.sum())
    dataset = make(store).resample(balance="cell_type", temperature=0.5)
    yielded = np.concatenate(joinids_of(dataset))
    assert plan.n_drawn == len(yielded) == 400
    assert plan.n_distinct == len(np.unique(yielded))
    assert 0 < plan.effective_n_obs < 400
    assert dataset.stats().effective_batch_sizes["cell_type"] == pytest.approx(10, rel=0.15)
    assert make(store).plan("cell_type").label_shares == {"common": 0.75, "some": 0.2, "rare": 0.05}


def test_inference_and_selected_genes_have_the_right_cells(store):
    dataset = make(store).resample(balance="cell_type").select_genes(["G3"])
    assert sum(len(X) for X, _ in dataset) == 400
    joinids = torch.cat([joinids for _, _, joinids in cellfeed.inference_dataloader(dataset)])
    assert joinids.tolist() == list(range(400))


def test_weights_apply_within_labels(store):
    dataset = make(store).resample(balance="cell_type", weights="weight", n_obs=300)
    assert np.allclose(list(dataset.plan("cell_type").label_shares.values()), 1 / 3)
    record = dataset.provenance()["resampling"]
    assert json.loads(json.dumps(record)) == record
    assert record["weights"] == "weight"
    assert "resampled to 300 cells per epoch" in str(dataset)


BAD = [
    ({}, "changes nothing"),
    ({"balance": "no"}, "obs has no column 'no'"),
    ({"balance": "one"}, "same label"),
    ({"weights": "cell_type"}, "must be numbers"),
    ({"weights": np.ones(3)}, r"shape \(3,\) must have one number per cell"),
    ({"weights": np.zeros(400)}, "all weights are 0"),
    ({"weights": np.r_[np.ones(399), -1]}, "-1.0 of soma_joinid 399"),
    ({"weights": np.r_[np.nan, np.ones(399)]}, "nan of soma_joinid 0"),
    (
        {"weights": np.r_[np.ones(399), 1000.0]},
        "cell with soma_joinid 399 would come 285.9 times .* at most 40 copies .*batch_size=1",
    ),
    ({"balance": "cell_type", "n_obs": 8000}, None),
    ({"max_per_label": {"cell_type": 0}}, "at least 1"),
    ({"max_per_label": {"cell_type": 5, "one": 5}}, "must name one column"),
    ({"max_per_label": {"cell_type": 5}, "n_obs": 16}, "permits"),
    ({"temperature": 0.5, "n_obs": 9}, "needs balance="),
    ({"balance": "cell_type", "temperature": -1}, "from 0"),
    ({"n_obs": 0}, "n_obs=0 must be"),
    ({"n_obs": 2.5}, "n_obs=2.5 must be"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments_are_named_before_a_read(store, arguments, message):
    dataset = make(store)
    if message is None:
        dataset.resample(**arguments)
        return
    with pytest.raises((PlanError, SelectionError), match=message):
        dataset.resample(**arguments)


def test_more_copies_than_minibatches_are_refused_with_a_way_out(store):
    dataset = make(store, batch_size=60)
    with pytest.raises(
        PlanError, match=r"'rare' would come 6.7 times .* at most 6 copies .*batch_size=53 or a temperature"
    ):
        dataset.resample(balance="cell_type")
    dataset.resample(balance="cell_type", temperature=0.3)
    make(store, batch_size=60).resample(balance="cell_type", max_per_label={"cell_type": 100})


def test_a_budget_that_mixes_too_few_cells_is_refused_with_one_that_is_enough(tmp_path):
    uri = write_experiment(tmp_path / "long", addressed(4000, 10), extent=50, capacity=200)
    weights = np.where(np.arange(4000) % 500 == 0, 50.0, 1.0)
    parameters = {"batch_size": 40, "seed": 0, "obs_column_names": ["soma_joinid"], "return_sparse_X": True}
    with pytest.raises(PlanError, match="memory_budget='") as caught:
        ExperimentDataset(uri, memory_budget="400 KB", **parameters).resample(weights=weights)
    enough = re.search("memory_budget='(.*?)'", str(caught.value))[1]
    dataset = ExperimentDataset(uri, memory_budget=enough, **parameters).resample(weights=weights)
    n_repeated = np.array([len(obs) - len(obs.unique()) for _, obs in dataset])
    assert n_repeated[30:-30].sum() == 0


def test_parts_are_made_before_they_are_resampled(store):
    train, test = make(store).random_split([0.8, 0.2])
    balanced = train.resample(balance="cell_type")
    assert set(np.concatenate(joinids_of(balanced))) <= set(train.obs_joinids)
    with pytest.raises(PlanError, match=r"call random_split\(\) first"):
        balanced.random_split([0.5, 0.5])
    for divide in (
        lambda: balanced.folds(2),
        lambda: balanced.leave_one_out("cell_type"),
        lambda: balanced.split_by("one"),
    ):
        with pytest.raises(PlanError, match="of a resampled dataset"):
            divide()
    with pytest.raises(PlanError, match="call resample"):
        balanced.resample(n_obs=10)
    with pytest.raises(PlanError, match="shuffle=False"):
        make(store, shuffle=False).resample(n_obs=10)
    assert len(test.obs_joinids) == 80
