"""The loader around the dataset, with and without worker processes."""

import multiprocessing
import os

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cellfeed import ExperimentDataPipe, ExperimentDataset, experiment_dataloader
from tests.support.stores import addressed, collect


@pytest.mark.parametrize("name", ["shuffle", "batch_size", "sampler", "batch_sampler", "collate_fn", "drop_last"])
def test_arguments_that_the_dataset_decides_are_refused_by_name(store, name):
    with pytest.raises(ValueError, match=f"does not take {name}=True; use "):
        experiment_dataloader(ExperimentDataset(store), **{name: True})


def test_other_mistakes(store):
    with pytest.raises(ValueError, match="dataset is a list"):
        experiment_dataloader([1])
    with pytest.raises(ValueError, match="num_workers=-1"):
        experiment_dataloader(ExperimentDataset(store), num_workers=-1)


@pytest.mark.parametrize("cls", [ExperimentDataset, ExperimentDataPipe])
def test_length_and_contents(make_store, cls):
    loader = experiment_dataloader(cls(make_store(10), obs_column_names=["soma_joinid"], batch_size=3))
    assert isinstance(loader, DataLoader)
    X, obs, sizes = collect(loader, 3)
    assert len(loader) == len(sizes) == 4
    assert sorted(obs[:, 0]) == list(range(10))
    assert np.array_equal(X, addressed(10, 3).toarray()[obs[:, 0]])


def test_batch_size_one(make_store):
    minibatches = list(experiment_dataloader(ExperimentDataPipe(make_store(6))))
    assert [X.shape for X, _ in minibatches] == [(3,)] * 6


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "persistent"), [(ExperimentDataset, False), (ExperimentDataPipe, True)])
def test_workers_yield_each_cell_once_and_other_orders_each_epoch(store, cls, persistent):
    """With sparse X, which peers refuse; the length is that of one process; epochs follow the main process."""
    dataset = cls(store, obs_column_names=["soma_joinid"], batch_size=7, seed=0, return_sparse_X=True)
    before = multiprocessing.get_start_method()  # fixes the default, as PyTorch does when it starts a worker
    loader = experiment_dataloader(dataset, num_workers=2, persistent_workers=persistent)
    epochs = []
    for _ in range(2):
        X, obs, sizes = collect(loader, 30)
        assert len(loader) == len(sizes) == 15
        assert sorted(obs[:, 0]) == list(range(100))
        assert np.array_equal(X, addressed(100, 30).toarray()[obs[:, 0]])
        epochs.append(obs[:, 0].tolist())
    assert epochs[0] != epochs[1]
    dataset.set_epoch(0)
    assert collect(loader, 30)[1][:, 0].tolist() == epochs[0]
    assert dataset.epoch == 1
    assert multiprocessing.get_start_method() == before  # nothing global is changed


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_is_an_error_and_not_a_hang(store):
    loader = experiment_dataloader(ExperimentDataset(store), num_workers=1, multiprocessing_context="fork", timeout=60)
    with pytest.raises(Exception, match="made before the process was forked"):
        list(loader)


def test_minibatches_stay_named_when_they_are_pinned(store, monkeypatch):
    """PyTorch makes a new minibatch of pinned tensors. Without an accelerator it cannot pin, so a clone is used."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    minibatch = next(iter(experiment_dataloader(ExperimentDataset(store, batch_size=50))))
    pinned = torch.utils.data._utils.pin_memory.pin_memory(minibatch)
    assert type(pinned) is type(minibatch)
    assert pinned.X is not minibatch.X
    assert torch.equal(pinned.X, minibatch.X)
    assert pinned.obs.shape == (50, 0)
