"""Rows of obs by the joinids of cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfeed._checks import abbreviate, missing_from, ordered, suggest
from cellfeed._joinids import JOINID
from cellfeed.errors import SelectionError
from cellfeed.select.labels import known_columns
from cellfeed.select.selection import Selection


def read_obs_rows(selection: Selection, joinids: npt.NDArray[Any], columns: Sequence[str] | None) -> pd.DataFrame:
    """Read the rows of obs of selected cells; see :meth:`cellfeed.ExperimentDataset.obs_frame`."""
    if joinids.ndim != 1 or (joinids.dtype.kind not in "iu" and len(joinids)):
        raise SelectionError(
            f"joinids must be integers in one dimension, such as obs_joinids; they are {joinids.dtype} of shape "
            f"{joinids.shape}"
        )
    known = [JOINID, *known_columns(selection.source.read_obs)]
    columns = known if columns is None else ordered("columns", columns)
    if absent := missing_from(columns, known):
        raise SelectionError(f"columns: obs has no column {absent[0]!r}; {suggest(absent[0], known)}")
    cells, row_of = np.unique(joinids.astype(np.int64), return_inverse=True)
    positions = selection.find(cells)
    if unknown := cells[positions < 0].tolist():
        raise SelectionError(f"joinids: {len(unknown)} are not cells of this dataset: {abbreviate(unknown)}")
    order = np.argsort(positions)
    distinct = list(dict.fromkeys(columns))
    frame: pd.DataFrame = selection.source.read_obs(selection.joinids[positions[order]], "obs", lambda _: distinct)
    if JOINID in columns:
        frame[JOINID] = cells[order]
    rows = np.empty_like(order)
    rows[order] = np.arange(len(order))
    return frame.iloc[rows[row_of]].reset_index(drop=True)
