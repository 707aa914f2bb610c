"""Code for the published loader runs with its import changed: the same methods and attributes exist."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cellfeed import (
    BatchEncoder,
    EncodeError,
    Encoder,
    ExperimentDataPipe,
    ExperimentDataset,
    LabelEncoder,
    PlanError,
    experiment_dataloader,
)


def make(store, **options):
    return ExperimentDataPipe(store, **{"obs_column_names": ["label"], "shuffle": False, **options})


def test_the_obs_of_a_minibatch_is_decoded_as_one_column(store):
    """obs of one column has shape (n, 1); its values come back in shape (n,), as those of scikit-learn's encoders."""
    pipe = make(store, batch_size=4)
    obs = next(iter(pipe))[1]
    assert obs.shape == (4, 1)
    decoded = pipe.obs_encoders["label"].inverse_transform(obs)
    assert decoded.tolist() == ["type 0", "type 1", "type 2", "type 0"]
    both = BatchEncoder(cols=["label", "flag"])
    pipe = make(store, obs_column_names=(), encoders=[both], batch_size=2)
    assert both.inverse_transform(next(iter(pipe))[1]).tolist() == ["type 0True", "type 1False"]


def test_encoders_have_their_published_names(store):
    label, batch = LabelEncoder(col="label"), BatchEncoder(cols=["label", "donor"], name="b")
    assert (label.col, label.name, label.columns) == ("label", "label", ["label"])
    assert (batch.cols, batch.name, batch.columns) == (["label", "donor"], "b", ["label", "donor"])
    for wrong in (LabelEncoder, BatchEncoder):
        with pytest.raises(EncodeError, match="give one of them"):
            wrong()
    with pytest.raises(EncodeError, match="LabelEncoder takes column= or, by its published name, col="):
        LabelEncoder("label", col="label")


class Unnamed(Encoder):
    """Reads the joinid without naming its column."""

    name, columns = "parity", ("label",)

    def fit(self, obs):
        assert list(obs.columns) == ["label", "soma_joinid"]

    def transform(self, obs):
        return obs["soma_joinid"] % 2

    def inverse_transform(self, codes):
        return np.asarray(codes)


def test_an_encoder_may_read_the_joinid_unnamed(store):
    pipe = make(store, obs_column_names=(), encoders=[Unnamed(), LabelEncoder("label")], batch_size=4)
    assert next(iter(pipe))[1].tolist() == [[0, 0], [1, 1], [0, 2], [1, 0]]
    assert pipe.obs_column_names == ["label"]


def test_a_loader_is_made_of_datapipe(store):
    pipe = make(store, batch_size=30)
    assert [len(X) for X, obs in experiment_dataloader(datapipe=pipe)] == [30, 30, 30, 10]
    with pytest.raises(PlanError, match="give one of them"):
        experiment_dataloader(pipe, datapipe=pipe)
    with pytest.raises(PlanError, match="give one of them"):
        experiment_dataloader()


def half(batch):
    return batch[0] / 2, batch[1]


def test_a_chain_of_datapipes_is_loaded(store):
    """Each cell once an epoch, in other orders, as without the chain; workers are refused."""
    pipe = make(store, batch_size=30, shuffle=True, seed=1, obs_column_names=["soma_joinid"])
    plain = [(X / 2, obs) for _ in range(2) for X, obs in pipe]
    chain = make(store, batch_size=30, shuffle=True, seed=1, obs_column_names=["soma_joinid"]).map(half).map(tuple)
    loader = experiment_dataloader(chain)
    loaded = [batch for _ in range(2) for batch in loader]
    assert [obs.tolist() for _, obs in loaded] == [obs.tolist() for _, obs in plain]
    assert all(torch.equal(X, wanted) for (X, _), (wanted, _) in zip(loaded, plain, strict=True))
    with pytest.raises(PlanError, match=r"num_workers=2 with a chain of datapipes \(MapperIterDataPipe\)"):
        experiment_dataloader(chain, 2)
    with pytest.raises(PlanError, match="does not take batch_size=3"):
        experiment_dataloader(chain, batch_size=3)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("rank_remainder", ["drop", "pad"])
def test_only_a_datapipe_yields_single_cells(store, sparse, rank_remainder):
    """With batch_size=1, its X and obs lose their first dimension, in loaders too; those of a dataset keep it."""
    parameters = {
        "obs_column_names": ["label"], "batch_size": 1, "seed": 0,
        "return_sparse_X": sparse, "rank_remainder": rank_remainder,
    }  # fmt: skip
    pipe, dataset = ExperimentDataPipe(store, **parameters), ExperimentDataset(store, **parameters)
    for source in (pipe, experiment_dataloader(pipe), pipe.random_split([0.5, 0.5])[0]):
        X, obs, *_ = next(iter(source))
        assert (tuple(X.shape), tuple(obs.shape)) == ((1, 30) if sparse else (30,), (1,))
    for source in (dataset, experiment_dataloader(dataset)):
        X, obs, *_ = next(iter(source))
        assert (tuple(X.shape), tuple(obs.shape)) == ((1, 30), (1, 1))
    with pytest.raises(PlanError, match="collates minibatches of this dataset"):
        next(iter(DataLoader(dataset, batch_size=4)))


def test_weights_of_a_split_have_any_sum(store):
    """As in torchdata: proportions by name, with a length that is not needed, and one part alone by its name."""
    pipe = make(store, seed=1)
    weights = {"a": 4, "b": 1}
    a, b = pipe.random_split(weights=weights, total_length=len(pipe), seed=7)
    assert (a.shape[0], b.shape[0]) == (80, 20)
    assert isinstance(a, ExperimentDataPipe)
    same = pipe.random_split({"a": 0.8, "b": 0.2}, seed=7)
    assert [part.obs_joinids.tolist() for part in same] == [a.obs_joinids.tolist(), b.obs_joinids.tolist()]
    assert pipe.random_split(weights, 7, target="b").obs_joinids.tolist() == b.obs_joinids.tolist()
    assert [part.shape[0] for part in pipe.random_split([1, 1])] == [50, 50]
    with pytest.raises(PlanError, match="target='c' must be a part"):
        pipe.random_split(weights, target="c")
    for wrong in ({"a": -1, "b": 2}, {"a": "x"}, [0, 0]):
        with pytest.raises(PlanError, match="weights="):
            pipe.random_split(wrong)


def test_public_attributes_are_there(store):
    """Of a part of a split, too, and of a query."""
    pipe = make(
        store, batch_size=5, return_sparse_X=True, soma_chunk_size=16, obs_column_names=["label", "soma_joinid"]
    )
    for one in (pipe, pipe.random_split([0.5, 0.5])[1]):
        assert (one.batch_size, one.return_sparse_X, one.soma_chunk_size, one.use_eager_fetch) == (5, True, 16, True)
        assert (one.exp_uri, one.measurement_name, one.layer_name) == (store, "RNA", "raw")
        assert one.obs_column_names == ["label", "soma_joinid"]
    assert make(store).obs_column_names == ["label"]
    both = make(store, obs_column_names=(), encoders=[BatchEncoder(["label", "donor"]), LabelEncoder("label")])
    assert both.obs_column_names == ["label", "donor"]
