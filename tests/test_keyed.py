"""Keyed orders: the same everywhere, different for different keys."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfeed.errors import PlanError
from cellfeed.plan.permutation import check_seed, interleave_by_weight, new_seed, permutation


@given(n=st.integers(0, 500), seed=st.integers(0, 2**64), key=st.lists(st.integers(0, 2**40), max_size=4))
def test_permutation_holds_each_number_once(n, seed, key):
    assert np.array_equal(np.sort(permutation(n, seed, *key)), np.arange(n))


def test_golden_order():
    """A saved state continues with the order of the version that wrote it: these numbers never change.

    They depend on NumPy's SeedSequence and Philox, whose bits are promised (NEP 19), and on a stable sort.
    """
    assert permutation(12, 42, 0, 7).tolist() == [7, 2, 9, 1, 3, 0, 10, 6, 11, 8, 4, 5]


@given(seed=st.integers(0, 1000), a=st.integers(0, 1000), b=st.integers(0, 1000))
def test_sums_of_seeds_and_keys_do_not_collide(seed, a, b):
    """Seed 0 in epoch 1 is not seed 1 in epoch 0, and a longer key is another key."""
    orders = {tuple(permutation(40, *k)) for k in {(seed, a, b), (seed + 1, a, b), (seed, a + 1, b), (seed, a)}}
    assert len(orders) == 4


@given(n=st.integers(0, 60), n_strata=st.integers(1, 9), seed=st.integers(0, 99), data=st.data())
def test_stratified_orders_take_one_item_of_each_stratum_in_turn(n, n_strata, seed, data):
    """Each group has one item from each stratum of weights, as long as there are any; nothing is lost."""
    order = permutation(n, seed, 0)
    weights = np.array(data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)), np.float64)
    mixed = interleave_by_weight(order, weights, n_strata)
    assert sorted(mixed) == list(range(n))
    stratum = np.empty(n, np.int64)
    stratum[order[np.argsort(weights[order], kind="stable")]] = np.arange(n) * n_strata // max(n, 1)
    for k in range(n // n_strata):
        assert len(set(stratum[mixed[k * n_strata : (k + 1) * n_strata]])) == n_strata
    for s in range(n_strata):  # within a stratum the order is the random one
        assert [c for c in mixed if stratum[c] == s] == [c for c in order if stratum[c] == s]


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True])
def test_bad_seed_is_named(seed):
    with pytest.raises(PlanError, match=r"seed=.* must be an integer of at least 0"):
        check_seed(seed)


def test_fresh_seeds_differ_and_survive_json_doubles():
    seeds = {new_seed() for _ in range(10)}
    assert len(seeds) == 10
    assert max(seeds) < 2**53
