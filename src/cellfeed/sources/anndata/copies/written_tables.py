"""obs and var of a copy, read from the source of its cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfeed._checks import missing_from, suggest
from cellfeed._joinids import JOINID, IntArray
from cellfeed.errors import SelectionError
from cellfeed.select.labels import known_columns
from cellfeed.select.row_figures import NNZ, RAW_SUM
from cellfeed.select.selection import Selection
from cellfeed.sources.anndata.axes import INDEX
from cellfeed.sources.anndata.copies.journal import RowRecords
from cellfeed.sources.anndata.parts import Axis
from cellfeed.sources.anndata.provenance import record_of
from cellfeed.sources.anndata.source import AnnDataSource

NAMES: dict[Axis, tuple[str, ...]] = {"obs": ("obs_id", "observation_joinid"), "var": ("feature_id", "var_id")}
"""Columns of an experiment that become ``obs_names`` and ``var_names``: the first that has a distinct text per row."""


class WrittenTables(NamedTuple):
    """What a copy has beside its matrices and embeddings."""

    obs: pd.DataFrame
    var: pd.DataFrame
    uns: dict[str, str]

    @classmethod
    def read(
        cls,
        selection: Selection,
        records: RowRecords,
        identity: Mapping[str, Any],
        columns: Sequence[str] | None = None,
    ) -> WrittenTables:
        """Read them at the same time: each waits for a distant source. See :func:`obs_of` for the arguments."""
        with ThreadPoolExecutor(2, thread_name_prefix="cellfeed-copy") as pool:
            var = pool.submit(var_of, selection)
            record = pool.submit(record_of, selection, identity)
            obs = obs_of(selection, records, columns)
        return cls(obs, var.result(), {"cellfeed": json.dumps(record.result())})


def obs_of(selection: Selection, records: RowRecords, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return obs of the rows of a copy, with their ``soma_joinid``, ``nnz`` and, of counts, ``raw_sum``.

    Parameters
    ----------
    records
        The rows; ``position`` is the joinid of each.
    columns
        Columns of obs; ``None`` takes all.
    """
    joinids = records["position"]
    frame = obs_table(selection, selection.find(joinids), columns)
    frame[NNZ] = records["nnz"]
    sums = records["sum"]
    if selection.X_name == "raw" or _are_counts(sums):
        frame[RAW_SUM] = sums
    elif RAW_SUM in frame:
        frame = frame.drop(columns=RAW_SUM)
    return frame


def obs_table(selection: Selection, positions: IntArray, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return obs of the cells at some positions, in their order, with their ``soma_joinid``; see :func:`obs_of`."""
    order = np.argsort(positions)
    rows = selection.joinids[positions[order]]  # ascending
    frame = _read_table(selection.source, "obs", rows, columns).iloc[np.argsort(order)]
    return frame.assign(**{JOINID: selection.joinid_column[positions]})


def obsm_of(selection: Selection, records: RowRecords) -> dict[str, npt.NDArray[np.float32]]:
    """Return the embeddings of the rows of a copy."""
    if not selection.obsm:
        return {}
    positions = selection.find(records["position"])
    return {name: rows[positions] for name, rows in selection.obsm.items()}


def var_of(selection: Selection) -> pd.DataFrame:
    """Return var of the genes of a copy, with their ``soma_joinid``."""
    frame = _read_table(selection.source, "var", selection.var_joinids, None)
    return frame.assign(**{JOINID: selection.var_joinids})


def _are_counts(sums: npt.NDArray[np.float64]) -> bool:
    return bool((sums == np.floor(sums)).all())


def check_columns(selection: Selection, columns: Sequence[str]) -> None:
    """Raise a SelectionError if obs lacks a column."""
    known = known_columns(selection.source.read_obs)
    if missing := missing_from(columns, known):
        raise SelectionError(f"obs has no column {missing[0]!r}; {suggest(missing[0], known)}")


def _read_table(source: Any, axis: Axis, rows: IntArray, columns: Sequence[str] | None) -> pd.DataFrame:
    """Return columns of obs or var, and the names of the rows as the index, from one read."""
    is_anndata = isinstance(source, AnnDataSource)
    candidates = (source.tables.index_name(axis),) if is_anndata else NAMES[axis]

    def choose(known: Sequence[str]) -> list[str]:
        wanted = [name for name in known if name != JOINID] if columns is None else columns
        return list(dict.fromkeys([*wanted, *[name for name in candidates if name in known][:1]]))

    frame: pd.DataFrame = (source.read_obs if axis == "obs" else source.read_var)(rows, axis, choose)
    names = next((name for name in candidates if name in frame and (is_anndata or _are_distinct(frame[name]))), None)
    if names is None:
        return frame.set_index(pd.Index(rows.astype(str)))
    own_name = source.tables.own_name(axis) if is_anndata else names
    index = pd.Index(frame[names].to_numpy(object), name=None if own_name == INDEX else own_name)
    return frame.drop(columns={names, own_name} & set(frame)).set_index(index)


def _are_distinct(column: pd.Series[Any]) -> bool:
    values = column.astype(object)
    return bool(values.is_unique and values.map(lambda value: isinstance(value, str)).all())
