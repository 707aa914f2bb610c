"""Codes of obs in minibatches: the encoders of a dataset."""

import numpy as np
import pytest
import torch

from cellfeed import BatchEncoder, Encoder, ExperimentDataPipe, ExperimentDataset, LabelEncoder
from cellfeed.errors import EncodeError
from tests.support.stores import labelled_obs

pytestmark = pytest.mark.usefixtures("reading_path")


def test_default_encoders(store):
    dataset = ExperimentDataset(store, obs_column_names=["label", "text", "flag"], batch_size=100, shuffle=False)
    _, obs = next(iter(dataset))
    expected = labelled_obs(100)
    for k, name in enumerate(["label", "text", "flag"]):
        assert dataset.obs_encoders[name].inverse_transform(obs[:, k]).tolist() == expected[name].tolist()
    assert list(dataset.obs_encoders) == ["label", "text", "flag"]
    assert obs.dtype == torch.int64


def test_batch_encoder(make_store):
    pipe = ExperimentDataPipe(make_store(3), encoders=[BatchEncoder(["number", "text"])], batch_size=3, shuffle=False)
    _, obs = next(iter(pipe))
    assert pipe.obs_encoders["batch"].inverse_transform(obs[:, 0]).tolist() == ["0t0", "10t0", "20t1"]


class Halves(Encoder):
    """An encoder of a user: the half of the store that contains the cell, which no column has."""

    name = "half"
    columns = ("number",)

    def fit(self, obs):
        self.n = obs["number"].max()

    def transform(self, obs):
        return (obs["number"] > self.n // 2).astype(int)

    def inverse_transform(self, codes):
        return np.array(["low", "high"])[np.asarray(codes)]


def test_custom_encoders(store):
    dataset = ExperimentDataset(
        store, encoders=[Halves(), LabelEncoder("label", name="kind")], batch_size=100, shuffle=False
    )
    _, obs = next(iter(dataset))
    assert obs.shape == (100, 2)
    assert dataset.obs_encoders["half"].inverse_transform(obs[[0, 99], 0]).tolist() == ["low", "high"]
    assert list(dataset.obs_encoders) == ["half", "kind"]


def test_encoders_exclude_columns_and_duplicates(store):
    with pytest.raises(ValueError, match="exclude each other"):
        ExperimentDataset(store, encoders=[LabelEncoder("label")], obs_column_names=["text"])
    with pytest.raises(ValueError, match="two encoders have the name 'label'"):
        ExperimentDataset(store, encoders=[LabelEncoder("label"), LabelEncoder("text", name="label")])


def test_an_encoder_that_fails_is_named(store):
    class Bad(Halves):
        name = "bad"

        def transform(self, obs):
            return obs["number"] / 3

    with pytest.raises(EncodeError, match="'bad': transform must return one integer per cell"):
        ExperimentDataset(store, encoders=[Bad()])
