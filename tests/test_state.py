"""Saved states: their content, what they restore, and which ones are refused."""

import io
import itertools
import json

import numpy as np
import pytest
import torch

from cellfeed import ExperimentDataPipe, ExperimentDataset, StateError, experiment_dataloader
from tests.support.stores import addressed, labelled_obs, write_experiment

MIXING = {"chunks_per_window": 3, "n_slices": 1, "warmup_chunks": 0, "windows_per_read": 8}
CHUNKS = {"soma_chunk_size": 4, "shuffle_chunk_count": 3, "batch_size": 7, "seed": 5}


def make(store, cls=ExperimentDataset, **parameters):
    return cls(store, obs_column_names=["soma_joinid"], **{**CHUNKS, **parameters})


def cells(minibatches, n=None):
    """joinids of the next n minibatches, or of all."""
    minibatches = minibatches if n is None else itertools.islice(minibatches, n)
    return [minibatch.obs[:, 0].tolist() for minibatch in minibatches]


def flat(minibatches):
    return sorted(itertools.chain.from_iterable(minibatches))


def through_json(state):
    return json.loads(json.dumps(state))


def through_torch(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("passed_on", [through_json, through_torch])
@pytest.mark.parametrize("cls", [ExperimentDataset, ExperimentDataPipe])
def test_the_rest_is_equal_at_every_step(store, passed_on, cls):
    """After a restore at any minibatch, another object yields the same rest of the epoch, and the same next epoch."""
    whole, following = (cells(make_at_epoch(store, cls, epoch)) for epoch in (0, 1))
    dataset = make(store, cls)
    iterator = iter(dataset)
    for k in range(len(whole) + 1):
        restored = make(store, cls)
        restored.load_state_dict(passed_on(dataset.state_dict()))
        if k < len(whole):
            assert len(restored) == len(whole)
            assert cells(restored) == whole[k:]
        assert cells(restored) == following
        assert cells(iterator, 1 if k < len(whole) else 0) == whole[k : k + 1]


def make_at_epoch(store, cls, epoch):
    dataset = make(store, cls)
    dataset.set_epoch(epoch)
    return dataset


def test_contents_are_small_and_plain(store):
    """A few hundred bytes, however many cells; numbers and text only."""
    dataset = make(store)
    iterator = iter(dataset)
    next(iterator)
    state = dataset.state_dict()
    assert state["epoch"] == 0
    assert state["segments"] == [{"world_size": 1, "num_workers": 1, "mixing": MIXING, "received": 1}]
    assert len(json.dumps(state)) < 1000
    assert through_json(state) == state


def test_a_state_is_that_of_the_training_loop_not_of_what_was_read_ahead(store):
    """Minibatches that threads and workers made ahead are not counted, nor are those of an abandoned epoch."""
    dataset = make(store)
    first = iter(dataset)
    cells(first, 3)
    assert dataset.state_dict()["segments"][0]["received"] == 3
    second = iter(dataset)
    cells(second, 2)
    next(first)
    state = dataset.state_dict()
    assert (state["epoch"], state["segments"][0]["received"]) == (1, 2)


def test_before_between_and_after_epochs(store):
    """A state can be taken at any time: before an epoch it is its beginning, after one the beginning of the next."""
    dataset, whole = make(store), cells(make(store))
    restored = make(store)
    restored.load_state_dict(dataset.state_dict())
    assert cells(restored) == whole
    dataset.set_epoch(3)
    assert dataset.state_dict()["epoch"] == 3
    restored.load_state_dict(dataset.state_dict())
    assert restored.epoch == 3
    assert cells(restored) == cells(dataset)
    restored.load_state_dict(dataset.state_dict())
    assert restored.epoch == 4


def test_a_restored_state_without_iteration_is_the_same_state(store):
    dataset = make(store)
    iterator = iter(dataset)
    cells(iterator, 4)
    state = dataset.state_dict()
    restored = make(store)
    restored.load_state_dict(state)
    assert restored.state_dict() == state
    restored.set_epoch(0)  # a choice of the user's own comes after it
    assert cells(restored) == cells(make(store))


def test_restoring_again_and_again_keeps_one_stage(store):
    """Restores on the same layout are merged: the state does not grow."""
    whole = cells(make(store))
    state = make(store).state_dict()
    for k in range(len(whole)):
        dataset = make(store)
        dataset.load_state_dict(state)
        assert cells(iter(dataset), 1) == whole[k : k + 1]
        state = dataset.state_dict()
        assert [segment["received"] for segment in state["segments"]] == [k + 1]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 2), (2, 3)])
