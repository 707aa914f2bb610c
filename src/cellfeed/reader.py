"""Rows of X from a tiledbsoma array: the only module that reads X."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed import native
from cellfeed.errors import ReadError
from cellfeed.joinids import IntArray, merge_runs, runs_of
from cellfeed.redact import public_uri, secrets_of, told_as
from cellfeed.rowbuilder import GeneTable, RowBuilder
from cellfeed.rowspace import PlacedRows, RowSpace
from cellfeed.stats import Meter

READ_SETTINGS = {
    # Without it every finished query gives all free memory back to the system and faults it in again.
    "sm.mem.malloc_trim": "false",
    # Threads of ours each run a query of one thread: queries overlap, the stages of one query do not.
    "sm.compute_concurrency_level": "1",
}
"""TileDB settings for reading, used where the user's context does not set them."""

MAX_GAP = 64
"""Unwanted rows between two wanted ones that are read rather than stepped over."""


@dataclass(frozen=True, repr=False)
class ArrayAddress:
    """What is needed to open the array again, in this process or another.

    The user's own configuration and timestamp are part of it. Both configuration and URI may hold credentials: the
    one is not shown, and the other without them.
    """

    uri: str
    timestamp_ms: int
    config: dict[str, str]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r}, timestamp_ms={self.timestamp_ms})"

    def __str__(self) -> str:
        return public_uri(self.uri)

    @property
    def secrets(self) -> frozenset[str]:
        """What must not be shown of it."""
        return secrets_of(self.uri, self.config)

    def open(self, buffer_bytes: int) -> Any:
        """Open the array as the user's experiment would, with settings for reading added."""
        import tiledbsoma as soma

        settings = {"soma.init_buffer_bytes": str(buffer_bytes), **READ_SETTINGS, **self.config}
        if not self.uri.startswith(("s3://", "gs://", "azure://", "tiledb://", "http")):
            # Keeps tiles in the cache between decoding and copying; on object stores it would make
            # tiny requests.
            settings = {"sm.mem.tile_upper_memory_limit": str(16 << 20)} | settings
        context = soma.SOMATileDBContext(tiledb_config=settings)
        return soma.SparseNDArray.open(self.uri, context=context, tiledb_timestamp=self.timestamp_ms)


class SomaReader:
    """A :class:`~cellfeed.rowspace.Reader` over one open SOMA array.

    Parameters
    ----------
    address
        Where the array is. It is opened at the first read, once, and shared by all threads.
    genes
        Which columns to keep.
    columns
        int64, shape (n, 2): half-open ranges of columns to read; ``None`` reads all. See :func:`column_ranges`.
    value_dtype
        Type of the values that no small integer type holds.
    buffer_bytes
        Bytes of each buffer that TileDB fills, three to a query.
    meter
        Told of what is read.
    check
        Told how many values the array holds when it is opened, if that can be had; it may refuse.
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
        check: Callable[[int], None] = lambda n_values: None,
    ) -> None:
        self._buffer_bytes = buffer_bytes
        self._meter = meter
        self._check = check
        self._columns = columns
        self._address = address
        self._secrets = address.secrets
        self._genes = genes
        self._value_dtype = value_dtype
        self._lock = threading.Lock()
        self._array: Any = None
        self._closed = False

    def _open(self) -> Any:
        with self._lock:
            if self._closed:
                raise ReadError(f"the reader of {str(self._address)!r} is closed")
            if self._array is None:
                array = self._address.open(self._buffer_bytes)
                count = native.count_in_fragments(array)
                if count is not None:
                    self._check(count)
                self._array = array
            return self._array

    def read(self, joinids: IntArray, space: RowSpace) -> PlacedRows:
        """Put the rows of ascending ``joinids`` where there is room for them."""
        builder = RowBuilder(joinids, self._genes, self._value_dtype)
        rows = merge_runs(runs_of(joinids), max_gap=MAX_GAP)
        started = time.perf_counter()
        built_s = 0.0

        def take(page: Any) -> None:
            nonlocal built_s
            asked = time.perf_counter()
            builder.add(*(_numpy(page.column(name)) for name in native.COLUMNS))
            self._meter.add(bytes_read=page.nbytes)
            built_s += time.perf_counter() - asked

        with told_as(ReadError, reading(joinids, self._address), self._secrets):
            if len(joinids):
                native.read_pages(self._open(), rows, self._columns, take)
            read_s = time.perf_counter() - started - built_s
            placed = builder.finish(space)
        self._meter.add(read_s=read_s, build_s=time.perf_counter() - started - read_s, nnz=placed.nnz)
        return placed

    def close(self) -> None:
        """Close the array; reading again is an error."""
        with self._lock:
            self._closed = True
            array, self._array = self._array, None
        if array is not None:
            array.close()


def reading(joinids: IntArray, place: object) -> str:
    """Say of a read of some place that it failed."""
    cells = f"soma_joinid {joinids[0]} to {joinids[-1]}" if len(joinids) else "nothing"
    return f"reading {cells} of {str(place)!r} failed"


def _numpy(column: Any) -> npt.NDArray[Any]:
    """Return a column of a page as an array, without a copy where it is one chunk."""
    if column.num_chunks == 1:
        array: npt.NDArray[Any] = column.chunk(0).to_numpy(zero_copy_only=False)
    else:
        array = column.to_numpy()
    return array.view(np.uint8) if array.dtype == np.bool_ else array


def available_threads() -> int:
    """Cores that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
