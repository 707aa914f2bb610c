"""The planner's guarantees, without a store. Each test is named for the guarantee that it holds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfeed.errors import PlanError
from cellfeed.plan import EpochPlan, World, chunk_bounds

sizes = st.lists(st.integers(1, 9), max_size=30)


@st.composite
def plans(draw, remainder=("drop", "pad", "uneven"), shuffle=(True, False)):
    """Plans over chunks of unequal size, as row-blocks of a selection are."""
    kind = draw(st.sampled_from(remainder))
    cells = draw(sizes)
    depths = st.lists(st.integers(0, 20), min_size=len(cells), max_size=len(cells))
    return EpochPlan(
        bounds=np.concatenate(([0], np.cumsum(cells))).astype(np.int64),
        seed=draw(st.integers(0, 2**32)),
        epoch=draw(st.integers(0, 5)),
        shuffle=draw(st.sampled_from(shuffle)),
        batch_size=draw(st.integers(1, 12)),
        chunks_per_window=draw(st.integers(1, 8)),
        drop_last=kind != "pad" and draw(st.booleans()),
        remainder=kind,
        ramp=draw(st.booleans()),
        values=np.array(draw(depths), np.float64) if draw(st.booleans()) else None,
    )


topologies = st.tuples(st.integers(1, 8), st.integers(1, 4))


def cells(plan, world):
    """Positions that one worker yields, in order."""
    windows = plan.windows(world)
    parts = [w.arrivals[w.order] for w in (windows[k] for k in range(len(windows)))]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def real_cells(plan, world):
    windows = [plan.windows(world)[k] for k in range(len(plan.windows(world)))]
    parts = [w.arrivals[w.order][w.is_real[w.order]] for w in windows]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def rank_cells(plan, rank, world_size, num_workers, take=cells):
    return np.concatenate([take(plan, World(rank, world_size, w, num_workers)) for w in range(num_workers)])


@settings(max_examples=500)
@given(plan=plans(), topology=topologies)
def test_coverage(plan, topology):
    """Every cell once over ranks and workers, up to the stated remainder."""
    world_size, num_workers = topology
    per_rank = [rank_cells(plan, r, world_size, num_workers, real_cells) for r in range(world_size)]
    met = np.concatenate(per_rank)
    assert len(np.unique(met)) == len(met)
    if plan.drop_last:
        allowed = world_size * plan.batch_size + world_size
    else:
        allowed = world_size if plan.remainder == "drop" else 1
    assert plan.n_cells - len(met) < max(allowed, 1)


@settings(max_examples=300)
@given(plan=plans(remainder=("drop", "pad")), topology=topologies)
def test_balance(plan, topology):
    """Every rank yields as many cells, so as many minibatches, as every other."""
    world_size, num_workers = topology
    counts = {len(rank_cells(plan, r, world_size, num_workers)) for r in range(world_size)}
    assert len(counts) == 1
    assert len({plan.n_minibatches(World(r, world_size)) for r in range(world_size)}) == 1


@given(plan=plans(), topology=topologies, data=st.data())
def test_length(plan, topology, data):
    """The minibatches of a rank are those of its workers, and only its last one may be short."""
    world_size, num_workers = topology
    rank = data.draw(st.integers(0, world_size - 1))
    yielded = []
    for w in range(num_workers):
        world = World(rank, world_size, w, num_workers)
        n = len(cells(plan, world))
        assert plan.n_minibatches(world) == -(-n // plan.batch_size)
        yielded += [plan.batch_size] * (n // plan.batch_size) + [n % plan.batch_size] * (n % plan.batch_size > 0)
    assert len(yielded) == plan.n_minibatches(World(rank, world_size))
    assert sum(size != plan.batch_size for size in yielded) <= (0 if plan.drop_last else 1)


@given(plan=plans(), topology=topologies, data=st.data())
def test_worker_set(plan, topology, data):
    """A rank's cells do not depend on the number of its workers."""
    world_size, num_workers = topology
    rank = data.draw(st.integers(0, world_size - 1))
    alone = rank_cells(plan, rank, world_size, 1)
    assert sorted(rank_cells(plan, rank, world_size, num_workers)) == sorted(alone)


@given(plan=plans(), topology=topologies, data=st.data())
def test_seek(plan, topology, data):
    """Window k is the same whether or not those before it were asked for, and starts where it says."""
    world_size, num_workers = topology
    world = World(data.draw(st.integers(0, world_size - 1)), world_size, 0, num_workers)
    windows = plan.windows(world)
    if len(windows) == 0:
        return
    k = data.draw(st.integers(0, len(windows) - 1))
    cold = EpochPlan(**{f: getattr(plan, f) for f in plan.__dataclass_fields__}).windows(world)[k]
    in_order = [windows[i] for i in range(k + 1)]
    assert np.array_equal(cold.arrivals, in_order[k].arrivals)
    assert np.array_equal(cold.order, in_order[k].order)
    assert windows.first_cell(k) == sum(len(w.order) for w in in_order[:k])


@given(plan=plans())
def test_windows_read_ascending_positions_and_leave_as_a_permutation(plan):
    for k in range(len(plan.windows(World()))):
        window = plan.windows(World())[k]
        assert np.all(np.diff(window.arrivals) > 0)
        assert np.array_equal(np.sort(window.order), np.arange(len(window.arrivals)))


@given(plan=plans(shuffle=(False,), remainder=("drop",)))
def test_without_shuffle_cells_come_in_joinid_order(plan):
    met = cells(plan, World())
    assert np.array_equal(met, np.arange(len(met)))


