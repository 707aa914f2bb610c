"""The effective batch size that a plan predicts is that of its minibatches."""

import numpy as np
import pytest

from cellfeed.plan.effective_batch_size import steady_batch_size
from cellfeed.plan.epoch import EpochOrder, World, chunk_bounds
from cellfeed.plan.mixing_target import worst_mixing
from cellfeed.plan.schedule import ShufflePlan, best_shuffle_plan
from cellfeed.plan.summary import effective_batch_size
from tests.support.fakes import cells, shard_windows

RNG = np.random.default_rng(0)
N = 60_000


def contiguous():
    """Forty data sets of unequal size, one after another."""
    ends = np.sort(RNG.choice(np.arange(1, N), 39, replace=False))
    return np.searchsorted(ends, np.arange(N), side="right")


def mixed():
    """Five labels that come in every chunk, the proportions drifting."""
    drift = np.linspace(0, 1, N)
    return (RNG.random(N) < drift).astype(np.int64) * RNG.integers(1, 5, N)


LABELS = {"contiguous": contiguous(), "mixed": mixed(), "repeated": np.arange(N) // 400 % 7}


def plan_of(chunk, mixing, batch_size, epoch=0, shuffle=True, n=N):
    return EpochOrder(chunk_bounds(n, chunk), 1, epoch, shuffle, batch_size, mixing, drop_last=True)


def predicted(plan, world, codes=None):
    return effective_batch_size(shard_windows(plan, world), codes)


def delivered(plan, codes, world):
    """Sum over minibatches of the squared distances of proportions, and the number of minibatches."""
    n_labels = codes.max() + 1
    p = np.bincount(codes, minlength=n_labels) / len(codes)
    labels = codes[cells(plan, world)]
    batches = labels[: len(labels) // plan.batch_size * plan.batch_size].reshape(-1, plan.batch_size)
    counts = np.stack([np.bincount(batch, minlength=n_labels) for batch in batches])
    return ((counts / plan.batch_size - p) ** 2).sum(), len(batches)


SETTINGS = [
    (chunk, mixing, batch_size, labels, world)
    for labels in LABELS
    for chunk, mixing, batch_size, world in [
        (50, ShufflePlan(20), 64, World()),
        (50, ShufflePlan(100), 128, World()),
        (20, ShufflePlan(200), 256, World()),
        (100, ShufflePlan(10, 8), 128, World()),
        (100, ShufflePlan(5, 32), 256, World()),
        (50, ShufflePlan(8, 16, warmup_chunks=10), 64, World()),
        (25, ShufflePlan(12, 32, warmup_chunks=20), 512, World()),
        (10, ShufflePlan(30, 6), 32, World()),
        (64, ShufflePlan(60, windows_per_read=4), 128, World()),
        (100, ShufflePlan(6, 16), 128, World(1, 3)),
        (50, ShufflePlan(40), 64, World(1, 2, 1, 2)),
        (200, ShufflePlan(300), 128, World()),
    ]
]


@pytest.mark.parametrize(("chunk", "mixing", "batch_size", "labels", "world"), SETTINGS)
def test_predicted_is_delivered(chunk, mixing, batch_size, labels, world):
    """Within a tenth, on average over epochs; an epoch of few minibatches needs more of them."""
    codes = LABELS[labels]
    expected, distance, n = [], 0.0, 0
    for epoch in range(5):
        plan = plan_of(chunk, mixing, batch_size, epoch)
        expected.append(1 / predicted(plan, world, codes))
        one, minibatches = delivered(plan, codes, world)
        distance, n = distance + one, n + minibatches
    p = np.bincount(codes) / len(codes)
    measured = (1 - (p**2).sum()) / (distance / n)
    assert 1 / np.mean(expected) == pytest.approx(measured, rel=0.1)


def test_the_published_default():
    """2,000 chunks of 64: 120 of 128 and 677 of 1,024 in the worst case; a little more in a finite store."""
    for batch_size, expected in ((128, 120), (1024, 677)):
        plan = plan_of(64, ShufflePlan(2000), batch_size, n=64 * 2000 * 40)
        assert round(predicted(plan, World())) == pytest.approx(expected, rel=0.02)


def test_extremes():
    """A full shuffle has the whole batch size; reading in order, with equal labels side by side, has one cell."""
    plan = plan_of(100, ShufflePlan(600), 128)
    assert predicted(plan, World()) == pytest.approx(128)
    ordered = plan_of(100, ShufflePlan(8), 50, shuffle=False)
    assert predicted(ordered, World()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("room", [64, 256, 1000])
def test_slices_mix_more_than_double_buffered_blocks_of_equal_memory(room):
    """At least 2.5 times that of blocks, for 1,024 cells and many chunks; all of it for 256 chunks or more."""
    ours, blocks = best_shuffle_plan(room, prefetch=True), ShufflePlan(room // 2)
    assert ours.chunks_held + ours.chunks_ahead <= room
    found = []
    for mixing in (ours, blocks):
        plan = plan_of(64, mixing, 1024, n=64 * room * 30)
        found.append(predicted(plan, World()))
    assert found[0] >= {64: 2.5, 256: 2.5, 1000: 1.8}[room] * found[1]


def test_cells_of_one_label_have_nothing_to_mix():
    plan = plan_of(10, ShufflePlan(2), 8, n=100)
    assert predicted(plan, World(), np.zeros(100, np.int64)) == 8


@pytest.mark.parametrize("n", [0, 1, 5])
def test_few_cells(n):
    plan = plan_of(2, ShufflePlan(2), 8, n=n)
    assert 0 <= predicted(plan, World()) <= 8


@pytest.mark.parametrize("batch_size", [32, 128, 1024])
@pytest.mark.parametrize("mixing", [ShufflePlan(40), ShufflePlan(13, 32), ShufflePlan(30, 8), ShufflePlan(4, 3)])
@pytest.mark.parametrize("chunk", [16, 40, 400])
def test_the_closed_formula_agrees_with_a_long_shard(chunk, mixing, batch_size):
    """The planner chooses by it, so it must not promise much more than a shard delivers."""
    sizes = np.random.default_rng(0).integers(chunk // 2, chunk * 3 // 2, mixing.chunks_mixed * 30)
    plan = EpochOrder(np.concatenate(([0], np.cumsum(sizes))), 1, 0, True, batch_size, mixing)
    short, long = steady_batch_size(mixing, sizes, batch_size, len(sizes)), predicted(plan, World())
    assert 0.87 * long <= short <= 1.04 * long


def test_windows_without_cells():
    """Chunks of fewer cells than slices leave some windows empty."""
    assert worst_mixing(ShufflePlan(1, 32), np.arange(50), batch_size=4) == pytest.approx(1)
