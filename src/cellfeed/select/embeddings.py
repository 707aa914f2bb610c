"""Embeddings of cells: dense float32 rows, which stay in memory as the codes of labels do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cellfeed._checks import format_bytes, warn_user
from cellfeed._joinids import IntArray, merge_runs, runs_of
from cellfeed.errors import PlanError, SelectionError

Rows = npt.NDArray[np.float32]
"""float32, shape (n_obs, n_dims)."""

MAX_GAP = 4096
"""Unwanted rows between two wanted rows that are read along with them."""

VALUES_PER_READ = 1 << 22


class EmbeddingShape(NamedTuple):
    """The columns of an embedding in a store, and the type of its values."""

    n_dims: int
    dtype: np.dtype[Any]


def read_embeddings(
    shapes: Mapping[str, EmbeddingShape], n_obs: int, memory_budget: int, read: Callable[[str], Rows]
) -> Mapping[str, Rows]:
    """Read the embeddings of ``n_obs`` cells.

    Parameters
    ----------
    shapes
        The embeddings by name.
    memory_budget
        Bytes of which embeddings may take half.
    read
        Returns the rows of the cells, with NaN for a cell that has none.

    Raises
    ------
    PlanError
        If the embeddings take more.
    SelectionError
        If an embedding does not hold numbers.
    """
    for name, shape in shapes.items():
        if shape.dtype.kind not in "iufb":
            raise SelectionError(f"obsm: {name!r} holds values of type {shape.dtype}, not numbers")
    n_bytes = sum(4 * n_obs * shape.n_dims for shape in shapes.values())
    if n_bytes > memory_budget // 2:
        enough = format_bytes(1.01 * 2 * n_bytes)
        raise PlanError(
            f"obsm={list(shapes)!r} takes {format_bytes(n_bytes)} for {n_obs:,} cells, more than half of "
            f"memory_budget={format_bytes(memory_budget)}; give memory_budget={enough!r}, or select fewer cells"
        )
    return {name: _counted(name, read(name)) for name in shapes}


def _counted(name: str, rows: Rows) -> Rows:
    """Return rows; warn of cells without an embedding."""
    if n_missing := int(np.isnan(rows).any(axis=1).sum()):
        warn_user(
            f"obsm: {name!r} has no values for {n_missing:,} of {len(rows):,} cells, which are NaN; select the other "
            f"cells by obs_query"
        )
    return rows


def runs_to_read(joinids: IntArray, n_dims: int) -> Iterator[tuple[int, int]]:
    """Yield half-open ranges of rows that cover ascending joinids, each of a limited number of values.

    Examples
    --------
    >>> list(runs_to_read(np.array([3, 4, 9, 9000]), 2))
    [(3, 10), (9000, 9001)]
    """
    step = max(VALUES_PER_READ // max(n_dims, 1), 1)
    for start, stop in merge_runs(runs_of(joinids), max_gap=MAX_GAP).tolist():
        for low in range(start, stop, step):
            yield low, min(low + step, stop)


def read_dense(joinids: IntArray, n_dims: int, read: Callable[[int, int], npt.NDArray[Any]]) -> Rows:
    """Return the rows at ascending joinids of a dense matrix, of which ``read`` returns ranges of rows."""
    out = np.empty((len(joinids), n_dims), np.float32)
    for start, stop in runs_to_read(joinids, n_dims):
        low, high = np.searchsorted(joinids, [start, stop])
        out[low:high] = read(start, stop)[joinids[low:high] - start]
    return out