def test_determinism():
    """The same inputs give the same order in a fresh plan; another seed gives another."""
    make = lambda seed: EpochPlan(chunk_bounds(100, 4), seed, 3, True, 8, 5)  # noqa: E731
    assert np.array_equal(cells(make(1), World()), cells(make(1), World()))
    assert not np.array_equal(cells(make(1), World()), cells(make(2), World()))


def test_epoch():
    """Epochs have different orders, ranks have different cells in them, and other cells are left out."""
    plans = [EpochPlan(chunk_bounds(103, 4), 0, epoch, True, 8, 5) for epoch in range(6)]
    orders = {tuple(cells(p, World())) for p in plans}
    assert len(orders) == 6
    sets = {frozenset(cells(p, World(0, 2))) for p in plans}
    assert len(sets) == 6
    left_out = {frozenset(range(103)) - frozenset(rank_cells(p, 0, 4, 1)) - frozenset(rank_cells(p, 1, 4, 1))
                - frozenset(rank_cells(p, 2, 4, 1)) - frozenset(rank_cells(p, 3, 4, 1)) for p in plans}  # fmt: skip
    assert len(left_out) > 1


def test_golden_plan():
    """A saved state goes on with the order of the version that wrote it: this order never changes."""
    values = np.array([9, 1, 8, 2, 7, 3, 6, 4, 5, 5], np.float64)
    plan = EpochPlan(chunk_bounds(19, 2), 42, 7, True, 4, 3, values=values)
    assert plan.chunk_order.tolist() == [7, 2, 9, 1, 0, 6, 8, 5, 3, 4]
    assert cells(plan, World(1, 2)).tolist() == [10, 12, 13, 16, 11, 17, 8, 7, 6]


def test_ranks_get_nearly_equal_work():
    """Where depths are known, no rank has a tenth more values than another; elsewhere half as many more, or worse."""
    rng = np.random.default_rng(0)
    depth = np.repeat(rng.uniform(0.3, 2.4, 40), 16)  # data sets lie side by side and differ in depth
    bounds = chunk_bounds(640 * 50, 50)
    for epoch in range(20):
        shares = {}
        for values in (None, depth * 50):
            plan = EpochPlan(bounds, 0, epoch, True, 8, 5, values=values)
            sums = [depth[cells(plan, World(r, 8)) // 50].sum() for r in range(8)]
            shares[values is None] = max(sums) / min(sums)
        assert shares[False] < 1.1
        assert shares[False] < shares[True]


def test_no_rank_keeps_a_region_of_the_store():
    plan = EpochPlan(chunk_bounds(10_000, 10), 0, 0, True, 8, 5)
    halves = [np.mean(cells(plan, World(r, 2)) < 5000) for r in range(2)]
    assert all(0.4 < half < 0.6 for half in halves)


def test_two_shares_do_not_shuffle_alike():
    """Ranks and windows draw from streams of their own."""
    plan = EpochPlan(chunk_bounds(80, 10), 0, 0, True, 8, 2)
    orders = [tuple(plan.windows(World(r, 2))[k].order) for r in range(2) for k in range(2)]
    assert len(set(orders)) == 4


def test_the_published_scatter_gather():
    """Given chunk size and count: so many whole chunks from random places, all their rows shuffled."""
    plan = EpochPlan(chunk_bounds(1000, 10), 0, 0, True, 64, chunks_per_window=20)
    windows = plan.windows(World())
    assert len(windows) == 5
    for k in range(5):
        window = windows[k]
        chunks, counts = np.unique(window.arrivals // 10, return_counts=True)
        assert len(chunks) == 20
        assert set(counts) == {10}
        assert np.diff(chunks).max() > 1
        left = window.arrivals[window.order] // 10
        assert np.mean(left[1:] == left[:-1]) < 0.2  # rows of a chunk do not leave side by side


def test_published_distribution_over_ranks_and_workers():
    """As the published loader's tests have it: 6 cells, chunks of 2, rank 1 of 3; 12 cells, worker 1 of 2."""
    plan = lambda n: EpochPlan(chunk_bounds(n, 2), 0, 0, False, 1, 1)  # noqa: E731
    assert cells(plan(6), World(1, 3)).tolist() == [2, 3]
    assert cells(plan(12), World(1, 3, 1, 2)).tolist() == [6, 7]


def test_pad_repeats_cells_and_says_which():
    plan = EpochPlan(chunk_bounds(10, 3), 0, 0, True, 4, 2, remainder="pad")
    per_rank = [rank_cells(plan, r, 4, 1) for r in range(4)]
    assert [len(p) for p in per_rank] == [3, 3, 3, 3]
    real = np.concatenate([rank_cells(plan, r, 4, 1, real_cells) for r in range(4)])
    assert sorted(real) == list(range(10))


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0)])
def test_impossible_ranks_are_named(rank, world_size):
    with pytest.raises(PlanError, match=f"rank={rank} of {world_size}"):
        World(rank, world_size)


def test_a_ramp_begins_with_smaller_windows():
    """Of a quarter and a half, for an early first minibatch; the published blocks have none."""
    plan = EpochPlan(chunk_bounds(400, 1), 0, 0, True, 64, chunks_per_window=100, ramp=True)
    windows = plan.windows(World())
    assert [len(windows[k].order) for k in range(len(windows))] == [25, 50, 100, 100, 100, 25]
