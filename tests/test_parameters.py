"""Parameters of the dataset: names, defaults, accepted types, and the types of X."""

import inspect
import json

import numpy as np
import pytest
import torch

from cellfeed import ExperimentDataset, experiment_dataloader
from cellfeed.plan.settings import PARAMETERS, Settings
from tests.support.stores import addressed, collect, write_experiment

pytestmark = pytest.mark.usefixtures("reading_path")


def test_parameters_are_those_of_settings(store):
    """The signature has the names and defaults of the settings, and each parameter takes effect."""
    signature = inspect.signature(ExperimentDataset).parameters
    assert all(signature[name].default is getattr(Settings, name) for name in PARAMETERS)
    changed = {
        "batch_size": 7, "shuffle": False, "seed": 5, "drop_last": True, "return_sparse_X": True, "X_dtype": "float16",
        "soma_chunk_size": 3, "shuffle_chunk_count": 2, "memory_budget": 1 << 26, "use_eager_fetch": False,
        "verify": False, "rank_remainder": "uneven", "rank": 1, "world_size": 2, "transform": torch.neg,
        "joinids": True,
    }  # fmt: skip
    settings = ExperimentDataset(store, **changed)._engine.settings
    assert {name: getattr(settings, name) for name in changed} == changed
    assert {*changed, "mixing"} == set(PARAMETERS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint16, np.int8])
def test_X_is_float32_with_exact_values(tmp_path, dtype):
    X = addressed(11, 3)
    uri = write_experiment(tmp_path / "typed", X, dtype=dtype)
    ours, _, _ = collect(ExperimentDataset(uri, batch_size=4, shuffle=False), 3)
    assert ours.dtype == np.float32
    assert np.array_equal(ours, X.toarray().astype(dtype).astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("X_dtype", ["float32", "float16", "bfloat16", "stored"])
@pytest.mark.parametrize("stored", [np.float32, np.float64, np.int64, np.uint8])
def test_X_dtype(tmp_path, sparse, X_dtype, stored):
    """Halves are what PyTorch rounds to; the store's own type holds every value."""
    X = addressed(20, 7)
    X.data = (X.data % 200).astype(np.float64)
    if np.dtype(stored).kind == "f":
        X.data[::3] += 1 / 3
    elif stored is np.int64:
        X.data[::3] += 2**40 if X_dtype != "float16" else 2**15  # more than 65,504 is an error
    uri = write_experiment(tmp_path / "typed", X, dtype=stored)
    dataset = ExperimentDataset(uri, batch_size=20, shuffle=False, return_sparse_X=sparse, X_dtype=X_dtype)
    (ours, _) = next(iter(dataset))
    wanted = torch.from_numpy(X.toarray().astype(stored))
    wanted = wanted if X_dtype == "stored" else wanted.to(torch.float32).to(getattr(torch, X_dtype))
    assert ours.dtype == wanted.dtype
    if sparse:
        assert torch.equal(ours.values(), wanted[wanted != 0])
    else:
        assert torch.equal(ours, wanted)


def test_integers_of_numpy_are_integers(store):
    """NumPy integers are valid wherever an integer is; saved records are plain JSON."""
    given = {
        "batch_size": np.int64(8), "seed": np.uint32(3), "soma_chunk_size": np.int32(4),
        "shuffle_chunk_count": np.uint8(2), "memory_budget": np.int64(1 << 30), "rank": np.int16(0),
        "world_size": np.int64(2),
    }  # fmt: skip
    dataset = ExperimentDataset(store, obs_column_names=["donor"], **given)
    plain = ExperimentDataset(store, obs_column_names=["donor"], **{name: int(value) for name, value in given.items()})
    loader = experiment_dataloader(dataset, num_workers=np.int64(0))
    assert torch.equal(torch.cat([obs for _, obs in loader]), torch.cat([obs for _, obs in plain]))
    for saved in (dataset.provenance(), dataset.state_dict()):
        json.dumps(saved)
    assert dataset.plan() == plain.plan()


@pytest.mark.parametrize("given", [torch.float16, "float16", np.float16, np.dtype("float16")], ids=repr)
def test_types_of_pytorch_and_numpy_name_themselves(store, given):
    (X, _) = next(iter(ExperimentDataset(store, X_dtype=given)))
    assert X.dtype == torch.float16


def test_a_share_may_be_a_percentage(store):
    assert (
        ExperimentDataset(store, mixing="90%", batch_size=4, seed=0).plan()
        == ExperimentDataset(store, mixing=0.9, batch_size=4, seed=0).plan()
    )
