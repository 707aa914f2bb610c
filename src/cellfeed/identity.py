"""Whether an array is still the one from which cells were selected: another at its place is refused, not read."""

from __future__ import annotations

from pathlib import Path

from cellfeed.address import ArrayAddress
from cellfeed.errors import ReadError

ADVICE = "it was overwritten or damaged since the dataset was made. Restore it, or make the dataset anew"


def created_as(address: ArrayAddress) -> str | None:
    """Name the creation of an array on a local disk: its first schema, whose name is unique; ``None`` elsewhere."""
    scheme, separator, rest = address.uri.partition("://")
    if separator and scheme != "file":
        return None
    try:
        names = [path.name for path in Path(rest if separator else address.uri, "__schema").iterdir()]
    except OSError:
        return None
    return min((name for name in names if not name.startswith("__enum")), default=None)


def check_same(address: ArrayAddress, created: str | None) -> None:
    """Refuse an array that is another than the one created under a name; one that is gone is for readers to tell."""
    found = created_as(address)
    if created is not None and found is not None and found != created:
        raise ReadError(f"the array {str(address)!r} is not the one from which cells were selected: {ADVICE}")


def check_count(address: ArrayAddress, found: int, selected_from: int) -> None:
    """Refuse an array that holds more or fewer values than when cells were selected."""
    if found != selected_from:
        raise ReadError(
            f"the array {str(address)!r} holds {found:,} values, and held {selected_from:,} when cells were selected: "
            f"{ADVICE}"
        )
