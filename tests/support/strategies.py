"""Hypothesis strategies for the order of an epoch."""

import numpy as np
from hypothesis import strategies as st

from cellfeed.plan.copies import chunks_of_copies
from cellfeed.plan.epoch import EpochOrder
from cellfeed.plan.schedule import ShufflePlan

sizes = st.lists(st.integers(1, 9), max_size=30)


@st.composite
def mixings(draw):
    """Slices, or blocks that are read together; with and without warm-up."""
    slices = draw(st.sampled_from([1, 1, 2, 3, 8, 32]))
    together = draw(st.integers(1, 4)) if slices == 1 else 1
    return ShufflePlan(
        draw(st.integers(1, 8)), slices, warmup_chunks=draw(st.integers(0, 6)), windows_per_read=together
    )


@st.composite
def plans(draw, rank_remainder=("drop", "pad", "uneven"), shuffle=(True, False), resampled=(False, True)):
    """Plans over chunks of unequal size, as row-blocks of a selection are; cells come once, or as often as drawn."""
    kind = draw(st.sampled_from(rank_remainder))
    cells, shuffled = draw(sizes), draw(st.sampled_from(shuffle))
    bounds, behind = np.concatenate(([0], np.cumsum(cells))).astype(np.int64), None
    if shuffled and draw(st.sampled_from(resampled)):
        n_copies = st.lists(st.sampled_from([0, 1, 1, 2, 7]), min_size=int(bounds[-1]), max_size=int(bounds[-1]))
        chunks = chunks_of_copies(np.array(draw(n_copies), np.int64), bounds)
        bounds, behind = chunks.bounds, chunks.cells
    depths = st.lists(st.integers(0, 20), min_size=len(bounds) - 1, max_size=len(bounds) - 1)
    return EpochOrder(
        bounds=bounds,
        seed=draw(st.integers(0, 2**32)),
        epoch=draw(st.integers(0, 5)),
        shuffle=shuffled,
        batch_size=draw(st.integers(1, 12)),
        shuffle_plan=draw(mixings()) if shuffled else ShufflePlan(draw(st.integers(1, 8))),
        drop_last=kind != "pad" and draw(st.booleans()),
        rank_remainder=kind,
        chunk_nnz=np.array(draw(depths), np.float64) if draw(st.booleans()) else None,
        cells=behind,
    )


layouts = st.tuples(st.integers(1, 8), st.integers(1, 4))
