"""The rhythm of a walk: when chunks arrive and leave, and what is held meanwhile."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfeed.plan.schedule import GROWTH, MAX_SLICES, ShufflePlan, best_shuffle_plan, schedule
from tests.support.strategies import mixings


def held(made, k):
    """Chunks that are there when window k begins, those that have partly left in part."""
    there = (made.fetch_window <= k) & (made.first_window + made.n_slices > k)
    left = np.clip(k - made.first_window, 0, made.n_slices)
    return float((1 - left / made.n_slices)[there].sum())


@given(n=st.integers(0, 300), mixing=mixings())
def test_every_chunk_arrives_before_it_leaves_and_in_order(n, mixing):
    made = schedule(n, mixing)
    assert len(made.fetch_window) == len(made.first_window) == len(made.n_slices) == n
    assert np.all(made.fetch_window <= made.first_window)
    assert np.all(made.n_slices >= 1)
    assert np.all(made.n_slices <= max(1, mixing.n_slices))
    for column in (made.fetch_window, made.first_window, made.first_window + made.n_slices):
        assert np.all(np.diff(column) >= 0)  # walks search in them
    assert made.n_windows == (made.first_window[-1] + 1 if n else 0)
    assert set(made.first_window.tolist()) == set(range(made.n_windows))


@given(n=st.integers(1, 400), mixing=mixings())
def test_bound(n, mixing):
    """No more is held, and no more arrives, than is said; the rounding of the first groups apart."""
    made = schedule(n, mixing)
    spare = 2 if mixing.n_slices > 1 else 0
    arriving = np.bincount(made.fetch_window, minlength=made.n_windows)
    assert arriving[1:].max(initial=0) <= mixing.chunks_ahead
    assert max(held(made, k) for k in range(made.n_windows)) <= mixing.chunks_held + spare


@given(n=st.integers(1, 400), mixing=mixings())
def test_a_walk_begins_no_larger_than_it_is_told(n, mixing):
    made = schedule(n, mixing)
    if mixing.warmup_chunks:
        assert (made.fetch_window == 0).sum() <= max(mixing.warmup_chunks + 1, 1)


@pytest.mark.parametrize(
    "mixing",
    [ShufflePlan(2, 29, warmup_chunks=9), ShufflePlan(15, 29, warmup_chunks=40), ShufflePlan(6, 32, warmup_chunks=30)],
)
def test_growing_asks_for_no_more_than_it_says(mixing):
    """From any window on: a training loop that takes little less than can be read does not wait for the growth."""
    made = schedule(1000, mixing)
    there = np.array([held(made, k) for k in range(made.n_windows)])
    arrived = np.cumsum(np.bincount(made.fetch_window, minlength=made.n_windows))
    left = arrived - there  # when a window begins
    growing = int(np.argmax(there > 0.9 * mixing.chunks_held))
    assert growing > mixing.n_slices / 2
    for k in range(1, growing):
        assert np.all(arrived[k:growing] - arrived[k - 1] <= GROWTH * (left[k:growing] - left[k - 1]) + 2)


def test_golden_growth():
    made = schedule(30, ShufflePlan(2, 29, warmup_chunks=9))
    assert np.bincount(made.fetch_window).tolist() == [9, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 2, 1, 2]


@given(room=st.floats(1, 5000), ahead=st.booleans())
def test_best_mixing_keeps_within_its_room(room, ahead):
    mixing = best_shuffle_plan(room, prefetch=ahead)
    assert mixing.n_slices <= MAX_SLICES
    assert mixing.chunks_held + mixing.chunks_ahead * ahead <= max(room, 1 + ahead)
    assert best_shuffle_plan(room * 1.5, prefetch=ahead).chunks_mixed >= mixing.chunks_mixed


@given(room=st.floats(40, 5000))
def test_slices_mix_more_than_is_held(room):
    assert best_shuffle_plan(room, prefetch=True).chunks_mixed > 1.4 * room
