"""Devices of tensors: the default device, and minibatches that move."""

import pytest
import torch

import cellfeed
from cellfeed import ExperimentDataset, experiment_dataloader
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


def test_minibatches_move_to_a_device_as_a_whole(store):
    dataset = make(store, rank_remainder="pad", return_sparse_X=True)
    for source in (make(store), dataset, cellfeed.inference_dataloader(make(store))):
        minibatch = next(iter(source))
        there = minibatch.to("meta", non_blocking=True)
        assert type(there) is type(minibatch)
        assert [t.device.type for t in there] == ["meta"] * len(minibatch)
        assert [t.shape for t in there] == [t.shape for t in minibatch]
