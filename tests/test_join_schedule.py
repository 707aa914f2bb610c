"""The plan of a join, without a store: exact shares, and every cell of every dataset in its turn."""

import itertools
from collections import Counter
from dataclasses import replace
from math import ceil

from hypothesis import assume, given
from hypothesis import strategies as st

from cellfeed.plan.epoch import EpochOrder, World, chunk_bounds
from cellfeed.plan.join_planner import windows_of_cells
from cellfeed.plan.join_runs import Run, assign_runs
from cellfeed.plan.join_schedule import JoinSchedule, apportion
from cellfeed.plan.layout import ResumeSegment, WorldLayout
from cellfeed.plan.schedule import ShufflePlan
from tests.support.fakes import cells, chunks_leaving

LENGTHS = st.one_of(st.sampled_from(["longest", "shortest"]), st.integers(1, 40))


@st.composite
def schedules(draw, lengths=LENGTHS, *, is_exact=True):
    n = draw(st.integers(2, 5))
    several = {"min_size": n, "max_size": n}
    sizes = tuple(draw(st.lists(st.integers(1, 60), **several)))
    weights = sizes if draw(st.booleans()) else tuple(draw(st.lists(st.integers(1, 30), **several)))
    least = ceil(sum(weights) / min(weights)) if is_exact else 1  # a cell of each dataset per minibatch
    batch_size = draw(st.integers(least, least + 100))
    return JoinSchedule(weights, sizes, batch_size, draw(lengths), draw(st.booleans()))


@given(schedule=schedules())
def test_shares_are_within_a_cell_after_every_minibatch(schedule):
    total = sum(schedule.weights)
    for step in range(len(schedule)):
        taken = schedule.taken(step)
        assert sum(taken) == step * schedule.batch_size
        assert all(abs(n - w * sum(taken) / total) < 1 for n, w in zip(taken, schedule.weights, strict=True))
    end, shares = schedule.taken(len(schedule)), [w * schedule.n_cells / total for w in schedule.weights]
    assert all(abs(n - share) < 1 for n, share in zip(end, shares, strict=True))
    last = [b - a for a, b in zip(schedule.taken(len(schedule) - 1), schedule.taken(len(schedule)), strict=True)]
    assert not len(schedule) or (min(last) >= 0 and sum(last) <= schedule.batch_size)


@given(weights=st.lists(st.integers(1, 10**6), min_size=2, max_size=8), n_cells=st.integers(0, 10**9))
def test_shares_of_less_than_a_cell_stay_close_and_never_decrease(weights, n_cells):
    total, n = sum(weights), len(weights)
    before, after = (apportion(k, tuple(weights), 1) for k in (n_cells, n_cells + 1))
    assert (sum(before), sum(after)) == (n_cells, n_cells + 1)
    assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0] * (n - 1) + [1]
    for count, weight in zip(before, weights, strict=True):
        assert abs(count * total - weight * n_cells) <= (total + weight * n) / 2
        assert n > 3 or abs(count * total - weight * n_cells) < total


@given(schedule=schedules(is_exact=False), n_epochs=st.integers(1, 4), n_portions=st.integers(1, 4))
def test_each_dataset_passes_through_its_own_epochs_without_a_gap(schedule, n_epochs, n_portions):
    """But the cells that ``drop_last`` leaves out."""
    for dataset in range(len(schedule.sizes)):
        bounds = [
            schedule.bounds(dataset, epoch, Run(0, 0, len(schedule), portion, n_portions), step)
            for epoch in range(n_epochs)
            for step in range(len(schedule))
            for portion in range(n_portions)
        ]
        cells = [cell for start, stop in bounds for cell in range(start, stop)]
        if schedule.drop_last:
            whole = replace(schedule, drop_last=False)
            cells += [
                cell
                for epoch in range(n_epochs)
                for step in range(len(schedule), len(whole))
                for cell in range(*whole.bounds(dataset, epoch, Run(0, 0, len(whole)), step))
            ]
        assert sorted(cells) == list(range(len(cells)))
        assert schedule.drop_last or cells == sorted(cells)


@given(schedule=schedules(is_exact=False), n_portions=st.integers(1, 4))
def test_portions_of_a_minibatch_differ_by_a_cell_at_most(schedule, n_portions):
    for step in range(len(schedule)):
        runs = [Run(0, 0, len(schedule), portion, n_portions) for portion in range(n_portions)]
        bounds = [[schedule.bounds(k, 0, run, step) for k in range(len(schedule.sizes))] for run in runs]
        sizes = [sum(stop - start for start, stop in of_portion) for of_portion in bounds]
        assert sum(sizes) == schedule.size(step)
        assert max(sizes) - min(sizes) <= 1


