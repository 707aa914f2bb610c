"""The source of a SOMA experiment: reads a layer of X, and columns of its obs and var."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

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
from cellfeed.sources.soma.tables import read_columns
from cellfeed.sources.soma.tiledb_reader import SomaReader
from cellfeed.sources.soma.tiles.fragments import ConsolidatedLater, UnknownLayout
from cellfeed.sources.soma.tiles.index import TileIndex, TileLayout, open_tiles
from cellfeed.sources.soma.tiles.reader import TileReader
from cellfeed.sources.soma.vfs import files_of
from cellfeed.sources.source import ColumnChoice, OpenReader
from cellfeed.stats import Meter

logger = logging.getLogger("cellfeed.reading")


@dataclass(frozen=True)
class SomaLayer:
    """A layer of X of an experiment, with its obs and var: a :class:`~cellfeed.sources.source.Source`.

    Attributes
    ----------
    X, obs, var
        Addresses of the arrays.
    geometry, layout
        Layout of the values of X, and the filters of its tiles.
    identity
        Identifier of X, which changes if the array is created again; ``None`` if it is unknown.
    """

    X: ArrayAddress
    obs: ArrayAddress
    var: ArrayAddress
    geometry: ArrayGeometry
    layout: TileLayout
    identity: str | None

    def __str__(self) -> str:
        return str(self.X)

    @property
    def is_remote(self) -> bool:
        """Whether the layer is on an object store."""
        return self.X.is_remote

    @property
    def timestamp_ms(self) -> int:
        """Milliseconds since 1970: the source reads the state of the arrays at this time."""
        return self.X.timestamp_ms

    def retries(self, *, n_threads: int, meter: Meter) -> Retries:
        """Return an object that makes the requests of one epoch; the caller closes it after the epoch."""
        return self.X.retries(n_threads=n_threads, meter=meter)

    def read_obs(self, joinids: IntArray, what: str, choose: ColumnChoice) -> pd.DataFrame:
        """Return columns of obs for ascending joinids, in their order; ``what`` names the values in errors."""
        return read_columns(self.obs, joinids, what, choose)

    def read_var(self, joinids: IntArray, what: str, choose: ColumnChoice) -> pd.DataFrame:
        """Return columns of var for ascending joinids, in their order; ``what`` names the values in errors."""
        return read_columns(self.var, joinids, what, choose)

    def open_reader(
        self, selection: Selection, resources: Resources, *, verify: bool, meter: Meter, retries: Retries
    ) -> OpenReader:
        """Open a reader of the selected rows and genes.

        The reader of files decodes only the tiles of the wanted rows, and its reads may be short. A query of TileDB
        compares its ranges with every tile, and its reads are long.

        Raises
        ------
        ReadError
            If X is not the array from which the cells were selected.
        """
        geometry = self.geometry
        genes = GeneTable.from_joinids(selection.var_joinids, geometry.n_columns)
        columns = column_ranges(selection.var_joinids, extent=geometry.column_extent, n_columns=geometry.n_columns)
        tiles, is_countable = self._find_tiles(retries)
        queries = SomaReader(
            self.X,
            genes,
            resources.pool_dtype,
            columns=columns,
            buffer_bytes=resources.buffer_bytes,
            meter=meter,
            retries=retries,
            check=partial(check_count, self.X, n_expected=geometry.nnz) if is_countable else None,
        )
        if tiles is None or genes.joinids is not None:  # genes too far apart for a table are searched page by page
            if tiles is not None:
                tiles.files.close()
            return OpenReader(queries, resources.rows_per_read, resources.n_queries)
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
        return OpenReader(reader, resources.rows_per_file_read, resources.n_file_reads)

    def _find_tiles(self, retries: Retries) -> tuple[TileIndex | None, bool]:
        """Return the tiles of X, or ``None`` if TileDB must read X; and whether the values of X can be counted."""
        with reraise_as(ReadError, f"reading {str(self.X)!r} failed", self.X.secrets):
            check_same(self.X, self.identity, retries)
            try:
                tiles = self.open_tiles(retries)
            except ConsolidatedLater:
                return None, False  # the count of a fragment includes values written after the timestamp
        if tiles is not None:
            check_count(self.X, tiles.n_values, self.geometry.nnz)
        return tiles, True

    def open_tiles(self, retries: Retries = NO_RETRY) -> TileIndex | None:
        """Return the tiles of X, or ``None`` if TileDB must read X. ``retries`` makes the requests, now and later."""
        if not is_enabled("CELLFEED_DIRECT", default=True):
            return None
        try:
            return open_tiles(files_of(self.X, retries), self.X.timestamp_ms, self.geometry, self.layout)
        except ConsolidatedLater as reason:
            logger.info("%s is read through TileDB: %s", self.X, reason)
            raise
        except (UnknownLayout, OSError) as reason:
            logger.info("%s is read through TileDB: %s", self.X, redacted(reason, self.X.secrets))
            return None


class NewestValueReader:
    """Reads files, and reads again through TileDB if a cell has several values of a gene: TileDB returns the newest."""

    def __init__(self, files: Reader, queries: Reader) -> None:
        self._files = files
        self._queries = queries

    def read(self, joinids: IntArray, space: RowAllocator) -> RowPointers:
        """Write the rows of ascending ``joinids`` to memory of ``space``."""
        try:
            return self._files.read(joinids, space)
        except RepeatedPlaceError:
            return self._queries.read(joinids, space)

    def close(self) -> None:
        """Close both readers."""
        self._files.close()
        self._queries.close()
