"""Finds the layers of an experiment that are read, X and those beside it, and makes their sources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cellfeed._checks import suggest
from cellfeed._geometry import ArrayGeometry
from cellfeed._joinids import IntArray, JoinIds
from cellfeed.errors import SelectionError
from cellfeed.select.content import Content
from cellfeed.select.selection import FurtherMatrix, Selection
from cellfeed.sources.redact import secrets_of
from cellfeed.sources.soma import tiledb_private
from cellfeed.sources.soma.address import ArrayAddress
from cellfeed.sources.soma.identity import read_array_id
from cellfeed.sources.soma.layer import SomaLayer
from cellfeed.sources.soma.tables import read_frame
from cellfeed.sources.soma.tiles.index import TileLayout


@dataclass(frozen=True)
class Arrays:
    """Makes addresses and sources of the arrays of an open experiment."""

    experiment: Any
    retry_deadline_s: float

    def address(self, opened: Any) -> ArrayAddress:
        """Return the address of an open array or data frame."""
        config = tiledb_private.user_config(self.experiment.context)
        return ArrayAddress(opened.uri, opened.tiledb_timestamp_ms, config, self.retry_deadline_s)

    @property
    def secrets(self) -> frozenset[str]:
        """Secret texts in the URI and the settings."""
        return secrets_of(self.experiment.uri, tiledb_private.user_config(self.experiment.context))

    def source(self, array: Any, var: Any) -> SomaLayer:
        """Return the source of an open layer, with var of its measurement."""
        X, obs, own_var = (self.address(opened) for opened in (array, self.experiment.obs, var))
        return SomaLayer(X, obs, own_var, *_layout_of(array), identity=read_array_id(X))


@dataclass(frozen=True)
class FurtherLayer:
    """An open layer that is read beside X."""

    kind: Literal["layers", "measurements"]
    name: str
    measurement_name: str
    X_name: str
    array: Any


def find_further(experiment: Any, measurement_name: str, content: Content) -> list[FurtherLayer]:
    """Open the layers of a content; raise a SelectionError if one does not exist. Nothing is read."""
    own = experiment.ms[measurement_name]
    found = [
        FurtherLayer("layers", name, measurement_name, name, find_layer(own, name, f"layers: {name!r}"))
        for name in content.layers
    ]
    for name, layer in content.measurements.items():
        if name == measurement_name:
            raise SelectionError(
                f"measurements: {name!r} is the measurement of X; give its layers by name: layers=[{layer!r}]"
            )
        if name not in experiment.ms:
            raise SelectionError(f"measurements: {name!r} is not in the experiment; {suggest(name, experiment.ms)}")
        array = find_layer(experiment.ms[name], layer, f"measurements: {layer!r} of {name!r}")
        found.append(FurtherLayer("measurements", name, name, layer, array))
    return found


def further_matrices(
    arrays: Arrays, found: list[FurtherLayer], selection: Selection, joinids: IntArray
) -> Iterator[FurtherMatrix]:
    """Yield the matrices of layers for the cells of a selection; a measurement has all of its genes."""
    for layer in found:
        var = arrays.experiment.ms[layer.measurement_name].var
        is_X = (layer.measurement_name, layer.X_name) == (selection.measurement_name, selection.X_name)
        source = selection.source if is_X else arrays.source(layer.array, var)
        var_joinids = None
        if layer.kind == "measurements":
            ids, _ = read_frame(var.read, [], f"var of {layer.name!r}", arrays.secrets)
            var_joinids = JoinIds.from_sorted(ids)[:]
        check_within(layer.array, joinids, selection.var_joinids if var_joinids is None else var_joinids)
        where = layer.kind, layer.name, layer.measurement_name, layer.X_name
        yield FurtherMatrix(*where, source, var_joinids)


def find_layer(measurement: Any, X_name: str, shown: str) -> Any:
    """Return an open layer; ``shown`` names the argument in errors."""
    import tiledbsoma as soma

    if X_name not in measurement.X:
        raise SelectionError(f"{shown} is not a layer of X; {suggest(X_name, measurement.X)}")
    array = measurement.X[X_name]
    if not isinstance(array, soma.SparseNDArray):
        raise SelectionError(
            f"{shown} is a {type(array).__name__}; cellfeed reads sparse layers "
            f"(tiledbsoma.SparseNDArray) only: write the layer as a sparse array"
        )
    if len(array.shape) != 2:
        raise SelectionError(f"{shown} has {len(array.shape)} dimensions; a layer has two, obs and var")
    return array


def _layout_of(array: Any) -> tuple[ArrayGeometry, TileLayout]:
    import json

    options = array.schema_config_options()
    dims = json.loads(options.dims)
    packed = (dims["soma_dim_0"], dims["soma_dim_1"], json.loads(options.attrs)["soma_data"])
    geometry = ArrayGeometry(
        row_extent=int(dims["soma_dim_0"]["tile"]),
        column_extent=int(dims["soma_dim_1"]["tile"]),
        capacity=int(options.capacity),
        n_rows=int(array.shape[0]),
        n_columns=int(array.shape[1]),
        nnz=tiledb_private.count_values(array),
        dtype=np.dtype(array.schema.field("soma_data").type.to_pandas_dtype()).name,
    )
    return geometry, TileLayout(
        filters=tuple(tuple(step["name"] for step in column.get("filters") or ()) for column in packed),
        row_major=options.cell_order == options.tile_order == "row-major",
        allows_duplicates=bool(options.allows_duplicates),
    )


def check_within(array: Any, joinids: IntArray, var_joinids: IntArray) -> None:
    """Raise a SelectionError if cells or genes are outside of a layer."""
    for axis, ids, size in (("obs", joinids, array.shape[0]), ("var", var_joinids, array.shape[1])):
        if len(ids) and ids[-1] >= size:
            raise SelectionError(
                f"{axis} holds soma_joinid {ids[-1]}, outside the layer's shape {tuple(array.shape)}; "
                f"the layer does not belong to this {axis}"
            )
