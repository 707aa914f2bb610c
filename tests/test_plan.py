"""The planner's guarantees, without a store. Each test has the name of its guarantee."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfeed.errors import PlanError
from cellfeed.plan.copy_windows import windows_of_shard
from cellfeed.plan.epoch import EpochOrder, World, chunk_bounds
from cellfeed.plan.schedule import ShufflePlan
from tests.support.fakes import cells, chunks_leaving, planned, real_cells, shard_windows
from tests.support.strategies import layouts, plans


def rank_cells(plan, rank, world_size, num_workers, take=cells):
    return np.concatenate([take(plan, World(rank, world_size, w, num_workers)) for w in range(num_workers)])


@settings(max_examples=500)
@given(plan=plans(), world_layout=layouts)
def test_coverage(plan, world_layout):
    """Every cell once over ranks and workers, up to the stated remainder."""
    world_size, num_workers = world_layout
    per_rank = [rank_cells(plan, r, world_size, num_workers, real_cells) for r in range(world_size)]
    yielded = np.concatenate(per_rank)
    assert not Counter(yielded.tolist()) - planned(plan)
    if plan.drop_last:
        allowed = world_size * plan.batch_size + world_size
    else:
        allowed = world_size if plan.rank_remainder == "drop" else 1
    assert plan.n_cells - len(yielded) < max(allowed, 1)


@settings(max_examples=500)
@given(plan=plans(rank_remainder=("drop", "pad")), world_layout=layouts)
def test_balance(plan, world_layout):
    """All ranks yield the same number of cells, and so of minibatches."""
    world_size, num_workers = world_layout
    counts = {len(rank_cells(plan, r, world_size, num_workers)) for r in range(world_size)}
    assert len(counts) == 1
    assert len({plan.n_minibatches(World(r, world_size)) for r in range(world_size)}) == 1


@settings(max_examples=500)
@given(plan=plans(), world_layout=layouts, data=st.data())
def test_length(plan, world_layout, data):
    """The minibatches of a rank are those of its workers, and only its last one may be short."""
    world_size, num_workers = world_layout
    rank = data.draw(st.integers(0, world_size - 1))
    yielded = []
    for w in range(num_workers):
        world = World(rank, world_size, w, num_workers)
        n = len(cells(plan, world))
        assert plan.n_minibatches(world) == -(-n // plan.batch_size)
        yielded += [plan.batch_size] * (n // plan.batch_size) + [n % plan.batch_size] * (n % plan.batch_size > 0)
    assert len(yielded) == plan.n_minibatches(World(rank, world_size))
    assert sum(size != plan.batch_size for size in yielded) <= (0 if plan.drop_last else 1)


@settings(max_examples=500)
@given(plan=plans(), world_layout=layouts, data=st.data())
def test_worker_set(plan, world_layout, data):
    """A rank's cells do not depend on the number of its workers."""
    world_size, num_workers = world_layout
    rank = data.draw(st.integers(0, world_size - 1))
    alone = rank_cells(plan, rank, world_size, 1)
    assert sorted(rank_cells(plan, rank, world_size, num_workers)) == sorted(alone)


@given(plan=plans(), world_layout=layouts, data=st.data())
def test_seek(plan, world_layout, data):
    """Iteration that begins at any cell yields the rest of the shard; windows start where they say."""
    world_size, num_workers = world_layout
    world = World(data.draw(st.integers(0, world_size - 1)), world_size, 0, num_workers)
    whole = list(chunks_leaving(shard_windows(plan, world).windows()))
    shard = shard_windows(plan, world)
    assert [shard.first_cell(k) for k in range(shard.find(0), len(shard) + 1)] == np.cumsum(
        [0, *map(len, whole)]
    ).tolist()
    line = [cell for left in whole for cell in left]
    left = data.draw(st.integers(0, len(line)))
    assert [cell for part in chunks_leaving(shard_windows(plan, world).windows(left)) for cell in part] == line[left:]


@given(plan=plans(), world_layout=layouts, data=st.data())
def test_held(plan, world_layout, data):
    """The remaining cells are in the pool or not fetched; parts of chunks are counted right."""
    world_size, num_workers = world_layout
    world = World(data.draw(st.integers(0, world_size - 1)), world_size, 0, num_workers)
    shard = shard_windows(plan, world)
    line = cells(plan, world).tolist()
    if not line:
        return
    left = data.draw(st.integers(0, len(line) - 1))
    positions, _, end = shard.held(left)
    later = windows_of_shard(plan, end, shard.stop)
    assert sorted([*positions.tolist(), *cells_of(later)]) == sorted(line[left:])
    k = shard.find(left)
    chunks, parts = shard.held_parts(k)
    held = (parts * np.diff(plan.bounds)[chunks]).sum()
    assert held == pytest.approx(len(shard.held(shard.first_cell(k))[0]))


def cells_of(shard):
    return [p for left in chunks_leaving(shard.windows()) for p, _ in left]


@given(plan=plans())
def test_windows_read_ascending_positions_and_leave_as_a_permutation(plan):
    shard = shard_windows(plan, World())
    for k, window in enumerate(shard.windows(), start=shard.find(0)):
        least = 1 if plan.cells is None else 0
        assert all(np.all(np.diff(fetch.positions) >= least) for fetch in window.fetches)
        assert np.array_equal(np.sort(window.order), np.arange(shard.first_cell(k + 1) - shard.first_cell(k)))
        assert shard.chunks_leaving(k)[1].sum() == len(window.order)


