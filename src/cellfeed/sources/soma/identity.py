"""Whether an array is still the one from which cells were selected: another at its place is refused, not read."""

from __future__ import annotations

from functools import partial

from cellfeed.errors import ReadError
from cellfeed.sources.failures import is_transient
from cellfeed.sources.retry import Retries
from cellfeed.sources.soma.address import ArrayAddress
from cellfeed.sources.soma.tiles.fragments import UnknownLayout
from cellfeed.sources.soma.vfs import files_of

ADVICE = "it was overwritten or damaged since the dataset was made. Restore it, or make the dataset anew"


def array_id(address: ArrayAddress) -> str | None:
    """Name the creation of an array: its first schema, whose name is unique; ``None`` where that cannot be had."""
    try:
        (names,) = files_of(address).list_folders("__schema")
    except (UnknownLayout, OSError) as cause:
        if is_transient(cause, was_reached=True):
            raise
        return None
    return min((name for name in names if not name.startswith("__enum")), default=None)


def check_same(address: ArrayAddress, created: str | None, retries: Retries) -> None:
    """Refuse an array that is another than the one created under a name; one that is gone is for readers to tell."""
    found = None if created is None else retries.call(partial(array_id, address))
    if found is not None and found != created:
        raise ReadError(f"the array {str(address)!r} is not the one from which cells were selected: {ADVICE}")


def check_count(address: ArrayAddress, found: int, selected_from: int) -> None:
    """Refuse an array that holds more or fewer values than when cells were selected."""
    if found != selected_from:
        advice = ADVICE
        if found > selected_from:
            advice = (
                "a writer that had opened it earlier has added values since, with a timestamp before that of the "
                "dataset, or it was overwritten. Make the dataset anew"
            )
        raise ReadError(
            f"the array {str(address)!r} holds {found:,} values, and held {selected_from:,} when cells were selected: "
            f"{advice}"
        )
