"""Checks that an array is still the one from which cells were selected."""

from __future__ import annotations

from functools import partial

from cellfeed.errors import ReadError
from cellfeed.sources.failures import is_transient
from cellfeed.sources.retry import Retries
from cellfeed.sources.soma.address import ArrayAddress
from cellfeed.sources.soma.tiles.fragments import UnknownLayout
from cellfeed.sources.soma.vfs import files_of

ADVICE = "it was overwritten or damaged after the dataset was made. Restore it, or make the dataset again"


def read_array_id(address: ArrayAddress) -> str | None:
    """Return the name of the first schema of an array, which is unique; ``None`` if it cannot be read."""
    try:
        (names,) = files_of(address).list_folders("__schema")
    except (UnknownLayout, OSError) as cause:
        if is_transient(cause, was_reached=True):
            raise
        return None
    return min((name for name in names if not name.startswith("__enum")), default=None)


def check_same(address: ArrayAddress, expected_id: str | None, retries: Retries) -> None:
    """Raise an error if another array is at the address; the readers raise an error if no array is there."""
    array_id = None if expected_id is None else retries.call(partial(read_array_id, address))
    if array_id is not None and array_id != expected_id:
        raise ReadError(f"the array {str(address)!r} is not the one from which cells were selected: {ADVICE}")


def check_count(address: ArrayAddress, n_values: int, n_expected: int) -> None:
    """Raise an error if the number of values of an array has changed since cells were selected."""
    if n_values == n_expected:
        return
    advice = ADVICE
    if n_values > n_expected:
        advice = (
            "a writer that opened it before the dataset was made has added values with an earlier timestamp, or it was "
            "overwritten. Make the dataset again"
        )
    raise ReadError(
        f"the array {str(address)!r} holds {n_values:,} values, and held {n_expected:,} when cells were selected: "
        f"{advice}"
    )