@given(schedule=schedules(lengths=st.just("longest"), is_exact=False))
def test_the_longest_comes_once_and_the_others_once_at_least(schedule):
    assume(not schedule.drop_last)
    counts = [n - size for n, size in zip(schedule.taken(len(schedule)), schedule.sizes, strict=True)]
    assert min(counts) == 0
    if schedule.weights == schedule.sizes:  # the default: an epoch has each cell of each dataset once
        assert max(counts) == 0


@given(schedule=schedules(lengths=st.just("shortest")))
def test_with_the_shortest_no_cell_comes_twice(schedule):
    counts = [n - size for n, size in zip(schedule.taken(len(schedule)), schedule.sizes, strict=True)]
    assert max(counts) == 0 or (schedule.drop_last and max(counts) < 0)


@given(
    n_minibatches=st.integers(0, 12),
    n_last=st.integers(1, 6),
    layouts=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4),
    data=st.data(),
)
def test_minibatches_are_assigned_once_on_any_layouts(n_minibatches, n_last, layouts, data):
    """Each minibatch, or each portion of it, is made once; only last ones with fewer cells than ranks are left out."""
    layouts = [WorldLayout(*layout, ShufflePlan(1)) for layout in layouts]
    segments: list[ResumeSegment] = []
    made: Counter[tuple[int, int]] = Counter()  # in twelfths, which all numbers of ranks divide
    for k, layout in enumerate(layouts):
        assigned = assign_runs(n_minibatches, n_last, segments, layout)
        counts = {assigned.n_minibatches(rank, 8) for rank in range(layout.world_size)}
        assert len(counts) == 1
        n_received = counts.pop() if k == len(layouts) - 1 else data.draw(st.integers(0, counts.pop()))
        for workers in assigned.ranks:
            queues = [[(run, step) for run in runs for step in range(run.start, run.stop)] for runs in workers]
            in_turn = []
            while any(queues):
                in_turn += [queue.pop(0) for queue in queues if queue]
            for run, step in in_turn[:n_received]:
                made[run.rank, step] += 12 // run.n_portions
        segments.append(ResumeSegment(layout, n_received))
    everything = {(rank, step) for rank in range(layouts[0].world_size) for step in range(n_minibatches)}
    assert set(made.values()) <= {12}
    left_out = everything - set(made)
    assert all(step == n_minibatches - 1 for _, step in left_out)
    assert not left_out or n_last < max(layout.world_size for layout in layouts)


class FakePlanner:
    """Plans a dataset whose chunks have three cells; more workers have smaller windows."""

    def __init__(self, n_cells: int) -> None:
        self.n_cells = n_cells

    def shuffle_plan(self, num_workers: int = 1) -> ShufflePlan:
        return ShufflePlan(6 // num_workers)

    def epoch_order(self, epoch: int, plan: ShufflePlan | None = None) -> EpochOrder:
        return EpochOrder(chunk_bounds(self.n_cells, 3), 0, epoch, True, 4, plan or self.shuffle_plan())


@given(
    n_cells=st.integers(6, 80),
    start=st.integers(0, 150),
    n=st.integers(0, 150),
    world_size=st.integers(1, 2),
    num_workers=st.integers(1, 3),
)
def test_windows_have_the_cells_of_all_epochs_of_a_dataset_in_their_order(n_cells, start, n, world_size, num_workers):
    planner, rank = FakePlanner(n_cells), world_size - 1
    layout = WorldLayout(world_size, num_workers, ShufflePlan(1))
    world = World(rank, world_size)
    first, stop = planner.epoch_order(0).shard(world)
    size, mixing = stop - first, planner.shuffle_plan(num_workers)
    windows = list(windows_of_cells(planner, layout, rank, range(start, start + n), size))
    found = [cell for left in chunks_leaving(windows) for cell, _ in left]
    orders = (cells(planner.epoch_order(epoch, mixing), world).tolist() for epoch in range(300 // size + 2))
    expected = list(itertools.chain.from_iterable(orders))[start:]
    assert found[:n] == expected[:n]
    assert all(len(window.order) <= 3 * mixing.chunks_per_window for window in windows)
    assert sum(len(window.order) - window.n_skipped for window in windows[:-1]) < max(n, 1)
