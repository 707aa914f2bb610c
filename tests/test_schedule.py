"""The schedule of a shard: when chunks are fetched and yielded, and what the pool holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfeed.plan.schedule import GROWTH, MAX_SLICES, ShufflePlan, best_shuffle_plan, schedule
from tests.support.strategies import mixings


def held(made, k):
    """Chunks in the pool when window k begins; a chunk that was yielded in part counts in part."""
    there = (made.fetch_window <= k) & (made.first_window + made.n_slices > k)
    left = np.clip(k - made.first_window, 0, made.n_slices)
    return float((1 - left / made.n_slices)[there].sum())


@given(n=st.integers(0, 300), plan=mixings())
def test_every_chunk_arrives_before_it_leaves_and_in_order(n, plan):
    made = schedule(n, plan)
    assert len(made.fetch_window) == len(made.first_window) == len(made.n_slices) == n
    assert np.all(made.fetch_window <= made.first_window)
    assert np.all(made.n_slices >= 1)
    assert np.all(made.n_slices <= max(1, plan.n_slices))
    for column in (made.fetch_window, made.first_window, made.first_window + made.n_slices):
        assert np.all(np.diff(column) >= 0)  # ShardWindows searches in them
    assert made.n_windows == (made.first_window[-1] + 1 if n else 0)
    assert set(made.first_window.tolist()) == set(range(made.n_windows))


@given(n=st.integers(1, 400), plan=mixings())
def test_bound(n, plan):
    """The pool and the fetches are no larger than stated, except for the rounding of the first groups."""
    made = schedule(n, plan)
    spare = 2 if plan.n_slices > 1 else 0
    arriving = np.bincount(made.fetch_window, minlength=made.n_windows)
    assert arriving[1:].max(initial=0) <= plan.chunks_ahead
    assert max(held(made, k) for k in range(made.n_windows)) <= plan.chunks_held + spare


@given(n=st.integers(1, 400), plan=mixings())
def test_the_first_fetch_is_limited(n, plan):
    made = schedule(n, plan)
    if plan.warmup_chunks:
        assert (made.fetch_window == 0).sum() <= max(plan.warmup_chunks + 1, 1)


@pytest.mark.parametrize(
    "plan",
    [ShufflePlan(2, 29, warmup_chunks=9), ShufflePlan(15, 29, warmup_chunks=40), ShufflePlan(6, 32, warmup_chunks=30)],
)
def test_growing_asks_for_no_more_than_it_says(plan):
    """From any window on: a training loop that takes little less than can be read does not wait for the growth."""
    made = schedule(1000, plan)
    there = np.array([held(made, k) for k in range(made.n_windows)])
    arrived = np.cumsum(np.bincount(made.fetch_window, minlength=made.n_windows))
    left = arrived - there  # when a window begins
    growing = int(np.argmax(there > 0.9 * plan.chunks_held))
    assert growing > plan.n_slices / 2
    for k in range(1, growing):
        assert np.all(arrived[k:growing] - arrived[k - 1] <= GROWTH * (left[k:growing] - left[k - 1]) + 2)


def test_golden_growth():
    made = schedule(30, ShufflePlan(2, 29, warmup_chunks=9))
    assert np.bincount(made.fetch_window).tolist() == [9, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 2, 1, 2]


@given(max_chunks=st.floats(1, 5000), prefetch=st.booleans())
def test_best_mixing_keeps_within_its_room(max_chunks, prefetch):
    plan = best_shuffle_plan(max_chunks, prefetch=prefetch)
    assert plan.n_slices <= MAX_SLICES
    assert plan.chunks_held + plan.chunks_ahead * prefetch <= max(max_chunks, 1 + prefetch)
    assert best_shuffle_plan(max_chunks * 1.5, prefetch=prefetch).chunks_mixed >= plan.chunks_mixed


@given(max_chunks=st.floats(40, 5000))
def test_slices_mix_more_than_is_held(max_chunks):
    assert best_shuffle_plan(max_chunks, prefetch=True).chunks_mixed > 1.4 * max_chunks