def test_worker_processes(store, before, after):
    """The state counts the minibatches that the loop received; another number of workers yields the other cells."""
    loader = experiment_dataloader(make(store, return_sparse_X=True), num_workers=before)
    iterator = iter(loader)
    received = cells(iterator, 4)
    state = through_json(loader.state_dict())
    rest = cells(iterator)
    assert state["segments"][-1]["received"] == 4
    restored = experiment_dataloader(make(store, return_sparse_X=True), num_workers=after)
    restored.load_state_dict(state)
    n = len(restored)
    again = cells(restored)
    assert len(received) + len(again) == n
    assert flat(received + again) == list(range(100))
    if before == after:
        assert again == rest
    assert flat(cells(restored)) == list(range(100))


@pytest.mark.slow
def test_persistent_workers_follow_a_restore(store):
    loader = experiment_dataloader(make(store), num_workers=2, persistent_workers=True)
    whole = cells(loader)
    iterator = iter(loader)
    cells(iterator, 3)
    state = loader.state_dict()
    rest = cells(iterator)
    loader.load_state_dict(state)
    assert cells(loader) == rest
    loader.dataset.set_epoch(0)
    assert cells(loader) == whole


@pytest.mark.parametrize("rank_remainder", ["drop", "pad", "uneven"])
@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1), (1, 4)])
def test_other_numbers_of_ranks(store, rank_remainder, before, after):
    """From one state that serves all ranks, and from those of all, no cell is lost and none comes twice."""
    for together in (True, False):
        joinids, states = [], []
        for rank in range(before):
            dataset = make(store, rank=rank, world_size=before, rank_remainder=rank_remainder)
            iterator = iter(dataset)
            for minibatch in (next(iterator) for _ in range(2 if together else 1 + rank)):
                joinids += real(minibatch)
            states.append(through_json(dataset.state_dict()))
        state = states[0] if together else states
        lengths = set()
        for rank in range(after):
            dataset = make(store, rank=rank, world_size=after, rank_remainder=rank_remainder)
            dataset.load_state_dict(state)
            minibatches = list(dataset)
            lengths.add(len(minibatches))
            for minibatch in minibatches:
                joinids += real(minibatch)
        assert len(set(joinids)) == len(joinids)
        assert len(joinids) == 100 if rank_remainder != "drop" else 100 - after < len(joinids) <= 100
        assert len(lengths) == 1 or rank_remainder == "uneven"


def real(minibatch):
    mask = minibatch.mask if hasattr(minibatch, "mask") else torch.ones(len(minibatch.obs), dtype=torch.bool)
    return minibatch.obs[mask, 0].tolist()


