"""Makes a ``tiledbsoma.AxisQuery`` of the ``obs_query`` or ``var_query`` of a user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from cellfeed._checks import shortened
from cellfeed.errors import SelectionError
from cellfeed.select.coordinates import ARROW, points_of
from cellfeed.select.obs_filter import obs_filter
from cellfeed.sources.redact import redacted

KINDS = {bool: "b", np.bool_: "b", float: "f", np.floating: "f"}
"""NumPy's letters of the types of coordinates that are not accepted."""


def as_axis_query(argument: str, query: Any) -> Any:
    """Return a ``tiledbsoma.AxisQuery``.

    Parameters
    ----------
    argument
        Name of the query in errors.
    query
        A ``tiledbsoma.AxisQuery``, a value filter as text, a dict of values by column as in :func:`obs_filter`, or
        ``None`` for all rows.

    Raises
    ------
    SelectionError
        If the query has another type, or its coordinates are booleans or floats.
    """
    import tiledbsoma as soma

    if query is None:
        return soma.AxisQuery()
    if isinstance(query, str):
        return soma.AxisQuery(value_filter=query)
    if isinstance(query, Mapping):
        return soma.AxisQuery(value_filter=obs_filter(query))
    if not isinstance(query, soma.AxisQuery):
        raise SelectionError(
            f"{argument}={shortened(redacted(repr(query)))} must be a value filter as text, a dict of values by "
            f"column, or a tiledbsoma.AxisQuery, for example "
            f"tiledbsoma.AxisQuery(value_filter=cellfeed.obs_filter(tissue='lung'))"
        )
    for coordinates in query.coords:
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
    if not any(isinstance(coordinates, ARROW) for coordinates in query.coords):
        return query
    # TileDB-SOMA refuses Arrow arrays of types other than int64, and takes one without chunks for all joinids.
    coords = [points_of(argument, each) if isinstance(each, ARROW) else each for each in query.coords]
    return soma.AxisQuery(value_filter=query.value_filter, coords=tuple(coords))


def _kinds_of(coordinates: Any) -> set[str]:
    """Return the kinds of the coordinates of one dimension by NumPy's letters, such as "b" for booleans."""
    if isinstance(coordinates, ARROW):
        kind = coordinates.type
        return {"b"} if pa.types.is_boolean(kind) else {"f"} if pa.types.is_floating(kind) else set()
    if isinstance(coordinates, slice):
        coordinates = [coordinates.start, coordinates.stop]
    if isinstance(coordinates, np.ndarray) and coordinates.dtype != object:
        return {coordinates.dtype.kind} if coordinates.size else set()
    several = isinstance(coordinates, (list, tuple, np.ndarray))
    types = {type(value) for value in (coordinates if several else [coordinates])}
    return {letter for kind, letter in KINDS.items() if any(issubclass(candidate, kind) for candidate in types)}
