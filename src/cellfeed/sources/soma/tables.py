"""Reads columns of obs and var."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from cellfeed._joinids import JOINID, IntArray, find_in
from cellfeed.errors import SelectionError
from cellfeed.select.obs_frame import FrameBuilder
from cellfeed.sources.redact import reraise_as
from cellfeed.sources.soma.address import ArrayAddress
from cellfeed.sources.source import ColumnChoice

ROWS_PER_LOOKUP = 1000
"""Rows that TileDB reads in the time in which it finds one row."""


def read_frame(read: Any, columns: list[str], argument: str, secrets: frozenset[str]) -> tuple[IntArray, pd.DataFrame]:
    """Return the joinids of the selected rows, ascending, and columns of these rows; ``read`` reads the tables."""
    frame = FrameBuilder(columns)
    joinids: list[IntArray] = []
    advice = " (cellfeed.obs_filter writes value filters from Python values)"
    with reraise_as(SelectionError, f"{argument} cannot be answered", secrets, advice):
        for table in read(column_names=[JOINID, *(c for c in columns if c != JOINID)]):
            joinids.append(table.column(JOINID).to_numpy())
            frame.add(table)
    ids = np.concatenate(joinids) if joinids else np.empty(0, np.int64)
    values = frame.finish(ids)
    if not bool(np.all(ids[1:] > ids[:-1])):
        order = np.argsort(ids, kind="stable")
        ids, values = ids[order], values.iloc[order]
    return ids, values


def read_columns(address: ArrayAddress, joinids: IntArray, what: str, choose: ColumnChoice) -> pd.DataFrame:
    """Read columns of a data frame for ascending joinids, in their order.

    Parameters
    ----------
    what
        Name of the values in errors.
    choose
        Receives the names of all columns; returns the names of those to read.
    """
    with (
        reraise_as(SelectionError, f"{what} of {str(address)!r} cannot be read", address.secrets),
        contextlib.closing(address.retries()) as retries,
    ):
        return retries.call(partial(_read_columns, address, joinids, what, choose))


def _read_columns(address: ArrayAddress, wanted: IntArray, what: str, choose: ColumnChoice) -> pd.DataFrame:
    import tiledbsoma as soma

    with soma.DataFrame.open(address.uri, context=address.context({}), tiledb_timestamp=address.timestamp_ms) as opened:
        columns = list(choose(opened.schema.names))
        if len(wanted) == 0:
            return pd.DataFrame(columns=columns, dtype=object)
        indexed = tuple(opened.index_column_names) == (JOINID,)

        def read(column_names: list[str]) -> Any:
            return opened.read((_rows_to_read(wanted),) if indexed else (), column_names=column_names)

        joinids, frame = read_frame(read, columns, what, address.secrets)
    rows = find_in(joinids, wanted)
    if (rows < 0).any():
        raise SelectionError(f"{str(address)!r} has lost rows since they were selected")
    return frame.iloc[rows].reset_index(drop=True)


def _rows_to_read(joinids: IntArray) -> slice | IntArray:
    """Return the range of some joinids, or the joinids if they are few in that range: each is a lookup for TileDB."""
    first, last = int(joinids[0]), int(joinids[-1])
    return joinids if len(joinids) * ROWS_PER_LOOKUP <= last - first else slice(first, last)
