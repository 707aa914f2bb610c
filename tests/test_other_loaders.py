"""Loaders of PyTorch and torchdata around a dataset: those that work, and those that are refused."""

import pytest
import torch
from torch.utils.data import ChainDataset, ConcatDataset, DataLoader, DistributedSampler, IterableDataset, Subset
from torch.utils.data import random_split as torch_split

from cellfeed import ExperimentDataPipe, ExperimentDataset, PlanError


def make(store, **parameters):
    return ExperimentDataset(store, **{"obs_column_names": ["soma_joinid"], "batch_size": 8, "seed": 3, **parameters})


@pytest.mark.parametrize("cls", [ExperimentDataset, ExperimentDataPipe])
def test_a_loader_that_would_stack_minibatches_is_refused(store, cls):
    dataset = cls(store, batch_size=8, seed=0)
    with pytest.raises(PlanError, match="minibatches of minibatches.*experiment_dataloader.*batch_size=None"):
        next(iter(DataLoader(dataset, batch_size=4)))
    if cls is ExperimentDataset:
        with pytest.raises(PlanError, match="minibatches of minibatches"):
            next(iter(DataLoader(ChainDataset([dataset, dataset]), batch_size=4)))
    assert len(list(DataLoader(dataset, batch_size=None))) == 13


class Cells(IterableDataset):
    """Yields the single cells of minibatches."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        for X, obs in self.dataset:
            yield from zip(X, obs, strict=True)


def test_loaders_that_put_together_what_is_apart_are_served(store):
    """Single cells, minibatches that another dataset divides into cells, and a user's collate_fn."""
    single = list(DataLoader(ExperimentDataPipe(store, obs_column_names=["soma_joinid"]), batch_size=40))
    assert [tuple(X.shape) for X, obs in single] == [(40, 30), (40, 30), (20, 30)]
    apart = list(DataLoader(Cells(make(store)), batch_size=40))
    assert [tuple(X.shape) for X, obs in apart] == [(40, 30), (40, 30), (20, 30)]
    joined = list(DataLoader(make(store), batch_size=5, collate_fn=lambda ms: torch.cat([m.X for m in ms])))
    assert [len(X) for X in joined] == [40, 40, 20]


def test_minibatches_have_no_numbers(store):
    """PyTorch's ways to divide a dataset by index raise an error that names ``random_split`` of the dataset."""
    dataset = make(store)
    for divided in (Subset(dataset, [0, 1]), torch_split(dataset, [10, 3])[0]):
        with pytest.raises(PlanError, match="dataset.random_split"):
            next(iter(DataLoader(divided, batch_size=None)))
    with pytest.raises((AssertionError, TypeError)):
        ConcatDataset([dataset])
    with pytest.raises(ValueError, match="sampler"):
        DataLoader(dataset, batch_size=None, sampler=DistributedSampler(dataset, 2, 0))


def test_workers_of_another_loader_are_refused(store):
    """They cannot know the epoch or the rank, and no state counts what they send."""
    loader = DataLoader(make(store), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(PlanError, match=r"cellfeed.experiment_dataloader\(dataset, num_workers=1\)"):
        next(iter(loader))


class Lazy(IterableDataset):
    """Makes its dataset in the process that iterates over it."""

    def __init__(self, store, **parameters):
        self.store, self.parameters = store, parameters

    def __iter__(self):
        dataset = make(self.store, **self.parameters)
        yield from ([(obs[:, 0].tolist()) for _, obs in dataset] for _ in range(2))


def test_datasets_that_workers_make_themselves_share_the_cells(store):
    """With one seed, their epochs advance; without a seed, each would draw its own order and cells would be lost."""
    options = {"batch_size": None, "num_workers": 2, "multiprocessing_context": "spawn"}
    epochs = list(DataLoader(Lazy(store), **options))
    for epoch in range(2):
        assert sorted(j for of in epochs[2 * epoch : 2 * epoch + 2] for m in of for j in m) == list(range(100))
    assert epochs[0] != epochs[2]
    with pytest.raises(PlanError, match="seed=None with 2 workers"):
        list(DataLoader(Lazy(store, seed=None), **options))


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("stop_at", [1, 5])
def test_torchdata_goes_on_without_workers_and_is_refused_with_them(store, stop_at):
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    whole = [m.obs[:, 0].tolist() for m in make(store)]
    loader = stateful.StatefulDataLoader(make(store), batch_size=None)
    before = []
    for minibatch in loader:
        before.append(minibatch.obs[:, 0].tolist())
        if len(before) == stop_at:
            state = loader.state_dict()
            break
    other = stateful.StatefulDataLoader(make(store), batch_size=None)
    other.load_state_dict(state)
    after = [m.obs[:, 0].tolist() for m in other]
    assert before + after == whole
    workers = stateful.StatefulDataLoader(make(store), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(PlanError, match="cellfeed.experiment_dataloader"):
        next(iter(workers))
