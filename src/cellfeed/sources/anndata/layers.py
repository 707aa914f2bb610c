"""Names the layers of AnnData, checks that one can be read by rows, and finds the one that holds counts."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cellfeed._checks import suggest, warn_user
from cellfeed.errors import SelectionError
from cellfeed.sources.anndata.files import (
    AnnDataFile,
    attribute,
    describe_encoding,
    encoding_of,
    is_group,
    length_of,
    rewriting,
    var_of_layer,
)
from cellfeed.sources.redact import reraise_as


class Layer(NamedTuple):
    """One X of an AnnData: ``X``, a layer such as ``layers/counts``, or ``raw/X``."""

    name: str
    shape: tuple[int, int]
    kind: Literal["csr", "dense"]

    @property
    def var(self) -> str:
        """The data frame of its genes."""
        return var_of_layer(self.name)


def layer_names(root: Any) -> list[str]:
    """Return the names of all layers of an open AnnData."""
    layers = [f"layers/{name}" for name in sorted(root["layers"])] if "layers" in root else []
    return [name for name in ("X", *layers, "raw/X") if name in root and encoding_of(root[name])[0] != "null"]


def find_layer(file: AnnDataFile, name: str, argument: str = "X_name") -> Layer:
    """Return the layer of a name; the name of a layer may lack ``layers/``, and ``raw`` is ``raw/X``.

    Raises
    ------
    SelectionError
        If there is no such layer, or its rows cannot be read; ``argument`` names the name.
    """
    with file.open() as root, reraise_as(SelectionError, f"{str(file)!r} cannot be read", file.secrets):
        known = layer_names(root)
        full = next((full for full in (name, f"layers/{name}", f"{name}/X") if full in known), None)
        if full is None:
            similar = suggest(name if "/" in name else f"layers/{name}", known)
            raise SelectionError(f"{argument}={name!r} is not a layer of {str(file)!r}; {similar}")
        element = root[full]
        encoding = encoding_of(element)
        if encoding[0] == "csc_matrix":
            raise SelectionError(
                f"{full} of {str(file)!r} is in CSC, by genes, and rows are read from CSR; rewrite it: {_to_csr(full)}"
            )
        if encoding not in (("csr_matrix", "0.1.0"), ("array", "0.2.0")):
            raise SelectionError(f"{full} of {str(file)!r} is {describe_encoding(encoding)}; {rewriting(file.path)}")
        is_csr = encoding[0] == "csr_matrix"
        n_obs, n_vars = map(int, attribute(element, "shape") if is_csr else element.shape)
        layer = Layer(full, (n_obs, n_vars), "csr" if is_csr else "dense")
        expected = length_of(root, "obs"), length_of(root, layer.var)
        if layer.shape != expected:
            raise SelectionError(
                f"{full} of {str(file)!r} has the shape {layer.shape}, and obs and {layer.var} have {expected[0]} and "
                f"{expected[1]} rows: the file is damaged"
            )
    return layer


def _to_csr(name: str) -> str:
    """Return code that rewrites a layer in CSR."""
    if name == "raw/X":
        return "raw = adata.raw.to_adata(); raw.X = raw.X.tocsr(); adata.raw = raw"
    place = "adata.X" if name == "X" else f"adata.layers[{name.removeprefix('layers/')!r}]"
    return f"{place} = {place}.tocsr()"


class Counts(NamedTuple):
    """The layer that is taken for counts, and the reason, in words for messages."""

    name: str
    reason: str


def find_counts(file: AnnDataFile) -> Counts:
    """Return the layer that holds counts, judged by some thousand of its values.

    The layers are tried in the order ``layers/counts``, ``X``, ``raw/X``, and other layers, those with "count" or
    "raw" in their names first: a layer such as ``spliced`` holds a part of the counts only. If no layer has values
    that are integers of at least 0, ``X`` is taken, or else the first layer, and a warning says it.

    Raises
    ------
    SelectionError
        If there is no layer at all, or it cannot be read.
    """
    with file.open() as root, reraise_as(SelectionError, f"{str(file)!r} cannot be read", file.secrets):
        names = sorted(layer_names(root), key=_preference)
        if not names:
            raise SelectionError(
                f"{str(file)!r} has neither X, layers nor raw/X; write it with values: anndata.AnnData(X=counts, ...)"
            )
        others: dict[str, str] = {}
        for name in names:
            values = _sample(root[name])
            wrong = values[~((values >= 0) & (values == np.floor(values)))]
            if len(values) and not len(wrong):
                passed = "".join(f"; {other} {why}" for other, why in others.items())
                return Counts(name, f"{name} holds integers of at least 0 ({len(values)} values were sampled){passed}")
            others[name] = f"holds values such as {wrong[0]:.4g}" if len(wrong) else "holds no values"
    taken = "X" if "X" in names else names[0]
    reason = "; ".join(f"{name} {why}" for name, why in others.items())
    warn_user(
        f"no layer of {str(file)!r} holds counts ({reason}), and {taken} is taken; models such as scVI need counts: "
        f"give the layer that has them, or add it to the file as adata.layers['counts']"
    )
    return Counts(taken, f"no layer holds counts: {reason}")


def _preference(name: str) -> tuple[int, str]:
    first = ("layers/counts", "X", "raw/X")
    if name in first:
        return first.index(name), name
    return 3 if "count" in name.lower() or "raw" in name.lower() else 4, name


N_PLACES, VALUES_PER_PLACE = 8, 1024


def _sample(element: Any) -> npt.NDArray[Any]:
    """Return some values other than 0 from places all over a layer."""
    if not is_group(element):  # dense: rows
        rows = np.unique(np.linspace(0, max(element.shape[0] - 1, 0), N_PLACES, dtype=np.int64))
        values = [np.asarray(element[int(row) : int(row) + 1]).ravel() for row in rows]
    else:
        data = element["data"]
        starts = np.unique(np.linspace(0, max(data.shape[0] - VALUES_PER_PLACE, 0), N_PLACES, dtype=np.int64))
        values = [np.asarray(data[int(start) : int(start) + VALUES_PER_PLACE]) for start in starts]
    sampled = np.concatenate(values)
    nonzero: npt.NDArray[Any] = sampled[sampled != 0].astype(np.float64)  # a NaN is other than 0
    return nonzero
