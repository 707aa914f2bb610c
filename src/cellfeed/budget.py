"""How many chunks fit in memory, and what an epoch will cost: estimates from metadata alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellfeed.joinids import IntArray, JoinIds
from cellfeed.selection import ArrayGeometry

MAX_BUFFER_BYTES = 30 << 20
"""A read buffer that glibc still takes from the heap (its largest mmap threshold is 32 MiB)."""

TILE_BYTES = 16 << 20
"""Decoded tiles that one query holds: ``sm.mem.tile_upper_memory_limit`` of the reader."""

MINIBATCHES_HELD = 3
"""One with the consumer, one that waits, one in the making."""

BYTES_PER_PAGE_VALUE = 20
"""Two int64 coordinates and a float32, as TileDB hands them over."""


@dataclass(frozen=True)
class MemoryModel:
    """What is held at once, in bytes.

    Attributes
    ----------
    per_cell
        A cell in the pool: its values in compact types and its share of the plan.
    in_flight
        All reads under way: buffers, decoded tiles and staged values.
    minibatches
        Assembled minibatches.
    windows_held
        Windows in memory at once.
    """

    per_cell: float
    in_flight: int
    minibatches: int
    windows_held: int

    @classmethod
    def of(
        cls,
        geometry: ArrayGeometry,
        *,
        n_vars: int,
        value_bytes: int,
        x_bytes: int,
        batch_size: int,
        sparse: bool,
        eager: bool,
        n_threads: int,
        buffer_bytes: int,
    ) -> MemoryModel:
        """Estimate from the array's geometry and the dataset's parameters."""
        values_per_cell = min(geometry.values_per_row, n_vars)
        gene_bytes = 2 if n_vars <= 1 << 16 else 4
        read_values = geometry.values_per_row * geometry.row_extent
        decoded = int(read_values * BYTES_PER_PAGE_VALUE)
        page = min(3 * buffer_bytes, decoded) + min(TILE_BYTES, decoded)
        # Staged values and the block made of them exist side by side for a moment.
        staged = int(read_values * (gene_bytes + value_bytes) * 2)
        per_minibatch = batch_size * (values_per_cell * (4 + x_bytes) if sparse else n_vars * x_bytes)
        return cls(
            per_cell=values_per_cell * (gene_bytes + value_bytes) + 40,
            in_flight=n_threads * (page + staged),
            minibatches=int(per_minibatch * (MINIBATCHES_HELD if eager else 2)),
            windows_held=2 if eager else 1,
        )

    def peak(self, cells_per_window: float) -> int:
        """Bytes held at most with windows of so many cells."""
        return int(self.windows_held * cells_per_window * self.per_cell) + self.in_flight + self.minibatches

    def chunks_that_fit(self, budget: int, *, cells_per_chunk: float) -> int:
        """Whole chunks per window within ``budget`` bytes; below 1 if not one fits."""
        room = budget - self.in_flight - self.minibatches
        return int(room / (self.windows_held * self.per_cell * max(cells_per_chunk, 1)))


def buffer_bytes(budget: int, n_threads: int) -> int:
    """Bytes of one read buffer: as large as pays, smaller where the budget is."""
    return max(1 << 16, min(MAX_BUFFER_BYTES, budget // (12 * n_threads)))


def decode_amplification(joinids: JoinIds, arrivals: list[IntArray], geometry: ArrayGeometry) -> float:
    """Values decoded for each value wanted, from the geometry of the tiles.

    A data tile holds ``capacity`` values in the order of row-block, gene band, row. A visit to a
    row-block therefore touches every band; with T data tiles and C bands to a row-block, about
    ``min(T, 1.5 C)`` tiles span all of its rows or hold any given one, and the rest are
    touched in proportion to the rows between the first and the last wanted one. Measured on tiles of
    Census-like stores this is 19 for a lone chunk of 64 rows, 1.0 for a whole row-block.

    Parameters
    ----------
    arrivals
        Ascending positions of the windows to judge by; rows of one window that share a row-block are
        decoded once.
    """
    values_per_block = geometry.values_per_row * geometry.row_extent
    tiles = values_per_block / geometry.capacity
    bands = -(-geometry.n_columns // max(geometry.column_extent, 1))
    decoded = wanted = 0.0
    for positions in arrivals:
        ids = joinids[positions]
        if len(ids) == 0:
            continue
        edges = np.flatnonzero(np.diff(ids // geometry.row_extent)) + 1
        first, last = np.concatenate(([0], edges)), np.concatenate((edges, [len(ids)])) - 1
        span = np.minimum((ids[last] - ids[first] + 1) / geometry.row_extent, 1.0)
        everywhere = min(tiles, 1.5 * bands)
        touched = np.maximum(1.0, everywhere + (tiles - everywhere) * span)
        # Neighbouring row-blocks can share a tile, and the last row-block of an array is cut short.
        decoded += min(float(touched.sum()) / max(tiles, 1e-12) * geometry.row_extent, geometry.n_rows)
        wanted += len(ids)
    return max(1.0, decoded / wanted) if wanted else 1.0
