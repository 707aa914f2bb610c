"""Numbers of cells per label, and weights of labels."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfeed import BatchEncoder, Encoder, ExperimentDataset, LabelEncoder, SelectionError
from cellfeed.select.class_counts import balanced_weights
from tests.support.stores import addressed, labelled_obs, write_experiment


@given(st.lists(st.integers(0, 10_000), max_size=8).map(lambda counts: np.array(counts, np.int64)))
def test_labels_have_equal_total_weights_and_the_mean_weight_of_a_cell_is_one(counts):
    weights = balanced_weights(counts)
    assert weights.dtype == np.float32
    assert np.array_equal(weights > 0, counts > 0)
    totals = (weights * counts)[counts > 0]
    assert np.allclose(totals, counts.sum() / max(np.count_nonzero(counts), 1), rtol=1e-5)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=100))
def test_weights_are_those_of_scikit_learn(labels):
    class_weight = pytest.importorskip("sklearn.utils.class_weight")
    classes, counts = np.unique(labels, return_counts=True)
    expected = class_weight.compute_class_weight("balanced", classes=classes, y=labels)
    assert np.allclose(balanced_weights(counts), expected, rtol=1e-6)


@pytest.fixture(scope="module")
def gaps(tmp_path_factory):
    """20 cells; a third of them has no label."""
    obs = labelled_obs(20).assign(label=pd.Categorical((["b", "a", None] * 7)[:20]))
    return write_experiment(tmp_path_factory.mktemp("gaps") / "cells.soma", addressed(20, 5), obs)


class Halves(Encoder):
    """An encoder without ``classes_``, whose code 1 no cell has."""

    name, columns = "half", ("number",)

    def fit(self, obs):
        pass

    def transform(self, obs):
        return np.where(obs["number"].to_numpy() < 150, 2, 0)

    def inverse_transform(self, codes):
        return np.array(["late", "-", "early"])[np.asarray(codes)]


def test_cells_without_a_label_are_the_last_label_or_are_not_counted(gaps):
    without_code = LabelEncoder("label", handle_unknown="use_encoded_value", unknown_value=-100)
    by_encoder = {
        "class": LabelEncoder("label"),
        "code": without_code,
        "other": LabelEncoder("label", classes=["b", "c", "a"], handle_unknown="use_encoded_value", unknown_value=7),
    }
    with pytest.warns(UserWarning, match="no value for 6 of 20 cells"):
        counts = {
            name: ExperimentDataset(gaps, encoders=[encoder], seed=0).class_counts("label")
            for name, encoder in by_encoder.items()
        }
    assert list(counts["class"].items()) == [("a", 7), ("b", 7), (None, 6)]
    assert list(counts["code"].items()) == [("a", 7), ("b", 7)]
    assert list(counts["other"].items()) == [("b", 7), ("c", 0), ("a", 7)]
    plain = ExperimentDataset(gaps, seed=0).class_counts("label")
    assert list(plain.items()) == [("a", 7), ("b", 7), (None, 6)]
    assert (plain.index.name, plain.name) == ("label", "n_obs")


def test_combinations_and_encoders_of_users_are_counted(gaps):
    dataset = ExperimentDataset(gaps, encoders=[BatchEncoder(["donor", "flag"]), Halves()], seed=0)
    assert dataset.class_counts("batch").to_dict() == {
        f"donor {k}{flag}": 2 for k in range(5) for flag in (False, True)
    }
    assert list(dataset.class_counts("half").items()) == [("late", 5), ("-", 0), ("early", 15)]
    with pytest.raises(SelectionError, match="no column 'batsh'"):
        dataset.class_counts("batsh")


def test_codes_of_a_minibatch_decode_to_text(gaps):
    dataset = ExperimentDataset(gaps, obs_column_names=["donor", "soma_joinid"], batch_size=6, seed=0)
    for _, obs in dataset:
        donors = dataset.obs_encoders["donor"].inverse_transform(obs[:, 0])
        assert donors.tolist() == dataset.obs_frame(obs[:, 1], ["donor"])["donor"].tolist()
