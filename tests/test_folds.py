"""Folds and splits by values: each cell in one part, groups whole, sizes even, the same in each process."""

import json
from itertools import chain

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from cellfeed import ExperimentDataPipe, ExperimentDataset, experiment_dataloader
from cellfeed.errors import PlanError, SelectionError
from cellfeed.plan.folds import all_but, cells_of_labels, fold_cells, parts_of_labels
from cellfeed.plan.splits import split_cells
from tests.support.stores import addressed, labelled_obs, write_experiment

codes = st.lists(st.integers(0, 6), min_size=2, max_size=120).map(lambda c: np.array(c, np.int64))
seeds = st.integers(0, 100)


def check_partition(parts, n):
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert all(np.all(np.diff(part) > 0) for part in parts)


# The plan


@given(n=st.integers(2, 300), k=st.integers(2, 12), seed=seeds)
def test_folds_have_equal_sizes_and_are_a_function_of_the_seed(n, k, seed):
    assume(k <= n)
    parts = fold_cells(n, k, seed)
    check_partition(parts, n)
    assert {len(part) for part in parts} <= {n // k, n // k + 1}
    again = fold_cells(n, k, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    same = split_cells(n, np.full(k, 1 / k), seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, same, strict=True))


def test_folds_of_another_seed_have_other_cells():
    assert fold_cells(100, 5, 0)[0].tolist() != fold_cells(100, 5, 1)[0].tolist()


@given(strata=codes, k=st.integers(2, 6), seed=seeds)
@example(strata=np.repeat([0, 1, 2, 3], [3, 7, 3, 3]), k=4, seed=0)  # the last stratum was in one fold
def test_folds_have_their_share_of_each_stratum(strata, k, seed):
    assume(k <= len(strata))
    parts = fold_cells(len(strata), k, seed, strata=strata)
    check_partition(parts, len(strata))
    assert {len(part) for part in parts} <= {len(strata) // k, len(strata) // k + 1}
    for stratum in np.unique(strata):
        expected = (strata == stratum).sum() / k
        assert all(abs((strata[part] == stratum).sum() - expected) < 1 for part in parts)


@given(groups=codes, k=st.integers(2, 6), seed=seeds, stratify=st.booleans())
def test_groups_stay_whole_in_folds(groups, k, seed, stratify):
    assume(k <= len(np.unique(groups)))
    parts = fold_cells(len(groups), k, seed, groups=groups, strata=groups % 2 if stratify else None)
    check_partition(parts, len(groups))
    assert all(len(part) for part in parts)
    assert sum(len(np.unique(groups[part])) for part in parts) == len(np.unique(groups))
    largest = np.bincount(groups).max()
    assert all(abs(len(part) - len(groups) / k) <= largest for part in parts)


@given(codes)
def test_cells_of_labels_and_their_complements(codes):
    parts = cells_of_labels(codes, 7)
    check_partition(parts, len(codes))
    for label, part in enumerate(parts):
        assert (codes[part] == label).all()
        check_partition([part, all_but(part, len(codes))], len(codes))


@given(st.dictionaries(st.sampled_from("ABCDEFGH"), st.integers(0, 3), min_size=1), st.integers(0, 3))
def test_each_value_goes_to_the_part_that_lists_it(part_of, rest):
    """Values that are not in a list go to the part without one."""
    parts = {k: [value for value, part in part_of.items() if part == k] for k in range(4) if k != rest}
    parts = {k: values for k, values in parts.items() if values}
    others = [value for value in part_of if part_of[value] == rest]
    names = [*parts, *([rest] if others else [])]
    found = parts_of_labels(list(part_of), {**parts, **({rest: None} if others else {})}, "gene")
    assert [names[k] for k in found] == list(part_of.values())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"a": ["A"], "b": ["A", "B", "C"]}, "'A' is in the parts 'a' and 'b'"),
        ({"a": ["A"]}, "2 of 3 values of 'gene' are in no part: 'B', 'C'; list them, or add .* \"others\": None"),
        ({"a": ["A", "CC"], "b": None}, "no cell of the dataset has 'CC' in 'gene'; did you mean 'C'"),
        ({"a": None, "b": None}, "only one part can be None"),
        ({"a": ["A", "B", "C"], "b": None}, r"parts\['b'\]=None has none of the values of 'gene'; leave it out"),
        ({"a": None, "b": []}, r"parts\['b'\]=\[\] has none"),
    ],
)
def test_bad_lists_are_named(parts, message):
    with pytest.raises(PlanError, match=message):
        parts_of_labels(["A", "B", "C"], parts, "gene")


# The datasets


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    """60 cells with columns ``gene``, ``split`` and ``donor``; a few cells have no donor."""
    obs = labelled_obs(60).assign(
        gene=pd.Categorical(["control", "A", "B", "C", "D", "E"] * 10),
        split=pd.Categorical(["train", "test", "train"] * 20),
        donor=pd.Categorical(["d1", "d2", None, "d3", "d2"] * 12),
    )
    return write_experiment(tmp_path_factory.mktemp("screen") / "cells.soma", addressed(60, 10), obs), obs


def cells_of(dataset):
    return dataset.obs_joinids.tolist()


def yielded(dataset):
    return sorted(int(j) for _, obs in experiment_dataloader(dataset) for j in obs[:, 0])


def test_a_column_with_the_name_of_each_part_splits_the_cells(screen):
    uri, obs = screen
    parts = ExperimentDataset(uri, obs_column_names=["soma_joinid"], seed=0, batch_size=7).split_by("split")
    assert list(parts) == ["test", "train"]
    for name, part in parts.items():
        assert yielded(part) == np.flatnonzero(obs["split"] == name).tolist()


