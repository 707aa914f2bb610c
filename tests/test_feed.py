"""From windows to the rows of minibatches, with a reader of a matrix in memory."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfeed._joinids import JoinIds, read_bounds
from cellfeed.loader.feed import load_windows, rebatch
from cellfeed.plan.epoch import EpochOrder, World, chunk_bounds
from cellfeed.plan.schedule import ShufflePlan
from cellfeed.stats import Meter
from tests.support.fakes import FakeReader, cells, matrix, shard_windows
from tests.support.stores import addressed
from tests.support.strategies import mixings


def bounds(joinids):
    return read_bounds(joinids, extent=8, max_row_blocks=2, max_rows=12)


def feed(plan, reader, *, ahead=1, slab_bytes=4096, meter=None):
    windows = shard_windows(plan, World()).windows()
    joinids = JoinIds.from_sorted(np.arange(plan.n_cells))
    return load_windows(
        windows,
        joinids,
        lambda positions, joinids, space: reader.read(joinids, space),
        read_bounds=bounds,
        n_threads=2,
        ahead=ahead,
        slab_bytes=slab_bytes,
        meter=meter or Meter(),
    )


@given(
    n=st.integers(0, 80),
    chunk=st.integers(1, 12),
    mixing=mixings(),
    batch=st.integers(1, 30),
    ahead=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_identity_and_order(n, chunk, mixing, batch, ahead, seed):
    """Place t of a minibatch holds the row of its position, and positions follow the plan."""
    X = addressed(n, 5, 0.6)
    plan = EpochOrder(chunk_bounds(n, chunk), seed, 0, True, batch, mixing)
    positions = []
    for rows in rebatch(feed(plan, FakeReader(X), ahead=ahead), itertools.repeat(batch)):
        assert (matrix(rows, 5) != X[rows.positions]).nnz == 0
        positions.append(rows.positions)
    assert np.concatenate([*positions, []]).tolist() == cells(plan, World()).tolist()
    assert all(len(p) == batch for p in positions[:-1])


def test_blocks_that_are_read_together_share_row_blocks():
    """Blocks of 4 chunks of 2 in row-blocks of 8: the first is read alone, the others read each row-block once."""
    reader = FakeReader(addressed(64, 4))
    list(feed(EpochOrder(chunk_bounds(64, 2), 0, 0, True, 8, ShufflePlan(4, windows_per_read=7)), reader))
    blocks = [b for read in reader.reads for b in set((read // 8).tolist())]
    assert len(blocks) <= 4 + 8


def test_chunks_that_share_a_row_block_are_read_together_once():
    """Chunks of 2 in row-blocks of 8, all in one window: each row-block is in one read."""
    reader = FakeReader(addressed(64, 4))
    list(feed(EpochOrder(chunk_bounds(64, 2), 0, 0, True, 8, ShufflePlan(32)), reader))
    blocks = [b for read in reader.reads for b in set((read // 8).tolist())]
    assert len(blocks) == len(set(blocks)) == 8


@pytest.mark.parametrize("ahead", [0, 1])
def test_bound(ahead):
    """At most ahead + 1 windows are read or held at any time."""
    reader = FakeReader(addressed(200, 4))
    plan = EpochOrder(chunk_bounds(200, 10), 0, 0, True, 10, ShufflePlan(2))
    loaded = feed(plan, reader, ahead=ahead)
    for k, _ in enumerate(loaded):
        assert sum(map(len, reader.reads)) <= 20 * (k + 1 + ahead)
    assert sum(map(len, reader.reads)) == 200


def test_bound_of_slices():
    """If chunks are yielded in slices, the pool holds no more than the plan says."""
    mixing = ShufflePlan(3, n_slices=8)
    plan = EpochOrder(chunk_bounds(4000, 20), 0, 0, True, 10, mixing)
    meter = Meter()
    X = addressed(4000, 6, 1.0)
    for _ in feed(plan, FakeReader(X), slab_bytes=256, meter=meter):
        pass
    per_chunk = (X[:20].nnz * 3 + 20 * 8) * 1.0
    assert meter.snapshot().peak_pool_bytes <= (mixing.chunks_held + mixing.chunks_ahead + 2) * per_chunk * 2


def test_an_error_of_the_reader_ends_the_feed_and_its_threads():
    reader = FakeReader(addressed(100, 4), fail_at=55)
    loaded = feed(EpochOrder(chunk_bounds(100, 10), 0, 0, False, 10, ShufflePlan(2)), reader)
    with pytest.raises(RuntimeError, match="no luck with 55"):
        list(loaded)
    assert not [t for t in threading.enumerate() if t.name.startswith("cellfeed-read")]


def test_closing_drops_reads_that_have_not_begun():
    reader = FakeReader(addressed(400, 4), delay_s=0.02)
    loaded = feed(EpochOrder(chunk_bounds(400, 8), 0, 0, False, 10, ShufflePlan(25)), reader)
    next(loaded)
    loaded.close()
    assert len(reader.reads) < 50
    assert not [t for t in threading.enumerate() if t.name.startswith("cellfeed-read")]


def test_the_meter_sees_the_pool_grow_and_shrink():
    meter = Meter()
    plan = EpochOrder(chunk_bounds(200, 10), 0, 0, True, 10, ShufflePlan(2))
    sizes = [
        sum(slab.n_bytes for slab in rows.owners) for rows in feed(plan, FakeReader(addressed(200, 4)), meter=meter)
    ]
    assert max(sizes) <= meter.snapshot().peak_pool_bytes < sum(sizes)
