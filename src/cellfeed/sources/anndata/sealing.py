"""Damage that zarr does not find: changed metadata, which have no checksum, and missing files, which stand for zeros.

The root of each store that cellfeed writes has the metadata of all arrays (consolidated), and their checksum as an
attribute. Each chunk of such a store is in a file, also one of zeros.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cellfeed._digests import digest_of_text
from cellfeed.errors import ReadError
from cellfeed.sources.redact import public_uri

CHECKSUM = "cellfeed_checksum"
"""Attribute of a root with the checksum of its ``zarr.json`` without this attribute."""

STORES_ALL_CHUNKS: Any = {"write_empty_chunks": True}
"""Configuration of an array of zarr whose chunks of zeros are written, too."""


HARMLESS_WARNINGS = ("zarr v3 autosharding will be the default", "Consolidated metadata is currently not part")
"""Beginnings of warnings of anndata and zarr about what their next versions may do."""

_settings_lock = threading.Lock()
"""Filters of warnings, and the settings of zarr, belong to all threads."""


@contextlib.contextmanager
def writing_quietly() -> Iterator[None]:
    """Write without the warnings that do not concern users; one thread at a time."""
    with _settings_lock, warnings.catch_warnings():
        for message in HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


def verified_compressors() -> Any:
    """Return codecs of zarr v3 for arrays beside X: zstd, and a checksum for each chunk."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return ZstdCodec(level=3), Crc32cCodec()


def seal(folder: Path) -> None:
    """Write the checksum of the metadata of a store; they must not change afterwards."""
    file = folder / "zarr.json"
    document = json.loads(file.read_bytes())
    document["attributes"].pop(CHECKSUM, None)
    document["attributes"][CHECKSUM] = _checksum(document)
    file.write_text(json.dumps(document, indent=2))


def is_sealed(root: Any) -> bool:
    """Whether cellfeed wrote an open store of zarr or HDF5; each chunk of it is in a file then."""
    return CHECKSUM in root.attrs


def check_metadata(root: Any, shown: str) -> None:
    """Raise an error if the metadata of an open store of cellfeed are damaged; ``shown`` names the store."""
    document = read_metadata(root)
    attributes = document.get("attributes", {})
    recorded = attributes.pop(CHECKSUM, None)
    if recorded != _checksum(document) and (recorded is not None or _is_own(document)):
        raise damaged_metadata(shown)


def damaged_metadata(shown: str) -> ReadError:
    """Return the error for metadata whose checksum differs."""
    return ReadError(
        f"{shown!r} has damaged metadata: the checksum of its zarr.json differs; remove it and write the copy again"
    )


def read_metadata(root: Any) -> dict[str, Any]:
    """Return the content of the ``zarr.json`` of an open group; empty if it has none."""
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    found = sync((root.store_path / "zarr.json").get(default_buffer_prototype()))
    return {} if found is None else dict(json.loads(found.to_bytes()))


def _is_own(document: Mapping[str, Any]) -> bool:
    """Whether metadata without a checksum are those of cellfeed: one changed bit does not remove both signs.

    A collection has an attribute, and an AnnData a record with a checksum, which is lost if others write the AnnData.
    """
    if "cellfeed" in document.get("attributes", {}):
        return True
    members = (document.get("consolidated_metadata") or {}).get("metadata", {})
    codecs = members.get("uns/cellfeed", {}).get("codecs", [{}])
    return bool(codecs[-1].get("name") == "crc32c")


def _checksum(document: Mapping[str, Any]) -> str:
    return digest_of_text(json.dumps(document, sort_keys=True, separators=(",", ":")))


def check_stored(element: Any) -> None:
    """Raise an error if a chunk of an array, or of the arrays of a group, is not in a file."""
    members = [element] if hasattr(element, "shape") else [array for _, array in element.members(max_depth=None)]
    for array in members:
        if hasattr(array, "shape"):
            _check_files(array)


def _check_files(array: Any) -> None:
    from zarr.core.sync import sync

    sizes = array.shards or array.chunks  # of a file
    grid = [range(math.ceil(n / size)) for n, size in zip(array.shape, sizes, strict=True)]
    for place in itertools.product(*grid):
        key = array.metadata.encode_chunk_key(place)
        if not sync((array.store_path / key).exists()):
            raise ReadError(f"the file {key!r} of {public_uri(str(array.store_path))!r} is missing")