@given(plan=plans(shuffle=(False,), rank_remainder=("drop",)))
def test_without_shuffle_cells_come_in_joinid_order(plan):
    yielded = cells(plan, World())
    assert np.array_equal(yielded, np.arange(len(yielded)))


def test_determinism():
    """The same inputs give the same order in a fresh plan; another seed gives another."""
    make = lambda seed: EpochOrder(chunk_bounds(100, 4), seed, 3, True, 8, ShufflePlan(5))  # noqa: E731
    assert np.array_equal(cells(make(1), World()), cells(make(1), World()))
    assert not np.array_equal(cells(make(1), World()), cells(make(2), World()))


def test_epoch():
    """Epochs have different orders, ranks have different cells in them, and other cells are left out."""
    plans = [EpochOrder(chunk_bounds(103, 4), 0, epoch, True, 8, ShufflePlan(5)) for epoch in range(6)]
    orders = {tuple(cells(p, World())) for p in plans}
    assert len(orders) == 6
    sets = {frozenset(cells(p, World(0, 2))) for p in plans}
    assert len(sets) == 6
    left_out = {frozenset(range(103)) - frozenset(rank_cells(p, 0, 4, 1)) - frozenset(rank_cells(p, 1, 4, 1))
                - frozenset(rank_cells(p, 2, 4, 1)) - frozenset(rank_cells(p, 3, 4, 1)) for p in plans}  # fmt: skip
    assert len(left_out) > 1


def test_golden_plan():
    """A saved state continues with the order of the version that wrote it: this order never changes."""
    values = np.array([9, 1, 8, 2, 7, 3, 6, 4, 5, 5], np.float64)
    plan = EpochOrder(chunk_bounds(19, 2), 42, 7, True, 4, ShufflePlan(3), chunk_nnz=values)
    assert plan.chunk_order.tolist() == [7, 2, 9, 1, 0, 6, 8, 5, 3, 4]
    assert cells(plan, World(1, 2)).tolist() == [17, 16, 10, 13, 11, 12, 7, 8, 6]
    sliced = EpochOrder(chunk_bounds(19, 2), 42, 7, True, 4, ShufflePlan(2, 3, warmup_chunks=2), chunk_nnz=values)
    assert cells(sliced, World(1, 2)).tolist() == [13, 16, 17, 10, 12, 11, 6, 7, 8]


def test_ranks_get_nearly_equal_work():
    """If nnz per cell is known, ranks differ by less than a tenth in nnz; otherwise by half or more."""
    rng = np.random.default_rng(0)
    depth = np.repeat(rng.uniform(0.3, 2.4, 40), 16)  # data sets lie side by side and differ in depth
    bounds = chunk_bounds(640 * 50, 50)
    for epoch in range(20):
        shares = {}
        for values in (None, depth * 50):
            plan = EpochOrder(bounds, 0, epoch, True, 8, ShufflePlan(5), chunk_nnz=values)
            sums = [depth[cells(plan, World(r, 8)) // 50].sum() for r in range(8)]
            shares[values is None] = max(sums) / min(sums)
        assert shares[False] < 1.1
        assert shares[False] < shares[True]


def test_no_rank_keeps_a_region_of_the_store():
    plan = EpochOrder(chunk_bounds(10_000, 10), 0, 0, True, 8, ShufflePlan(5))
    halves = [np.mean(cells(plan, World(r, 2)) < 5000) for r in range(2)]
    assert all(0.4 < half < 0.6 for half in halves)


def test_two_shares_do_not_shuffle_alike():
    """Ranks and windows draw from streams of their own."""
    plan = EpochOrder(chunk_bounds(80, 10), 0, 0, True, 8, ShufflePlan(2))
    orders = {tuple(window.order) for r in range(2) for window in shard_windows(plan, World(r, 2)).windows()}
    assert len(orders) == 4


def test_the_published_scatter_gather():
    """With a given chunk size and count, a window has that number of random whole chunks, and all rows are shuffled."""
    plan = EpochOrder(chunk_bounds(1000, 10), 0, 0, True, 64, ShufflePlan(20))
    windows = list(shard_windows(plan, World()).windows())
    assert len(windows) == 5
    for window in windows:
        (fetch,) = window.fetches
        chunks, counts = np.unique(fetch.positions // 10, return_counts=True)
        assert len(chunks) == 20
        assert set(counts) == {10}
        assert np.diff(chunks).max() > 1
        left = fetch.positions[window.order] // 10
        assert np.mean(left[1:] == left[:-1]) < 0.2  # rows of a chunk are not yielded side by side


def test_published_distribution_over_ranks_and_workers():
    """As the published loader's tests have it: 6 cells, chunks of 2, rank 1 of 3; 12 cells, worker 1 of 2."""
    plan = lambda n: EpochOrder(chunk_bounds(n, 2), 0, 0, False, 1, ShufflePlan(1))  # noqa: E731
    assert cells(plan(6), World(1, 3)).tolist() == [2, 3]
    assert cells(plan(12), World(1, 3, 1, 2)).tolist() == [6, 7]


def test_pad_repeats_cells_and_says_which():
    plan = EpochOrder(chunk_bounds(10, 3), 0, 0, True, 4, ShufflePlan(2), rank_remainder="pad")
    per_rank = [rank_cells(plan, r, 4, 1) for r in range(4)]
    assert [len(p) for p in per_rank] == [3, 3, 3, 3]
    real = np.concatenate([rank_cells(plan, r, 4, 1, real_cells) for r in range(4)])
    assert sorted(real) == list(range(10))


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0)])
def test_impossible_ranks_are_named(rank, world_size):
    with pytest.raises(PlanError, match=f"rank={rank} of {world_size}"):
        World(rank, world_size)
