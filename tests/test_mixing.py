"""``mixing`` is reached: whole datasets over real stores."""

import numpy as np
import pandas as pd
import pytest

from cellfeed import ExperimentDataset, PlanError, SelectionError, experiment_dataloader
from tests.support.stores import addressed, write_experiment

N = 48_000
PARAMETERS = {"obs_column_names": ["dataset_id"], "batch_size": 128, "seed": 3}


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Thirty data sets of unequal size one after another; row-blocks of 64."""
    rng = np.random.default_rng(0)
    ends = np.sort(rng.choice(np.arange(200, N), 29, replace=False))
    obs = pd.DataFrame({"dataset_id": [f"d{k:02}" for k in np.searchsorted(ends, np.arange(N), side="right")]})
    X = addressed(N, 12, 0.5)
    obs["nnz"] = np.diff(X.indptr)
    return write_experiment(tmp_path_factory.mktemp("long") / "s", X, obs, extent=64, capacity=300)


def received(dataset, n_epochs):
    for _ in range(n_epochs):
        for _ in dataset:
            pass
    return dataset.stats().effective_batch_sizes["dataset_id"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"memory_budget": "1.2 MB"},
        {"memory_budget": "2 MB", "return_sparse_X": True},
        {"soma_chunk_size": 16, "shuffle_chunk_count": 20},
        {"soma_chunk_size": 16, "shuffle_chunk_count": 60},
        {"soma_chunk_size": 32, "memory_budget": "1.2 MB"},
        {"mixing": 0.5, "memory_budget": "1.2 MB"},
    ],
)
def test_stats_report_what_plan_predicted(long, parameters):
    dataset = ExperimentDataset(long, **PARAMETERS, **parameters)
    predicted = dataset.plan(label="dataset_id").effective_batch_size
    assert predicted < 124
    assert received(dataset, 8) == pytest.approx(predicted, rel=0.1)


def test_of_a_stratified_split_and_of_a_scattered_selection(long):
    dataset = ExperimentDataset(long, **PARAMETERS, memory_budget="1.2 MB")
    train, _ = dataset.random_split([0.5, 0.5], seed=1, stratify="dataset_id")
    assert received(train, 15) == pytest.approx(train.plan(label="dataset_id").effective_batch_size, rel=0.1)


def test_of_one_of_two_ranks(long):
    dataset = ExperimentDataset(long, **PARAMETERS, memory_budget="1.2 MB", rank=1, world_size=2)
    inverse = np.mean([1 / _at(dataset, epoch).plan(label="dataset_id").effective_batch_size for epoch in range(12)])
    dataset.set_epoch(0)
    assert received(dataset, 12) == pytest.approx(1 / inverse, rel=0.1)


def _at(dataset, epoch):
    dataset.set_epoch(epoch)
    return dataset


@pytest.mark.slow
def test_workers_are_counted_too(long):
    dataset = ExperimentDataset(long, **PARAMETERS, soma_chunk_size=16, shuffle_chunk_count=20)
    for _ in experiment_dataloader(dataset, num_workers=1):
        pass
    assert 15 < dataset.stats().effective_batch_sizes["dataset_id"] < 20


@pytest.mark.parametrize("mixing", [0.3, 0.6, 0.8])
def test_what_is_asked_for_is_what_comes(long, mixing):
    """The mixing is at least the requested one in the worst case, with the largest chunks that reach it."""
    dataset = ExperimentDataset(long, **PARAMETERS, mixing=mixing, memory_budget="1.2 MB")
    plan = dataset.plan()
    assert plan.mixing >= 0.95 * mixing
    assert received(dataset, 8) / 128 >= 0.9 * mixing
    if plan.chunk_rows < 60:
        twice = round(plan.chunk_rows) * 2
        larger = ExperimentDataset(long, **PARAMETERS, soma_chunk_size=twice, memory_budget="1.2 MB").plan()
        assert larger.mixing < mixing * 1.02


def test_a_mixing_that_fits_takes_whole_row_blocks(long):
    plan = ExperimentDataset(long, **PARAMETERS, mixing=1.0).plan()
    assert (plan.chunk_rows, plan.mixing, plan.decode_amplification) == (N / 750, 1.0, pytest.approx(1, abs=0.1))


def test_what_is_not_possible_says_what_is(long):
    with pytest.raises(PlanError) as caught:
        ExperimentDataset(long, **PARAMETERS, mixing=0.999, memory_budget="1 MB")
    text = str(caught.value)
    assert "mixing=0.999 of batch_size=128 is not possible within memory_budget=977 KiB; possible is 0." in text
    budgets = [way.split("'")[1] for way in text.split("memory_budget=")[2:]]
    assert len(budgets) == 2
    for budget in budgets:  # each proposed change is enough
        ExperimentDataset(long, **PARAMETERS, mixing=0.999, memory_budget=budget)


def test_workers_that_mix_less_are_refused(long):
    dataset = ExperimentDataset(long, **PARAMETERS, mixing=0.9, memory_budget="4 MB")
    with pytest.raises(PlanError, match=r"mixing=0\.9 is not reached by num_workers=4.*num_workers=0"):
        next(iter(experiment_dataloader(dataset, num_workers=4)))


@pytest.mark.parametrize("mixing", [0, -0.1, 1.1, True, "nine", "110%", float("nan")])
def test_targets_that_are_none(long, mixing):
    with pytest.raises(PlanError, match="must be more than 0 and at most 1"):
        ExperimentDataset(long, mixing=mixing)


@pytest.mark.parametrize(
    "parameters", [{"shuffle": False}, {"soma_chunk_size": 64}, {"shuffle_chunk_count": 10}], ids=str
)
def test_two_ways_of_saying_how_to_shuffle(long, parameters):
    with pytest.raises(PlanError, match="give one"):
        ExperimentDataset(long, mixing=0.5, **parameters)


def test_labels_that_are_not_there(long):
    with pytest.raises(SelectionError, match="obs has no column 'data_set'"):
        ExperimentDataset(long).plan(label="data_set")


def test_a_state_knows_the_chunks_that_a_mixing_chose(long):
    """Another budget may choose other chunks, for which a saved position is invalid: this is an error."""
    from cellfeed import StateError

    small = ExperimentDataset(long, **PARAMETERS, mixing=0.8, memory_budget="1.2 MB")
    large = ExperimentDataset(long, **PARAMETERS, mixing=0.8)
    assert small.plan().chunk_rows < large.plan().chunk_rows
    with pytest.raises(StateError, match="chunk_rows"):
        large.load_state_dict(small.state_dict())
