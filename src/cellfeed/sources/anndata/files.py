"""Finds AnnData at paths and URIs, and opens it; says what else is there, and what to do about it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cellfeed._checks import abbreviate
from cellfeed.errors import SelectionError
from cellfeed.sources.anndata.sealing import check_metadata, is_sealed
from cellfeed.sources.redact import public_uri, reraise_as, secrets_of


@dataclass(frozen=True)
class AnnDataFile:
    """The place of one AnnData: a zarr store (local path or URI), or an ``.h5ad`` file (local path).

    Examples
    --------
    >>> file = AnnDataFile("/data/tongue.h5ad", "h5ad")
    >>> file.name
    'tongue'
    """

    path: str
    kind: Literal["zarr", "h5ad"]

    @property
    def name(self) -> str:
        """Last part of the path, without a suffix."""
        return names_in(self.path)[-1]

    @property
    def secrets(self) -> frozenset[str]:
        """Secret texts in the URI."""
        return secrets_of(self.path)

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """Yield the root, read-only: a ``zarr.Group``, or an ``h5py.File`` that is closed afterwards."""
        with reraise_as(SelectionError, f"{str(self)!r} cannot be opened", self.secrets):
            root = _open_zarr(self.path) if self.kind == "zarr" else _open_h5(self.path)
        with root if self.kind == "h5ad" else contextlib.nullcontext(root):
            yield root

    def stamp(self, name: str) -> int:
        """Return when a matrix was written, in nanoseconds; 0 if it is missing, and on a remote store.

        In zarr it is the time of the metadata of the matrix: other elements may be written later.
        """
        if "://" in self.path:
            return 0
        path = Path(self.path)
        places = [path / name / file for file in ("data/zarr.json", "zarr.json", "data/.zarray", ".zarray")]
        for place in places if self.kind == "zarr" else [path]:
            with contextlib.suppress(OSError):
                return place.stat().st_mtime_ns
        return 0

    def __str__(self) -> str:
        return public_uri(self.path)

    def __repr__(self) -> str:
        return f"AnnDataFile({str(self)!r}, {self.kind!r})"


def names_in(path: str) -> list[str]:
    """Return the names of a path or URI from the root on, without the suffix of the last.

    Examples
    --------
    >>> names_in("s3://atlas/lung/cells.h5ad")
    ['atlas', 'lung', 'cells']
    """
    *folders, last = [part for part in public_uri(path).rpartition("://")[2].split("/") if part]
    return [*folders, re.sub(r"\.(h5ad|zarr|h5|hdf5)$", "", last)]


class Found(NamedTuple):
    """What is at a path.

    ``kind`` is ``"zarr"``, ``"collection"`` or ``"h5ad"``, whose AnnData are in ``files``; otherwise ``message`` says
    what was found and what to do.
    """

    kind: Literal["zarr", "collection", "h5ad", "soma", "other", "nothing"]
    files: tuple[AnnDataFile, ...] = ()
    message: str = ""


def anndata_files(path: str | os.PathLike[str], argument: str = "source") -> tuple[AnnDataFile, ...]:
    """Return the AnnData at a path or URI: one, or the members of a collection in the order of their numbers.

    Raises
    ------
    SelectionError
        If there is no AnnData, or its encoding is unknown; ``argument`` names the path.
    """
    found = identify(path)
    if not found.files:
        raise SelectionError(f"{argument}={public_uri(os.fspath(path))!r} {found.message}")
    return found.files


def identify(path: str | os.PathLike[str]) -> Found:
    """Return what is at a path or URI.

    Raises
    ------
    SelectionError
        If it cannot be read.
    """
    place = os.fspath(path).removeprefix("file://").rstrip("/") or "/"
    with reraise_as(SelectionError, f"{public_uri(place)!r} cannot be read", secrets_of(place)):
        if "://" in place:
            return _identify_remote(place)
        local = Path(place)
        if not local.exists():
            home = "; '~' is not expanded: give os.path.expanduser(...)" if "~" in local.parts else ""
            return Found("nothing", message=f"does not exist{home}; {_GIVE}")
        return _identify_h5(place) if local.is_file() else _identify_folder(local)


_GIVE = "give the path of an AnnData (.zarr or .h5ad)"
_TILEDB = ("__group", "__schema", "__tiledb_group.tdb")
_SOMA = Found("soma", message=f"is a SOMA experiment, or another array or group of TileDB, not an AnnData; {_GIVE}")


def _identify_remote(uri: str) -> Found:
    if uri.startswith("tiledb://"):
        return _SOMA
    if uri.endswith((".h5ad", ".h5")):
        return Found("other", message="is an HDF5 file on a remote store; copy it to a local disk and give its path")
    with contextlib.suppress(FileNotFoundError):
        return _identify_zarr(uri)
    import fsspec

    system, root = fsspec.core.url_to_fs(uri)
    if any(system.exists(f"{root}/{name}") for name in _TILEDB):
        return _SOMA
    return Found("nothing", message=f"holds nothing that zarr can open, or it may not be read; {_GIVE}")


def _identify_folder(folder: Path) -> Found:
    if any((folder / name).exists() for name in _TILEDB):
        return _SOMA
    try:
        return _identify_zarr(str(folder))
    except FileNotFoundError:
        inside = sorted(str(path) for path in folder.iterdir() if path.suffix in (".h5ad", ".zarr"))
        advice = f"give what it contains: {abbreviate(inside)}" if inside else _GIVE
        return Found("other", message=f"is a folder without zarr metadata; {advice}")


def _identify_h5(path: str) -> Found:
    import h5py

    if not h5py.is_hdf5(path):
        return Found("other", message=f"is a file of another kind than HDF5; {_GIVE}")
    with _open_h5(path) as root:
        if message := _why_not_anndata(root, path):
            return Found("other", message=message)
    return Found("h5ad", (AnnDataFile(path, "h5ad"),))


def _identify_zarr(path: str) -> Found:
    """Return what a zarr store holds; raise a FileNotFoundError if there is no zarr."""
    root = _open_zarr(path)
    if not is_group(root):
        return Found("other", message=f"is a single zarr array of shape {root.shape}; {_GIVE}")
    message = _why_not_anndata(root, path)
    if not message:
        return Found("zarr", (AnnDataFile(path, "zarr"),))
    members = {} if encoding_of(root)[0] in _OTHERS else _members(root)
    for name, member in members.items():
        if why := _why_not_anndata(member, f"{path}/{name}"):
            return Found("other", message=f"has a member {name!r} that {why}")
    if members:
        _check_whole(root, members, path)
        return Found("collection", tuple(AnnDataFile(f"{path}/{name}", "zarr") for name in members))
    return Found("other", message=message)


def _check_whole(root: Any, members: Mapping[str, Any], path: str) -> None:
    """Raise an error if the members of a collection of cellfeed do not have each of its cells once."""
    if not is_sealed(root):
        return
    wanted, found = root.attrs["cellfeed"]["n_obs"], sum(length_of(member, "obs") for member in members.values())
    if found != wanted:
        lacks, repeats = "the copy is not complete, or a part is lost", "several processes wrote it at the same time"
        raise SelectionError(
            f"{public_uri(path)!r} has {found} rows of {wanted} cells: {lacks if found < wanted else repeats}; give it "
            f"as local_copy= of a dataset of its source, which reads each cell once"
        )


def _members(root: Any) -> dict[str, Any]:
    """Return the AnnData of a collection in the order of the numbers in their names: ``part_2`` before ``part_10``."""

    def key(name: str) -> list[tuple[str, int]]:
        return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]

    groups = {name: group for name, group in root.groups() if not name.startswith(".")}
    return {name: groups[name] for name in sorted(groups, key=key) if "obs" in groups[name] and "var" in groups[name]}


def _open_zarr(path: str) -> Any:
    import zarr

    root = zarr.open(path, mode="r")
    if isinstance(root, zarr.Group) and root.metadata.zarr_format == 3:
        check_metadata(root, public_uri(path))
    return root


def _open_h5(path: str) -> Any:
    import h5py

    return h5py.File(path, "r")


def encoding_of(element: Any) -> tuple[str, str]:
    """Return the encoding type and version that anndata gave to a group or array; empty without one."""
    return attribute(element, "encoding-type", ""), attribute(element, "encoding-version", "")


def attribute(element: Any, name: str, default: Any = None) -> Any:
    """Return an attribute; text that HDF5 holds as bytes is decoded."""
    value = element.attrs.get(name, default)
    return value.decode() if isinstance(value, bytes) else value


def length_of(root: Any, axis: str) -> int:
    """Return the number of rows of ``obs``, ``var`` or ``raw/var`` of an open AnnData."""
    index = root[axis][attribute(root[axis], "_index")]
    values = next((index[name] for name in ("codes", "values") if name in index), None) if is_group(index) else index
    return int(values.shape[0])  # type: ignore[union-attr]


def is_group(element: Any) -> bool:
    """Whether an element of zarr or HDF5 is a group, not an array."""
    return not hasattr(element, "shape")


def var_of_layer(name: str) -> str:
    """Return the data frame of a layer's genes: ``raw/X`` has another than the other layers."""
    return "raw/var" if name == "raw/X" else "var"


