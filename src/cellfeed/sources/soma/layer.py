"""A layer of X of an experiment: how its values, and obs and var beside it, are read again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from cellfeed._checks import is_enabled
from cellfeed._geometry import ArrayGeometry
from cellfeed._joinids import IntArray, column_ranges
from cellfeed.errors import ReadError
from cellfeed.plan.planner import Resources
from cellfeed.rows.row_allocator import Reader, RepeatedPlaceError, RowAllocator, RowPointers
from cellfeed.rows.row_builder import GeneTable
from cellfeed.select.selection import Selection
from cellfeed.sources.redact import redacted, reraise_as
from cellfeed.sources.retry import NO_RETRY, Retries
from cellfeed.sources.soma.address import ArrayAddress
from cellfeed.sources.soma.identity import check_count, check_same
from cellfeed.sources.soma.tables import read_column
from cellfeed.sources.soma.tiledb_reader import SomaReader
from cellfeed.sources.soma.tiles.fragments import ConsolidatedLater, UnknownLayout
from cellfeed.sources.soma.tiles.index import TileIndex, TileLayout, open_tiles
from cellfeed.sources.soma.tiles.reader import TileReader
from cellfeed.sources.soma.vfs import files_of
from cellfeed.stats import Meter

logger = logging.getLogger("cellfeed.reading")

ColumnChoice = Callable[[Sequence[str]], str]
"""Receives the names of all columns; returns the one to read."""


@dataclass(frozen=True)
class SomaLayer:
    """A layer of X of an experiment, with its obs and var; picklable, without an open handle.

    Attributes
    ----------
    X, obs, var
        Where the arrays are.
    layout
        How the tiles of X are packed.
    created
        The name of the creation of X, which another array at its place does not have; ``None`` if it is not known.
    """

    X: ArrayAddress
    obs: ArrayAddress
    var: ArrayAddress
    layout: TileLayout
    created: str | None

    def __str__(self) -> str:
        return str(self.X)

    @property
    def is_remote(self) -> bool:
        """Whether the layer is on an object store."""
        return self.X.is_remote

    @property
    def timestamp_ms(self) -> int:
        """Milliseconds since 1970: the state of the arrays at this time is read."""
        return self.X.timestamp_ms

    def retries(self, *, n_threads: int, meter: Meter) -> Retries:
        """Return an object that makes the requests of one epoch, to be closed after it."""
        return self.X.retries(n_threads=n_threads, meter=meter)

    def read_obs(self, joinids: IntArray, what: str, choose: ColumnChoice) -> pd.Series[Any]:
        """Read a column of obs for ascending joinids, in their order; ``what`` names it in messages."""
        return read_column(self.obs, joinids, what, choose)

    def read_var(self, joinids: IntArray, what: str, choose: ColumnChoice) -> pd.Series[Any]:
        """Read a column of var for ascending joinids, in their order; ``what`` names it in messages."""
        return read_column(self.var, joinids, what, choose)

    def open_reader(
        self, selection: Selection, resources: Resources, *, verify: bool, meter: Meter, retries: Retries
    ) -> tuple[Reader, int, int]:
        """Open the reader of a selection's layer.

        Returns
        -------
        The reader, the rows that one read may take, and the number of reads that may be under way. A read of files
        finds its tiles by a search and may be short; a query of TileDB looks at every tile.

        Raises
        ------
        ReadError
            If the layer is another one than that from which cells were selected.
        """
        geometry = selection.geometry
        genes = GeneTable.from_joinids(selection.var_joinids, geometry.n_columns)
        columns = column_ranges(selection.var_joinids, extent=geometry.column_extent, n_columns=geometry.n_columns)
        tiles, is_countable = self._find_tiles(geometry, retries)
        queries = SomaReader(
            self.X,
            genes,
            resources.pool_dtype,
            columns=columns,
            buffer_bytes=resources.buffer_bytes,
            meter=meter,
            retries=retries,
            check=partial(check_count, self.X, selected_from=geometry.n_values) if is_countable else None,
        )
        if tiles is None or genes.joinids is not None:  # genes too far apart for a table are looked up page by page
            if tiles is not None:
                tiles.files.close()
            return queries, resources.rows_per_read, resources.n_queries
        files = TileReader(
            tiles,
            genes,
            resources.pool_dtype,
            columns=columns,
            secrets=self.X.secrets,
            n_decoding=resources.n_threads,
            verify=verify,
            meter=meter,
        )
        reader = NewestValueReader(files, queries) if tiles.may_repeat else files
        return reader, resources.rows_per_file_read, resources.n_file_reads

    def _find_tiles(self, geometry: ArrayGeometry, retries: Retries) -> tuple[TileIndex | None, bool]:
        """Find the tiles of a layer, if they can be read directly; and say whether its number of values is known."""
        with reraise_as(ReadError, f"reading {str(self.X)!r} failed", self.X.secrets):
            check_same(self.X, self.created, retries)
            try:
                tiles = self.open_tiles(geometry, retries)
            except ConsolidatedLater:
                return None, False  # a fragment counts values from after the timestamp, too
        if tiles is not None:
            check_count(self.X, tiles.n_values, geometry.n_values)
        return tiles, True

    def open_tiles(self, geometry: ArrayGeometry, retries: Retries = NO_RETRY) -> TileIndex | None:
        """Find the tiles of X; ``None`` if TileDB has to read it. ``retries`` makes the requests, now and later."""
        if not is_enabled("CELLFEED_DIRECT", default=True):
            return None
        try:
            return open_tiles(files_of(self.X, retries), self.X.timestamp_ms, geometry, self.layout)
        except ConsolidatedLater as reason:
            logger.info("%s is read through TileDB: %s", self.X, reason)
            raise
        except (UnknownLayout, OSError) as reason:
            logger.info("%s is read through TileDB: %s", self.X, redacted(reason, self.X.secrets))
            return None


class NewestValueReader:
    """Reads files directly, and reads that repeat a place through TileDB, which returns the newest value of a place."""

    def __init__(self, files: Reader, queries: Reader) -> None:
        self._files = files
        self._queries = queries

    def read(self, joinids: IntArray, space: RowAllocator) -> RowPointers:
        """Put the rows of ascending ``joinids`` where there is room for them."""
        try:
            return self._files.read(joinids, space)
        except RepeatedPlaceError:
            return self._queries.read(joinids, space)

    def close(self) -> None:
        """Close both readers."""
        self._files.close()
        self._queries.close()
