"""Reads rows of X through queries of TileDB."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray, merge_runs, runs_of
from cellfeed.errors import ReadError
from cellfeed.rows.row_allocator import RowAllocator, RowPointers
from cellfeed.rows.row_builder import GeneTable, RowBuilder
from cellfeed.sources.redact import failed_read, reraise_as
from cellfeed.sources.retry import NO_RETRY, Retries
from cellfeed.sources.soma import tiledb_private
from cellfeed.sources.soma.address import ArrayAddress
from cellfeed.stats import Meter

MAX_GAP = 64
"""Number of unwanted rows between two wanted rows up to which one range covers both."""


class SomaReader:
    """A :class:`~cellfeed.rows.row_allocator.Reader` over one open SOMA array.

    Parameters
    ----------
    address
        Address of the array. The first read opens the array, and all threads share it.
    genes
        Columns to keep.
    value_dtype
        Type of values that do not fit a small integer type.
    columns
        int64, shape (n, 2): half-open ranges of columns to read; ``None`` reads all. See :func:`column_ranges`.
    buffer_bytes
        Bytes of each buffer that TileDB fills; a query has three.
    meter
        Counts bytes, values and seconds.
    retries
        Makes the queries; a query that fails is repeated as a whole.
    check
        Receives the number of values of the array when it is opened, if it is known; may raise an error.
    """

    def __init__(
        self,
        address: ArrayAddress,
        genes: GeneTable,
        value_dtype: npt.DTypeLike,
        *,
        columns: IntArray | None = None,
        buffer_bytes: int,
        meter: Meter,
        retries: Retries = NO_RETRY,
        check: Callable[[int], None] | None = None,
    ) -> None:
        self._buffer_bytes = buffer_bytes
        self._meter = meter
        self._retries = retries
        self._check = check
        self._columns = columns
        self._address = address
        self._secrets = address.secrets
        self._genes = genes
        self._value_dtype = value_dtype
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._array: Any = None
        self._n_queries = 0
        self._closed = False

    def _open(self) -> Any:
        with self._opening:  # a lock of its own: opening may take long, and other threads must not wait to close
            if self._array is None:
                array = self._address.open(self._buffer_bytes)
                count = tiledb_private.count_in_fragments(array)
                if count is not None and self._check is not None:
                    self._check(count)
                self._array = array
            return self._array

    @contextlib.contextmanager
    def _querying(self) -> Iterator[None]:
        """Keep the array open during the body."""
        with self._lock:
            if self._closed:
                raise ReadError(f"the reader of {str(self._address)!r} is closed")
            self._n_queries += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_queries -= 1

    def read(self, joinids: IntArray, space: RowAllocator) -> RowPointers:
        """Write the rows of ascending ``joinids`` to memory of ``space``."""
        started = time.perf_counter()
        with reraise_as(ReadError, failed_read(joinids, self._address), self._secrets):
            builder, built_s = self._retries.call(partial(self._query, joinids))
            read_s = time.perf_counter() - started - built_s
            placed = builder.finish(space)
        self._meter.add(read_s=read_s, build_s=time.perf_counter() - started - read_s, nnz=placed.nnz)
        return placed

    def _query(self, joinids: IntArray) -> tuple[RowBuilder, float]:
        """Make one attempt to read rows; return them, and the seconds it took to build them from the pages."""
        builder = RowBuilder(joinids, self._genes, self._value_dtype)
        built_s = 0.0

        def take(page: Any) -> None:
            nonlocal built_s
            started = time.perf_counter()
            builder.add(*(_numpy(page.column(name)) for name in tiledb_private.COLUMNS))
            self._meter.add(bytes_read=page.nbytes)
            built_s += time.perf_counter() - started

        with self._querying():
            if len(joinids):
                rows = merge_runs(runs_of(joinids), max_gap=MAX_GAP)
                tiledb_private.read_pages(self._open(), rows, self._columns, take)
        return builder, built_s

    def close(self) -> None:
        """Close the array. Later reads raise an error."""
        with self._lock:
            self._closed = True
            is_idle = self._n_queries == 0
        # A query that was given up keeps the array alive until it ends; then the array is closed too.
        if is_idle and self._array is not None:
            self._array.close()
            self._array = None


def _numpy(column: Any) -> npt.NDArray[Any]:
    """Return a column of a page as an array, without a copy if it has one chunk."""
    if column.num_chunks == 1:
        array: npt.NDArray[Any] = column.chunk(0).to_numpy(zero_copy_only=False)
    else:
        array = column.to_numpy()
    return array.view(np.uint8) if array.dtype == np.bool_ else array