FRAME = ("dataframe", "0.2.0")
"""The encoding of obs and var since anndata 0.8."""

_OTHERS = {
    "MuData": "is a MuData; give one of its modalities, written with mudata.read(...)['rna'].write_h5ad('rna.h5ad')",
    "spatialdata": "is a SpatialData; give one of its tables: .../tables/NAME",
}
_MARKERS = {
    "row_attrs": "is a Loom file; rewrite it: anndata.io.read_loom({path!r}).write_h5ad({new!r})",
    "matrix": "is an HDF5 file of 10x Genomics; rewrite it: scanpy.read_10x_h5({path!r}).write_h5ad({new!r})",
    "tables": _OTHERS["spatialdata"],
}
"""Messages by a member that other formats have."""


def _why_not_anndata(root: Any, path: str) -> str:
    """Return what a root is if it is no AnnData of a known encoding, and what to do; empty if it is one."""
    encoding, _ = encoding_of(root)
    if encoding in _OTHERS:
        return _OTHERS[encoding]
    if encoding not in ("", "anndata"):
        return f"is one element of an AnnData, of encoding {encoding!r}; give the path of the whole AnnData"
    shown = {"path": public_uri(path), "new": f"{names_in(path)[-1]}_new.h5ad"}
    missing = [axis for axis in ("obs", "var") if axis not in root]
    if missing:
        known = next((message.format(**shown) for name, message in _MARKERS.items() if name in root), None)
        return known or f"lacks {' and '.join(missing)} of an AnnData, and holds {abbreviate(sorted(root))}; {_GIVE}"
    for axis in ("obs", "var"):
        if (found := encoding_of(root[axis])) != FRAME:
            return f"has {axis} {describe_encoding(found)}; {rewriting(path)}"
    return ""


def describe_encoding(encoding: tuple[str, str]) -> str:
    """Return words for an encoding that is not read."""
    kind, version = encoding
    if not kind:
        return "without encoding attributes, as before anndata 0.7 or by another program"
    return f"of encoding {kind!r}, version {version!r}, which cellfeed does not know"


def rewriting(path: str) -> str:
    """Return advice to rewrite an AnnData in the encoding of today."""
    read = "read_h5ad" if path.endswith(".h5ad") else "read_zarr"
    new = f"{names_in(path)[-1]}_new.h5ad"
    return f"rewrite it: anndata.{read}({public_uri(path)!r}).write_h5ad({new!r})"
