"""Devices of tensors: the default device, and minibatches that move."""

import pickle

import numpy as np
import pytest
import torch

import cellfeed
from cellfeed import ExperimentDataset, experiment_dataloader
from cellfeed.rows.device_copies import DeviceCopies
from cellfeed.transforms import Compose, Log1p, NormalizeTotal, SelectGenes


def make(store, **parameters):
    return ExperimentDataset(store, **{"obs_column_names": ["soma_joinid"], "batch_size": 8, "seed": 3, **parameters})


@pytest.mark.filterwarnings("ignore:1 of 3 genes are not in the store")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_default_device_changes_nothing(store, num_workers):
    """Tensors name their device: "meta", on which nothing has values, stands for any."""
    var_names = [f"G{k}" for k in range(30)]
    transform = Compose(NormalizeTotal(), SelectGenes(["G7", "G2", "new"], var_names, missing="zeros"), Log1p())
    ways = {"return_sparse_X": True, "use_eager_fetch": False}, {"rank_remainder": "pad"}, {"batch_size": 1}

    def everything():
        for way in ways[: 1 if num_workers else None]:  # starting a worker takes seconds
            dataset = make(store, transform=transform, obs_column_names=["label"], **way)
            loader = experiment_dataloader(dataset, num_workers=num_workers)
            yield from (tensor for minibatch in loader for tensor in minibatch)
            loader.load_state_dict(loader.state_dict())
        yield from (tensor for minibatch in cellfeed.inference_dataloader(dataset) for tensor in minibatch)

    expected = list(everything())
    torch.set_default_device("meta")
    try:
        found = list(everything())
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(a.to_dense(), b.to_dense()) for a, b in zip(expected, found, strict=True))


def test_the_indices_of_a_transform_are_copied_to_a_device_once(monkeypatch):
    """A copy per minibatch would wait for the device. Processes that unpickle a transform copy them again."""
    var_names = [f"G{k}" for k in range(30)]
    select = SelectGenes(["G7", "G2"], var_names)
    copied = []
    from_numpy = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: copied.append(array) or from_numpy(array))
    for device in ("meta", "cpu", "meta"):
        assert select(torch.ones(4, 30, device=device)).shape == (4, 2)
    assert len(copied) == 2 * 3
    again = pickle.loads(pickle.dumps(select))
    assert again(torch.ones(4, 30, device="meta")).device.type == "meta"
    assert len(copied) == 3 * 3


def test_copies_outlive_the_work_of_each_stream(monkeypatch):
    copies, recorded = DeviceCopies(np.arange(3)), []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: recorded.append(stream))
    for stream in ("one", "other"):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device, stream=stream: stream)
        copies.on(torch.device("cuda"))
    assert recorded == ["one", "other"]


def test_a_minibatch_that_is_on_the_device_keeps_its_tensors(store):
    """Lightning moves each minibatch, also those that a loader has made on the device."""
    extended = make(store, joinids=True, obs_values=["number"], return_sparse_X=True)
    for dataset in (make(store), make(store, return_sparse_X=True), make(store, rank_remainder="pad"), extended):
        minibatch = next(iter(experiment_dataloader(dataset, device="cpu")))
        moved = minibatch.to(torch.device("cpu"))
        assert type(moved) is type(minibatch)
        assert all(a is b or a == b == {} for a, b in zip(moved, minibatch, strict=True))


def test_minibatches_move_to_a_device_as_a_whole(store):
    dataset = make(store, rank_remainder="pad", return_sparse_X=True)
    for source in (make(store), dataset, cellfeed.inference_dataloader(make(store))):
        minibatch = next(iter(source))
        there = minibatch.to("meta", non_blocking=True)
        assert type(there) is type(minibatch)
        assert [t.device.type for t in there] == ["meta"] * len(minibatch)
        assert [t.shape for t in there] == [t.shape for t in minibatch]
