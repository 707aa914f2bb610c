"""Estimates from metadata: chunks that fit, values decoded, memory of a query."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfeed._geometry import ArrayGeometry
from cellfeed._joinids import JoinIds
from cellfeed.plan.budget import ProcessBudget, decode_amplification

CENSUS = ArrayGeometry(
    row_extent=2048,
    column_extent=2048,
    capacity=65_536,
    n_rows=131_072,
    n_columns=60_530,
    nnz=131_072 * 2657,
    dtype="float32",
)


def process_budget(n_bytes, chunk_bytes=(1.0,), prefetch=True, geometry=CENSUS, nnz=10.0):
    return ProcessBudget(
        n_bytes=n_bytes,
        geometry=geometry,
        is_remote=False,
        value_bytes=6,
        nnz=nnz,
        max_nnz_per_row=nnz,
        chunk_bytes=np.asarray(chunk_bytes),
        minibatch_bytes=50,
        prefetch=prefetch,
    )


@pytest.mark.parametrize(("rows", "measured"), [(64, 19.7), (256, 5.4), (512, 3.0), (1024, 1.7), (2048, 1.01)])
def test_amplification_of_a_lone_chunk_is_near_what_was_measured_on_census_like_tiles(rows, measured):
    joinids = JoinIds.from_sorted(np.arange(131_072))
    chunk = np.arange(20 * 2048, 20 * 2048 + rows)
    assert decode_amplification(joinids, [chunk], CENSUS) == pytest.approx(measured, rel=0.15)


chunks = st.lists(st.floats(1, 1000), min_size=1, max_size=60).map(np.array)


@given(chunks=chunks, n_bytes=st.integers(0, 30_000), prefetch=st.booleans())
def test_windows_in_joinid_order_never_exceed_the_budget(chunks, n_bytes, prefetch):
    budget = process_budget(n_bytes, chunks, prefetch)
    n = budget.neighbours_that_fit
    if not budget.is_enough:
        assert n == 1
        return
    windows = [chunks[k : k + n].sum() for k in range(len(chunks))]
    assert budget.peak_bytes(max(windows) * (1 + prefetch)) <= n_bytes + 1


@given(chunks=chunks, n_bytes=st.integers(0, 30_000))
def test_random_chunks_leave_room_for_their_spread(chunks, n_bytes):
    budget = process_budget(n_bytes, chunks)
    n = budget.chunks_that_fit
    if n < len(chunks):
        assert n * chunks.mean() + 3 * chunks.std() * n**0.5 <= max(budget.pool_bytes, 0) + 1


def test_queries_of_large_arrays_take_more_row_blocks():
    """Scanning all tiles stays a small part of the work, within the budget."""
    human = replace(CENSUS, n_rows=160_000_000, nnz=160_000_000 * 2200)
    assert process_budget(4 << 30).rows_per_query == 2048
    assert process_budget(4 << 30, geometry=human).rows_per_query > 2 * 2048
    assert process_budget(100 << 20, geometry=human).rows_per_query == 2048


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