def test_another_memory_budget_goes_on_with_the_other_cells(make_store):
    """The window in progress is finished in its order; the windows after it are planned again."""
    store = make_store(6000, 3)
    parameters = {"soma_chunk_size": None, "shuffle_chunk_count": None, "batch_size": 10}
    small, large = (make(store, **parameters, memory_budget=budget) for budget in ("200 KB", "2 GiB"))
    assert small.plan().chunks_per_block < large.plan().chunks_per_block
    for before, after in ((small, large), (large, small)):
        iterator = iter(before)
        first = cells(iterator, 7)
        after.load_state_dict(before.state_dict())
        assert flat(first + cells(after)) == list(range(6000))


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"seed": 6}, "seed=5, and this dataset has seed=6"),
        ({"batch_size": 8}, "batch_size=7"),
        ({"shuffle": False}, "shuffle"),
        ({"drop_last": True}, "drop_last"),
        ({"rank_remainder": "pad"}, "rank_remainder='drop'"),
        ({"soma_chunk_size": 5}, "soma_chunk_size"),
        ({"shuffle_chunk_count": 4}, "shuffle_chunk_count"),
        ({"X_name": "other"}, "X_name='raw'"),
        ({"obs_query": "number < 500"}, "n_obs=100"),
        ({"obs_query": "number != 500"}, "obs_joinids|n_obs"),
        ({"var_query": "soma_joinid != 3"}, "n_vars=30"),
    ],
)
def test_a_wrong_continuation_is_refused_by_the_name_of_the_field(tmp_path_factory, parameters, field):
    import tiledbsoma as soma

    path = tmp_path_factory.getbasetemp() / "two_layers.soma"
    if not path.exists():
        write_experiment(path, addressed(100, 30), labelled_obs(100), layers=("raw", "other"))
    queries = {k: soma.AxisQuery(value_filter=v) for k, v in parameters.items() if k.endswith("query")}
    dataset = make(str(path), **{**parameters, **queries})
    with pytest.raises(StateError, match=field):
        dataset.load_state_dict(make(str(path)).state_dict())


def test_cells_of_the_same_number_are_distinguished(store):
    """A part of a split refuses the state of another part."""
    left, right = make(store).random_split([0.5, 0.5], seed=0)
    assert left.shape == right.shape
    with pytest.raises(StateError, match="obs_joinids"):
        left.load_state_dict(right.state_dict())
    left.load_state_dict(left.state_dict())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "must be what state_dict"),
        ([], "must be what state_dict"),
        ("text", "must be what state_dict"),
        ({}, "is not what state_dict"),
        ({"version": 99}, "version 99; this cellfeed reads version 2"),
    ],
)
def test_what_is_no_state(store, state, message):
    with pytest.raises(StateError, match=message):
        make(store).load_state_dict(state)


@pytest.mark.parametrize(
    "damage",
    [
        {"epoch": -1},
        {"epoch": "1"},
        {"segments": [{"world_size": 2}]},
        {"segments": [{"world_size": 2, "num_workers": 1, "mixing": MIXING, "received": [1]}]},
        {"segments": [{"world_size": 0, "num_workers": 1, "mixing": MIXING, "received": 1}]},
        {"fingerprint": {}},
    ],
)
def test_damaged_states(store, damage):
    dataset = make(store)
    with pytest.raises(StateError):
        dataset.load_state_dict({**dataset.state_dict(), **damage})
    assert cells(dataset) == cells(make(store))  # nothing of the state was adopted


def test_states_of_ranks_must_belong_together(store):
    states = []
    for rank in range(2):
        dataset = make(store, rank=rank, world_size=2)
        next(iter(dataset))
        states.append(dataset.state_dict())
    fresh = make(store, rank=0, world_size=3)
    with pytest.raises(StateError, match="ranks \\[0, 0\\] were given where 2 ranks"):
        fresh.load_state_dict([states[0], states[0]])
    with pytest.raises(StateError, match="ranks 0 and 1 do not belong together: epochs 0 and 1"):
        fresh.load_state_dict([states[0], {**states[1], "epoch": 1}])


def test_too_many_restores(store):
    """The number of segments has a limit; exceeding it is an error."""
    dataset = make(store)
    state = dataset.state_dict()
    segment = {"world_size": 1, "num_workers": 1, "mixing": MIXING, "received": 0}
    state["segments"] = [{**segment, "num_workers": 1 + k % 2} for k in range(5000)]
    with pytest.raises(StateError, match="5000 restores"):
        dataset.load_state_dict(state)


def test_numbers_of_numpy_are_numbers(store):
    """Checkpoints of other libraries may have NumPy's ints; the state that is saved next has Python's."""
    dataset = make(store)
    next(iter(dataset))
    state = dataset.state_dict()
    state["epoch"] = np.int64(state["epoch"])
    state["segments"] = [{**segment, "received": np.int64(segment["received"])} for segment in state["segments"]]
    restored = make(store)
    restored.load_state_dict(state)
    assert through_json(restored.state_dict()) == dataset.state_dict()
