"""Estimates from metadata: what fits, what is decoded, how much a query takes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfeed._geometry import ArrayGeometry
from cellfeed._joinids import JoinIds
from cellfeed.plan.budget import MemoryModel, decode_amplification, row_blocks_per_read

CENSUS = ArrayGeometry(
    row_extent=2048,
    column_extent=2048,
    capacity=65_536,
    n_rows=131_072,
    n_columns=60_530,
    n_values=131_072 * 2657,
    dtype="float32",
)


@pytest.mark.parametrize(("rows", "measured"), [(64, 19.7), (256, 5.4), (512, 3.0), (1024, 1.7), (2048, 1.01)])
def test_amplification_of_a_lone_chunk_is_near_what_was_measured_on_census_like_tiles(rows, measured):
    joinids = JoinIds.from_sorted(np.arange(131_072))
    chunk = np.arange(20 * 2048, 20 * 2048 + rows)
    assert decode_amplification(joinids, [chunk], CENSUS) == pytest.approx(measured, rel=0.15)


chunks = st.lists(st.floats(1, 1000), min_size=1, max_size=60).map(np.array)


@given(chunks=chunks, room=st.integers(0, 20_000), ahead=st.booleans())
def test_windows_in_joinid_order_never_exceed_the_budget(chunks, room, ahead):
    model = MemoryModel(chunks, in_flight=100, minibatches=50, ahead=ahead)
    n = model.neighbours_that_fit(room)
    if model.room(room) < model.least_pool:
        assert n == 1
        return
    windows = [chunks[k : k + n].sum() for k in range(len(chunks))]
    assert model.peak(max(windows) * (1 + ahead)) <= room + 1


@given(chunks=chunks, room=st.integers(0, 20_000))
def test_random_chunks_leave_room_for_their_spread(chunks, room):
    model = MemoryModel(chunks, in_flight=100, minibatches=50, ahead=True)
    n = model.chunks_that_fit(room)
    if n < len(chunks):
        assert model.peak(n * chunks.mean() + 3 * chunks.std() * n**0.5) <= max(room, 150) + 1


def test_queries_of_large_arrays_take_more_row_blocks():
    """So that looking through all tiles stays a small part of the work, within the budget."""
    options = {"kept_bytes": 6, "memory_budget": 4 << 30}
    human = replace(CENSUS, n_rows=160_000_000, n_values=160_000_000 * 2200)
    assert row_blocks_per_read(CENSUS, **options) == 1
    assert row_blocks_per_read(human, **options) > 2
    assert row_blocks_per_read(human, **{**options, "memory_budget": 100 << 20}) == 1


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("2000000000", 2_000_000_000),
        ("2G", 2_000_000_000),
        ("2 GB", 2_000_000_000),
        ("2Gi", 2 << 30),
        ("500 m", 500_000_000),
    ],
)
def test_amounts_of_memory_as_people_write_them(text, n_bytes):
    from cellfeed._checks import parse_bytes

    assert parse_bytes(text) == n_bytes
