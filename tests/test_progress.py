"""Resuming, without a store: the remaining cells are those that were not yielded."""

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cellfeed.plan.epoch import World
from cellfeed.plan.layout import ResumeSegment, WorldLayout, received_from_workers
from cellfeed.plan.resume import (
    Leftover,
    assign_shards,
    n_minibatches,
    windows_of,
)
from tests.support.fakes import cells, chunks_leaving, planned
from tests.support.strategies import mixings, plans

worlds = st.tuples(st.integers(1, 8), st.integers(1, 4))
layouts = st.builds(WorldLayout, st.integers(1, 8), st.integers(1, 4), mixings())


def stream(pieces, plan):
    """Minibatches of one worker: (position, is_real) of each cell."""
    line = [cell for left in chunks_leaving(windows_of(pieces, plan)) for cell in left]
    return [line[k : k + plan.batch_size] for k in range(0, len(line), plan.batch_size)]


def rank_streams(plan, segments, world_layout):
    """Minibatches of each rank in the order of a DataLoader, worked out step by step."""
    now = replace(plan, shuffle_plan=world_layout.mixing)
    streams = []
    for workers in assign_shards(plan, segments, world_layout).ranks:
        queues, received = [stream(pieces, now) for pieces in workers], []
        assert [len(queue) for queue in queues] == [n_minibatches(pieces, plan.batch_size) for pieces in workers]
        while any(queues):
            for queue in queues:
                if queue:
                    received.append(queue.pop(0))
        streams.append(received)
    return streams


def cells_of(minibatches):
    return [cell for minibatch in minibatches for cell in minibatch]


@given(plan=plans(), world=worlds)
def test_an_epoch_that_was_not_begun_is_the_plan(plan, world):
    world_size, num_workers = world
    dealt = assign_shards(plan, [], WorldLayout(world_size, num_workers, plan.shuffle_plan))
    for r in range(world_size):
        for w in range(num_workers):
            world = World(r, world_size, w, num_workers)
            expected = cells(plan, world).tolist()
            assert [p for p, _ in cells_of(stream(dealt.ranks[r][w], plan))] == expected
            assert n_minibatches(dealt.ranks[r][w], plan.batch_size) == plan.n_minibatches(world)


@settings(max_examples=500)
@given(plan=plans(), world_layout=layouts)
def test_resume_at_every_step(plan, world_layout):
    """On the same ranks and workers the rest of each rank's stream is equal, wherever it stopped."""
    plan = replace(plan, shuffle_plan=world_layout.mixing)
    before = rank_streams(plan, [], world_layout)
    for k in range(max(map(len, before)) + 1):
        assert rank_streams(plan, [ResumeSegment(world_layout, k)], world_layout) == [stream[k:] for stream in before]


@settings(max_examples=500)
@given(plan=plans(), history=st.lists(layouts, min_size=2, max_size=4), data=st.data())
def test_other_ranks_and_workers_lose_and_repeat_nothing(plan, history, data):
    """An epoch in segments on several layouts: each cell comes once, up to the remainder of the last layout."""
    segments, yielded = [], []
    for world_layout in history:
        streams = rank_streams(plan, segments, world_layout)
        if plan.rank_remainder != "uneven" and (
            not segments or segments[-1].world_layout.world_size != world_layout.world_size
        ):
            assert len({len(cells_of(s)) for s in streams}) == 1
        last = len(segments) == len(history) - 1
        # Ranks that train together have received the same number of minibatches; others may differ.
        together = data.draw(st.booleans())
        most = min(map(len, streams))
        k = data.draw(st.integers(0, most)) if together and not last else None
        received = tuple(len(s) if last else k if k is not None else data.draw(st.integers(0, len(s))) for s in streams)
        yielded += [cell for s, n in zip(streams, received, strict=True) for cell in cells_of(s[:n])]
        segments.append(ResumeSegment(world_layout, k if k is not None else received))
    real = [p for p, is_real in yielded if is_real]
    assert not Counter(real) - planned(plan)
    if not plan.drop_last and plan.rank_remainder != "drop":
        assert len(real) == plan.n_cells
    ranks_since = [t.world_size for t in history][::-1]
    n_since = next((k for k, n in enumerate(ranks_since) if n != ranks_since[0]), len(history)) - 1
    last_sharded = len(history) - 1 - n_since  # shards were assigned when the number of ranks last changed
    assignment = assign_shards(plan, segments[:last_sharded], history[last_sharded])
    left_out = sum(map(len, assignment.left_out))
    n_ranks = history[-1].world_size
    assert left_out < max(1, n_ranks) * (plan.batch_size if plan.drop_last else 1) + n_ranks
    assert plan.n_cells - len(real) <= left_out


@given(plan=plans(), world_layout=layouts, now=layouts, data=st.data())
def test_windows_of_a_rest_are_no_larger_than_what_is_held(plan, world_layout, now, data):
    """A new layout may have a smaller pool: the rest of a window is then yielded in windows of that size."""
    before = rank_streams(plan, [], world_layout)
    segment = ResumeSegment(world_layout, data.draw(st.integers(0, max(map(len, before)))))
    planned = replace(plan, shuffle_plan=now.mixing)
    if now == world_layout:
        return
    rests = [
        p
        for workers in assign_shards(plan, [segment], now).ranks
        for pieces in workers
        for p in pieces
        if isinstance(p, Leftover)
    ]
    for rest in rests:
        assert all(len(window.order) <= planned.cells_held for window in rest.windows(planned))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 40))
def test_minibatches_come_from_workers_in_turn(available, received):
    queues, counts = list(available), [0] * len(available)
    while received and any(queues):
        for w, n in enumerate(queues):
            if n and received:
                queues[w] -= 1
                counts[w] += 1
                received -= 1
    total = sum(counts)
    assert received_from_workers(total + received, available) == counts
