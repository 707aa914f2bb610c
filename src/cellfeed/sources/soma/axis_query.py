"""From what a user writes to a query of obs or var: a value filter, coordinates, or both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from cellfeed._checks import shortened
from cellfeed.errors import SelectionError
from cellfeed.select.obs_filter import obs_filter
from cellfeed.sources.redact import redacted

KINDS = {bool: "b", np.bool_: "b", float: "f", np.floating: "f"}
"""NumPy's letters of the types of coordinates that are refused."""


def as_axis_query(argument: str, given: Any) -> Any:
    """Return a ``tiledbsoma.AxisQuery``: one, a value filter as text, or values by column as :func:`obs_filter` takes.

    Raises
    ------
    SelectionError
        If it is none of these, or its coordinates are booleans or floats.
    """
    import tiledbsoma as soma

    if given is None:
        return soma.AxisQuery()
    if isinstance(given, str):
        return soma.AxisQuery(value_filter=given)
    if isinstance(given, Mapping):
        return soma.AxisQuery(value_filter=obs_filter(given))
    if not isinstance(given, soma.AxisQuery):
        raise SelectionError(
            f"{argument}={shortened(redacted(repr(given)))} must be a value filter as text, a dict of values by "
            f"column, or a tiledbsoma.AxisQuery, for example "
            f"tiledbsoma.AxisQuery(value_filter=cellfeed.obs_filter(tissue='lung'))"
        )
    for coordinates in given.coords or ():
        kinds = _kinds_of(coordinates)
        if "b" in kinds:
            raise SelectionError(
                f"{argument}: the coordinates are booleans, and TileDB-SOMA would read them as the joinids 0 and 1; "
                f"give the joinids that a mask selects: tiledbsoma.AxisQuery(coords=(joinids[mask],))"
            )
        if "f" in kinds:
            raise SelectionError(
                f"{argument}: the coordinates are floats, as pandas has integers beside missing values; give "
                f"integers: tiledbsoma.AxisQuery(coords=(joinids.astype('int64'),))"
            )
    return given


def _kinds_of(coordinates: Any) -> set[str]:
    """Return the kinds of the coordinates of one dimension by NumPy's letters, such as "b" for booleans."""
    if isinstance(coordinates, (pa.Array, pa.ChunkedArray)):
        kind = coordinates.type
        return {"b"} if pa.types.is_boolean(kind) else {"f"} if pa.types.is_floating(kind) else set()
    if isinstance(coordinates, slice):
        coordinates = [coordinates.start, coordinates.stop]
    if isinstance(coordinates, np.ndarray) and coordinates.dtype != object:
        return {coordinates.dtype.kind} if coordinates.size else set()
    several = isinstance(coordinates, (list, tuple, np.ndarray))
    types = {type(one) for one in (coordinates if several else [coordinates])}
    return {letter for kind, letter in KINDS.items() if any(issubclass(one, kind) for one in types)}
