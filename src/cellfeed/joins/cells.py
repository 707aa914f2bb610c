"""The cells of a join as one selection: those of one dataset after another, with the same columns of obs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._geometry import ArrayGeometry
from cellfeed._joinids import IntArray, JoinIds
from cellfeed.errors import EncodeError, PlanError
from cellfeed.rows.columns import Columns
from cellfeed.select.encoders import Encoder, LabelEncoder
from cellfeed.select.measured import Measured
from cellfeed.select.selection import Selection
from cellfeed.select.vocabulary import code_dtype

Selections = Mapping[str, Selection]


@dataclass(frozen=True, eq=False)
class ConcatenatedIds:
    """The joinids of the cells of all datasets, one dataset after another, without a copy of them.

    Examples
    --------
    >>> ids = ConcatenatedIds((np.array([7, 8]), np.array([5])))
    >>> len(ids), ids[np.array([2, 0])].tolist(), ids[:].tolist()
    (3, [5, 7], [7, 8, 5])
    """

    parts: tuple[JoinIds | IntArray, ...]

    @cached_property
    def _starts(self) -> IntArray:
        """int64, shape (n_datasets + 1,): the position of the first cell of each dataset, then the end."""
        return np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, positions: IntArray | slice) -> IntArray:
        if isinstance(positions, slice):
            return np.concatenate([part[:] for part in self.parts])[positions]
        datasets = np.searchsorted(self._starts, positions, side="right") - 1
        joinids = np.empty(len(positions), np.int64)
        for k, part in enumerate(self.parts):
            is_own = datasets == k
            joinids[is_own] = part[positions[is_own] - self._starts[k]]
        return joinids


@dataclass(frozen=True)
class JoinedSource:
    """Stands for the sources of the datasets, which read by themselves.

    Attributes
    ----------
    names
        The names of the datasets.
    geometry
        That of the first dataset, for the type of the values.
    """

    names: tuple[str, ...]
    geometry: ArrayGeometry
    is_remote: bool

    def __str__(self) -> str:
        return f"the join of {', '.join(self.names)}"


def joined_selection(selections: Selections, columns: Mapping[str, Columns], label: str) -> Selection:
    """Return the cells of all datasets as one selection, with the code of the dataset as the last column of obs.

    The columns of obs are those that all datasets have. The classes of a column are those of all datasets.
    """
    first, *others = selections.values()
    common = [name for name in first.codes if all(name in other.codes for other in others)]
    if label in common:
        raise PlanError(f"label={label!r} is a column of the datasets; give another name, such as label='dataset'")
    encoders = {
        name: _joined_encoder(name, {key: selection.encoders.get(name) for key, selection in selections.items()})
        for name in common
        if any(name in selection.encoders for selection in selections.values())
    }
    n_columns = next(iter(columns.values())).n_columns
    n_obs = [selection.n_obs for selection in selections.values()]
    joinids: Any = ConcatenatedIds(tuple(selection.joinid_column for selection in selections.values()))
    sources: npt.NDArray[Any] = np.repeat(np.arange(len(n_obs), dtype=code_dtype(len(n_obs))), n_obs)
    return replace(
        first,
        source=_source(selections),
        joinids=joinids,
        soma_joinids=None,
        var_joinids=np.arange(n_columns),
        encoders={**encoders, label: LabelEncoder(label, classes=list(selections))},
        codes={
            **{
                column: _joined_codes(selections, column, encoders[column]) if column in encoders else joinids
                for column in common
            },
            label: sources,
        },
        nnz=None,
        raw_sum=None,
        raw_squares=None,
        obs_values=_concatenated([selection.obs_values for selection in selections.values()]),
        obsm={name: _concatenated([each.obsm[name] for each in selections.values()]) for name in first.obsm},
        matrices=tuple(
            replace(matrix, source=_source({key: each.further[k] for key, each in selections.items()}))
            for k, matrix in enumerate(first.matrices)
        ),
        measured=_joined_measured([each.measured for each in selections.values()], list(columns.values())),
        column_transform=None,
        queries=(None, None),
        splits=(),
        all_genes=False,
    )


def _source(selections: Selections) -> JoinedSource:
    first, *_ = selections.values()
    return JoinedSource(tuple(selections), first.geometry, any(each.is_remote for each in selections.values()))


def _concatenated(parts: Sequence[Any]) -> Any:
    return None if parts[0] is None else np.concatenate(parts)


def _joined_measured(parts: Sequence[Measured | None], columns: Sequence[Columns]) -> Measured | None:
    """Return which genes of the join were measured: those that a dataset lacks were not."""
    tables, groups, n_groups = [], [], 0
    for measured, own in zip(parts, columns, strict=True):
        if measured is None:
            return None
        table = np.zeros((len(measured.table), own.n_columns), np.bool_)
        table[:, own.numbers] = measured.table
        tables.append(table)
        groups.append(measured.groups.astype(np.int64) + n_groups)
        n_groups += len(table)
    return Measured(np.concatenate(tables), np.concatenate(groups).astype(code_dtype(n_groups)))


def _joined_encoder(name: str, encoders: Mapping[str, Encoder | None]) -> Encoder:
    """Return an encoder with the classes of all encoders of a column."""
    first, *others = encoders.values()
    if first is not None and all(other is first for other in others):
        return first
    labels = [each for each in encoders.values() if type(each) is LabelEncoder]
    if len(labels) < len(encoders):
        dataset, encoder = next(item for item in encoders.items() if type(item[1]) is not LabelEncoder)
        kind = "no encoder" if encoder is None else f"a {type(encoder).__name__}"
        raise EncodeError(
            f"column {name!r} of {dataset!r} has {kind}, and a join unites the classes of "
            f"LabelEncoder only; give all datasets the same fitted encoder, or leave the column out"
        )
    unknown = {label._unknown_value for label in labels}
    if len(unknown) > 1:
        raise EncodeError(f"the encoders of column {name!r} differ in unknown_value: {sorted(map(str, unknown))}")
    values = {value for label in labels for value in label.classes_.tolist()}
    try:
        classes: list[Any] = sorted(values - {None})
    except TypeError as cause:
        raise EncodeError(f"column {name!r} has values of several types, which have no order: {cause}") from cause
    (value,) = unknown
    handle = "error" if value is None else "use_encoded_value"
    classes += [None] * (None in values)
    return LabelEncoder(labels[0].col, name=name, handle_unknown=handle, unknown_value=value, classes=classes)


def _joined_codes(selections: Selections, column: str, joined: Encoder) -> npt.NDArray[Any]:
    """Return the codes of a column of all cells, with the classes of the join."""
    return np.concatenate([_recoded(selection, column, joined) for selection in selections.values()])


def _recoded(selection: Selection, column: str, joined: Encoder) -> npt.NDArray[Any]:
    codes, own = selection.codes[column], selection.encoders[column]
    if own is joined:
        return codes[:]
    assert not isinstance(codes, JoinIds)  # an encoder makes an array
    assert isinstance(own, LabelEncoder)  # _joined_encoder has checked it
    assert isinstance(joined, LabelEncoder)
    code_of = {value: code for code, value in enumerate(joined.classes_.tolist())}
    codes_of_own = [code_of[value] for value in own.classes_.tolist()]
    table: npt.NDArray[Any] = np.array(codes_of_own, code_dtype(len(code_of)))
    is_unknown = codes == own._unknown_value
    return np.where(is_unknown, codes, table[np.where(is_unknown, 0, codes)]) if is_unknown.any() else table[codes]
