"""Memory of rows: each row has memory of its own, which is released after the row was yielded and not before."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfeed.rows.row_allocator import RowAllocator
from cellfeed.rows.slabs import SLAB_BYTES, Arena, SlabPool
from cellfeed.stats import Meter


def spans(rows):
    """Bytes of rows: where genes and values begin and end."""
    gene_bytes, value_bytes = (kind.itemsize for kind in rows.types)
    starts = np.concatenate((rows.genes, rows.values))
    return starts, starts + np.concatenate((rows.sizes * gene_bytes, rows.sizes * value_bytes))


@given(
    sizes=st.lists(st.lists(st.integers(0, 300), max_size=30), min_size=1, max_size=4),
    n_parts=st.integers(1, 5),
    gene_dtype=st.sampled_from([np.uint16, np.uint32]),
    value_dtype=st.sampled_from([np.uint8, np.uint16, np.float32, np.float64]),
    slab_bytes=st.sampled_from([64, 512, 4096]),
    seed=st.integers(0, 99),
)
def test_rows_share_no_byte_and_lie_on_the_shelves_of_their_parts(
    sizes, n_parts, gene_dtype, value_dtype, slab_bytes, seed
):
    """Concurrent reads, of rows that fit in a slab or do not; rows are aligned for any type."""
    meter, lock, rng = Meter(), threading.Lock(), np.random.default_rng(seed)
    pool = SlabPool(slab_bytes, meter.hold)
    arenas = [Arena(pool) for _ in range(n_parts)]
    parts = [rng.integers(0, n_parts, len(rows)) for rows in sizes]

    def place(rows, part):
        return RowAllocator(arenas, part, lock).allocate(np.array(rows, np.int64), gene_dtype, value_dtype)

    with ThreadPoolExecutor(4) as threads:
        placed = list(threads.map(place, sizes, parts))
    starts, ends = (np.concatenate(column) for column in zip(*map(spans, placed), strict=True))
    assert not (starts % 8).any()
    order = np.lexsort((ends, starts))
    assert (ends[order][:-1] <= starts[order][1:]).all()
    for rows, part in zip(placed, parts, strict=True):
        low, high = (edge.reshape(2, -1) for edge in spans(rows))
        for row, p in enumerate(part):
            slabs = [(slab.address, slab.address + slab.n_bytes) for slab in arenas[p].slabs]
            for kind in range(2 if rows.sizes[row] else 0):
                assert any(a <= low[kind, row] and high[kind, row] <= b for a, b in slabs)
    held = sum(slab.n_bytes for arena in arenas for slab in arena.slabs)
    assert meter.snapshot().peak_pool_bytes == held


def test_memory_is_reused_when_no_reference_is_left_and_not_before():
    meter = Meter()
    pool = SlabPool(SLAB_BYTES, meter.hold)
    first, second = pool.allocate(1), pool.allocate(1)
    assert abs(first.address - second.address) >= SLAB_BYTES
    address = first.address
    del first
    third, fourth = pool.allocate(1), pool.allocate(1)
    assert third.address == address
    assert fourth.address not in (second.address, third.address)
    assert meter.snapshot().peak_pool_bytes == 3 * SLAB_BYTES


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc/self/maps on this system")
def test_the_memory_of_slabs_is_this_process_own():
    """Shared memory would be seen, and written to, by forked processes; and it has no huge pages."""
    slab = SlabPool(SLAB_BYTES, Meter().hold).allocate(SLAB_BYTES)
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(address, 16) for address in line.split()[0].split("-"))
        if start <= slab.address < end:
            assert line.split()[1] == "rw-p"
            return
    raise AssertionError("the slab is in no mapping")