def test_lists_of_perturbations_split_the_cells(screen):
    uri, obs = screen
    dataset = ExperimentDataset(uri, obs_column_names=["soma_joinid"], seed=0)
    parts = dataset.split_by("gene", {"train": None, "validation": np.array(["A"]), "test": ("B", "C")})
    assert list(parts) == ["train", "validation", "test"]
    assert yielded(parts["test"]) == np.flatnonzero(obs["gene"].isin(["B", "C"])).tolist()
    assert yielded(parts["validation"]) == np.flatnonzero(obs["gene"] == "A").tolist()
    assert sorted(chain.from_iterable(map(cells_of, parts.values()))) == list(range(60))
    record = parts["test"].provenance()["splits"]
    assert record == [{"column": "gene", "values": ["B", "C"], "part": "test"}]
    assert json.loads(json.dumps(record)) == record
    assert parts["train"].provenance()["splits"][0]["values"] is None


def test_cells_without_a_value_are_listed_as_none(screen):
    uri, obs = screen
    dataset = ExperimentDataset(uri, seed=0)
    with pytest.raises(PlanError, match=r"12 of 60 cells have no value of 'donor'.*'others': \[None\]"):
        dataset.split_by("donor")
    parts = dataset.split_by("donor", {"known": ["d1", "d2", "d3"], "others": [float("nan")]})
    assert cells_of(parts["others"]) == np.flatnonzero(obs["donor"].isna()).tolist()


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"test": "A", "train": None}, PlanError, r"parts\['test'\]='A' must be a list of names: \['A'\]"),
        ({"test": {"A", "B"}, "train": None}, PlanError, r"parts\['test'\]=.* is a set"),
        (["A"], PlanError, r"parts=\['A'\] must be a dict of lists of values"),
        ({}, PlanError, r"parts=\{\} must be a dict"),
    ],
)
def test_bad_parts_are_named(screen, parts, error, message):
    with pytest.raises(error, match=message):
        ExperimentDataset(screen[0], seed=0).split_by("gene", parts)


@pytest.mark.parametrize("options", [{}, {"group": "donor"}, {"stratify": "gene"}, {"group": "donor", "seed": 3}])
def test_each_cell_is_in_one_test_part_and_in_all_other_training_parts(screen, options):
    uri, obs = screen
    dataset = ExperimentDataset(uri, obs_column_names=["soma_joinid"], seed=0, batch_size=8)
    pairs = list(dataset.folds(3, **options))
    assert sorted(chain.from_iterable(cells_of(test) for _, test in pairs)) == list(range(60))
    for fold, (train, test) in enumerate(pairs):
        assert sorted(cells_of(train) + cells_of(test)) == list(range(60))
        assert (yielded(train), yielded(test)) == (cells_of(train), cells_of(test))
        if "group" in options:
            assert not set(obs["donor"].iloc[cells_of(train)]) & set(obs["donor"].iloc[cells_of(test)])
        [record] = train.provenance()["splits"]
        assert record == {
            "folds": 3,
            "seed": 0,
            "stratify": None,
            "group": None,
            **options,
            "fold": fold,
            "part": "train",
        }
    again = [cells_of(test) for _, test in dataset.folds(3, **options)]
    assert again == [cells_of(test) for _, test in pairs]


@pytest.mark.parametrize("k", [1, 0, True, 2.5, "5", 61])
def test_bad_numbers_of_folds_are_named_before_the_first_fold(screen, k):
    with pytest.raises(PlanError, match="k=.* must be an integer of at least 2, and at most 60, the number of cells"):
        ExperimentDataset(screen[0], seed=0).folds(k)


def test_more_folds_than_groups_are_refused(screen):
    dataset = ExperimentDataset(screen[0], seed=0)
    with pytest.raises(PlanError, match="k=5 must .* at most 4, the number of groups"):
        dataset.folds(5, group="donor")
    with pytest.raises(SelectionError, match="no column 'donr'; did you mean 'donor'"):
        dataset.folds(3, group="donr")
    with pytest.raises(PlanError, match="seed=-1 must be"):
        dataset.folds(3, seed=-1)


def test_each_group_is_left_out_once(screen):
    uri, obs = screen
    dataset = ExperimentDataset(uri, obs_column_names=["soma_joinid"], seed=0)
    left_out = list(dataset.leave_one_out("donor"))
    assert [value for value, _, _ in left_out] == ["d1", "d2", "d3", None]
    for value, train, test in left_out:
        own = obs["donor"].isna() if value is None else obs["donor"] == value
        assert yielded(test) == np.flatnonzero(own).tolist()
        assert yielded(train) == np.flatnonzero(~own).tolist()
        assert test.provenance()["splits"] == [{"leave_one_out": "donor", "value": value, "part": "test"}]


def test_a_single_group_cannot_be_left_out(screen):
    part = ExperimentDataset(screen[0], obs_query="gene == 'A'", seed=0)
    with pytest.raises(PlanError, match="group='gene' has 1 distinct value"):
        part.leave_one_out("gene")


def test_parts_are_split_again_and_keep_the_class_of_the_dataset(screen):
    """A test part by perturbation, then folds of the training part; also of a datapipe."""
    datapipe = ExperimentDataPipe(screen[0], obs_column_names=["gene"], batch_size=5, seed=0)
    train = datapipe.split_by("gene", {"train": None, "test": ["A"]})["train"]
    inner, validation = next(train.folds(5))
    assert isinstance(inner, ExperimentDataPipe)
    assert (len(cells_of(inner)), len(cells_of(validation))) == (40, 10)
    assert [record["part"] for record in inner.provenance()["splits"]] == ["train", "train"]
    assert inner.obs_encoders["gene"].classes_.tolist() == ["A", "B", "C", "D", "E", "control"]
