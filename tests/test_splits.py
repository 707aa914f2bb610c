"""Splits: disjoint, complete, fixed by the seed, true to their weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfeed.errors import PlanError
from cellfeed.plan.splits import check_weights, part_sizes, split, split_cells, split_groups, split_stratified

weights = st.lists(st.integers(1, 20), min_size=1, max_size=5).map(lambda w: np.array(w) / sum(w))
codes = st.lists(st.integers(0, 4), max_size=120).map(lambda c: np.array(c, np.int64))


def check_parts(parts, n):
    assert np.array_equal(np.sort(np.concatenate([*parts, np.empty(0, np.int64)])), np.arange(n))
    assert all(np.all(np.diff(part) > 0) for part in parts)


@given(n=st.integers(0, 300), w=weights, seed=st.integers(0, 100))
def test_cells(n, w, seed):
    parts = split_cells(n, w, seed)
    check_parts(parts, n)
    assert all(abs(len(part) - n * share) <= 1 for part, share in zip(parts, w, strict=True))
    again = split_cells(n, w, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_seven_of_ten_and_other_cells_for_another_seed():
    first, second = (split_cells(10, np.array([0.7, 0.3]), seed) for seed in (1234, 1235))
    assert [len(p) for p in first] == [7, 3]
    assert first[1].tolist() != second[1].tolist()


@given(strata=codes, w=weights, seed=st.integers(0, 100))
def test_stratified(strata, w, seed):
    """Parts have the sizes of a plain split, and within 1.5 cells their share of each stratum."""
    parts = split_stratified(strata, w, seed)
    check_parts(parts, len(strata))
    assert [len(p) for p in parts] == part_sizes(len(strata), w).tolist()
    for stratum in np.unique(strata):
        n = np.sum(strata == stratum)
        for part, share in zip(parts, w, strict=True):
            assert abs(np.sum(strata[part] == stratum) - n * share) < 1.5


@given(groups=codes, w=weights, seed=st.integers(0, 100), stratify=st.booleans())
def test_groups(groups, w, seed, stratify):
    parts = split_groups(groups, w, seed, np.arange(len(groups)) % 3 if stratify else None)
    check_parts(parts, len(groups))
    by_part = [set(groups[part].tolist()) for part in parts]
    assert sum(map(len, by_part)) == len(set(groups.tolist()))


@pytest.mark.parametrize("stratify", [True, False])
@pytest.mark.parametrize(
    ("w", "n_groups"),
    [
        ([0.8, 0.2], [1, 1]),
        ([0.8, 0.2], [2, 1]),
        ([0.8, 0.2], [4, 1]),
        ([0.8, 0.2], [8, 2]),
        ([0.8, 0.1, 0.1], [2, 1, 1]),
        ([0.8, 0.1, 0.1], [8, 1, 1]),
        ([0.95, 0.05, 0.0], [4, 1, 0]),
    ],
    ids=str,
)
def test_parts_of_few_groups_have_sizes_near_their_weights(w, n_groups, stratify):
    """Also where each group has a stratum of its own. A part with a weight is not empty."""
    groups = np.repeat(np.arange(sum(n_groups)), 100)
    parts = split(len(groups), np.array(w), 0, strata=groups if stratify else None, groups=groups)
    assert [len(part) for part in parts] == [100 * n for n in n_groups]


def test_equal_groups_follow_the_weights_and_the_seed():
    groups = np.repeat(np.arange(20), 5)
    parts = [split_groups(groups, np.array([0.8, 0.2]), seed) for seed in range(5)]
    assert all([len(p) for p in two] == [80, 20] for two in parts)
    assert len({tuple(two[1]) for two in parts}) > 1


def test_groups_can_be_stratified():
    """Of ten donors of each kind, each part gets its share of both kinds."""
    groups = np.repeat(np.arange(20), 4)
    strata = (groups >= 10).astype(np.int64)
    for part, n in zip(split_groups(groups, np.array([0.5, 0.5]), 3, strata), (40, 40), strict=True):
        assert len(part) == n
        assert strata[part].sum() == n // 2


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"a": 0.5, "b": 0.4}, "sum to 0.9; they must sum to 1"),
        ([1.5, -0.5], "numbers of at least 0"),
        ([], "one or more numbers"),
        (["x"], "numbers"),
        ([float("nan")], "numbers"),
    ],
)
def test_bad_weights_are_named(bad, text):
    with pytest.raises(PlanError, match=r"weights=.*" + text):
        check_weights(bad)


@given(
    st.integers(2, 12).flatmap(lambda n: st.lists(st.integers(1, 40), min_size=n, max_size=n)),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_groups_of_few_strata_keep_the_sizes(sizes, n_strata, seed):
    """Each group may be of one stratum, so that no part can have a share of each: sizes stay near the weights."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    weights = np.array([0.8, 0.2])
    parts = split_groups(groups, weights, seed, groups % n_strata)
    assert all(abs(len(part) - len(groups) * w) <= max(sizes) for part, w in zip(parts, weights, strict=True))


def test_one_type_of_cell_in_each_library_leaves_cells_to_each_part():
    groups = np.repeat(np.arange(10), 5000)
    parts = split(50_000, np.array([0.8, 0.2]), 0, groups=groups, strata=groups)
    assert [len(part) for part in parts] == [40_000, 10_000]


def test_splits_of_groups_that_fit_keep_their_cells():
    """A part that has cells, and is within one group of its size, has the same cells in each version of cellfeed."""
    groups = np.repeat(np.arange(12), [3, 9, 4, 7, 5, 8, 6, 2, 9, 4, 7, 6])
    strata = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2])[groups]
    parts = split_groups(groups, np.array([0.7, 0.3]), 3, strata)
    assert [np.unique(groups[part]).tolist() for part in parts] == [[0, 4, 5, 6, 7, 8, 9, 10], [1, 2, 3, 11]]


@given(groups=codes, w=weights, seed=st.integers(0, 99), n_strata=st.integers(1, 5))
def test_strata_leave_no_part_empty(groups, w, seed, n_strata):
    """If there is a group for each part, each part has cells, whatever the strata."""
    if len(np.unique(groups)) >= len(w):
        assert all(len(part) for part in split_groups(groups, w, seed, groups % n_strata))
