"""Opens the reader of a layer: its files are read directly where their layout is known, else TileDB reads it."""

from __future__ import annotations

from functools import partial

from cellfeed.errors import ReadError
from cellfeed.fragments import ConsolidatedLater
from cellfeed.identity import check_count, check_same
from cellfeed.joinids import IntArray, column_ranges
from cellfeed.planner import Resources
from cellfeed.reader import SomaReader
from cellfeed.redact import told_as
from cellfeed.retry import Retries
from cellfeed.rowbuilder import GeneTable
from cellfeed.rowspace import PlacedRows, Reader, RepeatedPlaceError, RowSpace
from cellfeed.selection import Selection
from cellfeed.stats import Meter
from cellfeed.tileindex import TileIndex, open_tiles
from cellfeed.tilereader import TileReader


class NewestValueReader:
    """Reads files directly, and reads that repeat a place through TileDB, which returns the newest value of a place."""

    def __init__(self, files: Reader, queries: Reader) -> None:
        self._files = files
        self._queries = queries

    def read(self, joinids: IntArray, space: RowSpace) -> PlacedRows:
        """Put the rows of ascending ``joinids`` where there is room for them."""
        try:
            return self._files.read(joinids, space)
        except RepeatedPlaceError:
            return self._queries.read(joinids, space)

    def close(self) -> None:
        """Close both readers."""
        self._files.close()
        self._queries.close()


def open_reader(
    selection: Selection, resources: Resources, *, verify: bool, meter: Meter, retries: Retries
) -> tuple[Reader, int, int]:
    """Open the reader of a selection's layer.

    Returns
    -------
    The reader, the rows that one read may take, and the number of reads that may be under way. A read of files finds
    its tiles by a search and may be short; a query of TileDB looks at every tile.

    Raises
    ------
    ReadError
        If the layer is another one than that from which cells were selected.
    """
    geometry = selection.geometry
    genes = GeneTable.from_joinids(selection.var_joinids, geometry.n_columns)
    columns = column_ranges(selection.var_joinids, extent=geometry.column_extent, n_columns=geometry.n_columns)
    tiles, is_countable = _find_tiles(selection, retries)
    queries = SomaReader(
        selection.X,
        genes,
        resources.pool_dtype,
        columns=columns,
        buffer_bytes=resources.buffer_bytes,
        meter=meter,
        retries=retries,
        check=partial(check_count, selection.X, selected_from=geometry.n_values) if is_countable else None,
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
        secrets=selection.X.secrets,
        n_decoding=resources.n_threads,
        verify=verify,
        meter=meter,
    )
    reader = NewestValueReader(files, queries) if tiles.may_repeat else files
    return reader, resources.rows_per_file_read, resources.n_file_reads


def _find_tiles(selection: Selection, retries: Retries) -> tuple[TileIndex | None, bool]:
    """Find the tiles of a layer, if they can be read directly; and say whether its number of values is known."""
    with told_as(ReadError, f"reading {str(selection.X)!r} failed", selection.X.secrets):
        check_same(selection.X, selection.geometry.created, retries)
        try:
            tiles = open_tiles(selection.X, selection.geometry, retries)
        except ConsolidatedLater:
            return None, False  # a fragment counts values from after the timestamp, too
    if tiles is not None:
        check_count(selection.X, tiles.n_values, selection.geometry.n_values)
    return tiles, True
