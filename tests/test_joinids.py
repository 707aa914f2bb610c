"""Joinids, runs and reads: pure arithmetic, checked against sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfeed._joinids import MAX_COLUMN_RANGES, JoinIds, column_ranges, merge_runs, read_bounds, runs_of
from cellfeed.errors import SelectionError

ascending = st.sets(st.integers(0, 10**4), max_size=80).map(lambda s: np.array(sorted(s), np.int64))
far_apart = st.sets(st.integers(0, 2**60), max_size=30).map(lambda s: np.array(sorted(s), np.int64))


@given(ids=st.one_of(ascending, far_apart), data=st.data())
def test_joinids_come_back_as_they_were(ids, data):
    kept = JoinIds.from_sorted(ids)
    assert np.array_equal(kept[:], ids)
    picks = data.draw(st.lists(st.integers(0, len(ids) - 1), unique=True) if len(ids) else st.just([]))
    positions = np.array(sorted(picks), np.int64)
    assert np.array_equal(kept[positions], ids[positions])
    assert np.array_equal(kept.take(positions)[:], ids[positions])


def test_joinids_of_a_census_take_four_bytes():
    assert JoinIds.from_sorted(np.arange(10**9, 10**9 + 1000)).offsets.itemsize == 4


@given(st.one_of(ascending, far_apart), st.lists(st.integers(-5, 1 << 62)))
def test_each_joinid_is_found_at_its_position_and_no_other_is_found(ids, others):
    joinids = JoinIds.from_sorted(ids)
    assert joinids.find(ids).tolist() == list(range(len(ids)))
    position = {joinid: k for k, joinid in enumerate(ids.tolist())}
    around = np.concatenate([ids - 1, ids + 1, np.array(others, np.int64)])
    assert joinids.find(around).tolist() == [position.get(joinid, -1) for joinid in around.tolist()]


def test_a_joinid_that_comes_twice_is_an_error():
    with pytest.raises(SelectionError, match="more than once"):
        JoinIds.from_sorted(np.array([1, 2, 2]))


@given(ids=st.one_of(ascending, far_apart), extent=st.integers(1, 3000))
def test_row_block_bounds_cut_exactly_between_row_blocks(ids, extent):
    bounds = JoinIds.from_sorted(ids).row_block_bounds(extent)
    expected = [0, *(i for i in range(1, len(ids)) if ids[i] // extent != ids[i - 1] // extent)]
    assert bounds.tolist() == [*expected, len(ids)] if len(ids) else [0]


@given(ids=ascending)
def test_runs_hold_exactly_the_joinids_and_do_not_touch(ids):
    runs = runs_of(ids)
    assert [j for a, b in runs.tolist() for j in range(a, b)] == ids.tolist()
    assert all(runs[1:, 0] > runs[:-1, 1])


@given(ids=ascending, max_gap=st.integers(0, 100))
def test_merged_runs_cover_the_joinids_and_step_over_larger_gaps_only(ids, max_gap):
    runs = merge_runs(runs_of(ids), max_gap=max_gap)
    covered = {j for a, b in runs.tolist() for j in range(a, b)}
    assert set(ids.tolist()) <= covered
    assert all(runs[1:, 0] - runs[:-1, 1] > max_gap)
    gaps = np.diff(ids) - 1
    assert len(covered) == len(ids) + gaps[gaps <= max_gap].sum()


@given(ids=ascending, extent=st.integers(1, 300), blocks=st.integers(1, 5), rows=st.integers(1, 50))
def test_reads_take_all_rows_once_and_never_share_a_row_block(ids, extent, blocks, rows):
    """A row-block in two reads would be decoded twice."""
    bounds = read_bounds(ids, extent=extent, max_row_blocks=blocks, max_rows=rows)
    assert bounds[0] == 0
    assert bounds[-1] == len(ids)
    reads = [ids[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    row_blocks = [sorted(set((read // extent).tolist())) for read in reads]
    assert all(len(read) for read in reads)
    assert all(a[-1] < b[0] for a, b in zip(row_blocks[:-1], row_blocks[1:], strict=True))
    assert all(len(m) <= blocks for m in row_blocks)
    assert all(len(read) <= rows or len(m) == 1 for read, m in zip(reads, row_blocks, strict=True))


@given(ids=ascending.filter(len), extent=st.integers(1, 2000), more=st.integers(1, 1000))
def test_column_ranges_hold_all_genes_in_whole_bands(ids, extent, more):
    n_columns = int(ids[-1]) + more
    ranges = column_ranges(ids, extent=extent, n_columns=n_columns)
    if ranges is None:
        assert len(set((ids // extent).tolist())) == -(-n_columns // extent)
        return
    assert len(ranges) <= MAX_COLUMN_RANGES
    assert all(any(a <= j < b for a, b in ranges.tolist()) for j in ids.tolist())
    assert all(a % extent == 0 and (b % extent == 0 or b == n_columns) for a, b in ranges.tolist())
