"""The coordinates of a query: which joinids it selects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellfeed._checks import is_integer, shortened
from cellfeed._joinids import JOINID, IntArray
from cellfeed.errors import SelectionError

ARROW = (pa.Array, pa.ChunkedArray)


def meets_coordinates(argument: str, coords: Sequence[Any], joinids: IntArray) -> npt.NDArray[np.bool_]:
    """Return which joinids meet the coordinates of a query, as TileDB-SOMA applies them to ``soma_joinid``.

    Parameters
    ----------
    argument
        Name of the query in errors.
    coords
        Empty, or one coordinate: ``None``, a joinid, joinids in a list, a NumPy or an Arrow array, or a slice. A slice
        includes both its ends; only one of them must lie among the joinids.
    joinids
        The joinids of a table in any order.

    Raises
    ------
    SelectionError
        If the coordinates are not of these types, or none of them can be a joinid of the table.

    Examples
    --------
    >>> meets_coordinates("obs_query", (slice(3, 8),), np.array([9, 8, 3, 2])).tolist()
    [False, True, True, False]
    """
    if len(coords) > 1:
        raise SelectionError(
            f"{argument}: coords has {len(coords)} coordinates, and {JOINID} is the only index; give one: "
            f"coords=(joinids,)"
        )
    coordinate = coords[0] if coords else None
    last = int(joinids.max(initial=0))
    if coordinate is None:
        return np.ones(len(joinids), bool)
    if isinstance(coordinate, slice):
        start, stop = _ends_of(argument, coordinate, last)
        return (joinids >= start) & (joinids <= stop)
    points = points_of(argument, coordinate)
    if len(points) and not (points.min() >= 0 and points.max() <= last):
        outside = points[(points < 0) | (points > last)][0]
        raise SelectionError(
            f"{argument}: coords has {outside}, and {JOINID} goes from 0 to {last}; joinids belong to one store"
        )
    return np.isin(joinids, points.astype(np.int64, copy=False))


def points_of(argument: str, coordinate: Any) -> npt.NDArray[np.integer[Any]]:
    """Return the joinids of a coordinate that is an integer, or integers in a list or array."""
    if isinstance(coordinate, ARROW):
        points = None if coordinate.null_count else np.asarray(coordinate)
    elif is_integer(coordinate):
        points = _as_integers([coordinate])
    elif isinstance(coordinate, (Sequence, np.ndarray)) and not isinstance(coordinate, (str, bytes)):
        points = _as_integers(coordinate)
    else:
        points = None
    if points is not None and points.size == 0:
        points = np.empty(points.shape, np.int64)
    if points is None or points.ndim != 1 or points.dtype.kind not in "iu":
        shown = f"Arrow array of {coordinate.type}" if isinstance(coordinate, ARROW) else repr(coordinate)
        raise SelectionError(
            f"{argument}: coords=({shortened(' '.join(shown.split()))},) must be a joinid, a list or array of one "
            f"dimension of joinids, or a slice of joinids, as in coords=([3, 5],)"
        )
    return points


def _as_integers(values: Any) -> npt.NDArray[Any] | None:
    """Return values as an array; ``None`` if they are objects other than integers of 64 bits."""
    try:
        array = np.asarray(values)
        if array.dtype == object and all(map(is_integer, array.flat)):
            array = array.astype(np.int64)
    except (ValueError, OverflowError):  # lists of several lengths, and integers of more than 64 bits
        return None
    return array


def _ends_of(argument: str, coordinate: slice, last: int) -> tuple[int, int]:
    """Return the first and the last joinid of a slice, both within 0 to ``last``."""
    start, stop = coordinate.start, coordinate.stop
    shown = f"{argument}: coords=({coordinate!r},)"
    if not all(end is None or is_integer(end) for end in (start, stop)):
        raise SelectionError(f"{shown} must have joinids as its ends, which are integers")
    if coordinate.step is not None:
        raise SelectionError(f"{shown} has a step; give joinids: coords=(range({start}, {stop}, {coordinate.step}),)")
    if start is not None and stop is not None and start > stop:
        raise SelectionError(f"{shown} has its slice start after its slice stop; it includes both")
    first, end = max(start or 0, 0), last if stop is None else min(stop, last)
    if (start, stop) != (None, None) and first > end:
        raise SelectionError(f"{shown} holds no {JOINID}: they go from 0 to {last}; joinids belong to one store")
    return first, end
