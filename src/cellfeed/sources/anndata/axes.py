"""obs and var of the parts of an AnnData source, each read as one table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import chain

import numpy as np
import pandas as pd

from cellfeed._joinids import JOINID, IntArray
from cellfeed.errors import SelectionError
from cellfeed.sources.anndata.joins import How, JoinedGenes, join_names, join_tables, join_var, study_column
from cellfeed.sources.anndata.parts import Axis, Part
from cellfeed.sources.anndata.tables import Columns, columns_of, read_names, read_table

INDEX = "_index"
"""The name that anndata gives to an index without a name."""


class Tables:
    """obs of all parts, one after another, and var of the first: all parts have the same genes.

    ``obs_names`` and ``var_names`` are the columns ``obs_id`` and ``var_id``, as ``tiledbsoma.io`` calls them; they
    have their own names, too, if the file names them.

    Parameters
    ----------
    parts
        The parts of a source.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = tuple(parts)

    def _parts_of(self, axis: Axis) -> Sequence[Part]:
        """Return the parts from which a table is read."""
        return self._parts if axis == "obs" else self._parts[:1]

    @cached_property
    def _columns(self) -> dict[Axis, list[Columns]]:
        """The columns in each part."""
        found: dict[Axis, list[Columns]] = {"obs": [], "var": []}
        for axis, columns in found.items():
            for part in self._parts_of(axis):
                with part.file.open() as root:
                    columns.append(columns_of(root, part.table(axis)))
        return found

    def index_name(self, axis: Axis) -> str:
        """Return the name of the column that holds ``obs_names`` or ``var_names``: another column may be ``obs_id``."""
        is_taken = any(f"{axis}_id" in own.names for own in self._columns[axis])
        return INDEX if is_taken else f"{axis}_id"

    def own_name(self, axis: Axis) -> str:
        """Return the name that the first part gives to its index."""
        return self._columns[axis][0].index_name

    def known(self, axis: Axis) -> list[str]:
        """Return the names of all columns, each once, the index first."""
        named = [name for own in self._columns[axis] for name in (own.index_name, *own.names)]
        return list(dict.fromkeys([self.index_name(axis), *(name for name in named if name != INDEX)]))

    def read(self, axis: Axis, columns: Sequence[str]) -> tuple[pd.DataFrame, IntArray]:
        """Read known columns, and the ``soma_joinid`` of each row: by default its number.

        Returns
        -------
        A table with an index of row numbers, and int64, shape (n_rows,).
        """
        has_joinids = JOINID in self.known(axis)
        wanted = [column for column in columns if column != JOINID] + [JOINID] * has_joinids
        frame = self._read(axis, wanted)
        if not has_joinids:
            return frame, np.arange(len(frame), dtype=np.int64)
        joinids = frame.pop(JOINID)
        if joinids.dtype.kind not in "iu" or not joinids.is_unique:
            raise SelectionError(f"{axis} has a column soma_joinid that is not a distinct integer per row; rename it")
        return frame, joinids.to_numpy(np.int64)

    def _read(self, axis: Axis, columns: Sequence[str]) -> pd.DataFrame:
        tables = self._read_parts(axis, columns)
        return tables[0] if len(tables) == 1 else join_tables(tables, "union")

    def _read_parts(self, axis: Axis, columns: Sequence[str]) -> list[pd.DataFrame]:
        """Read those of the columns that each part has."""
        tables, index = [], self.index_name(axis)
        for part, own in zip(self._parts_of(axis), self._columns[axis], strict=True):
            stored = {column: own.index_name if column == index else column for column in columns}
            wanted = known_among(list(dict.fromkeys(stored.values())), [own.index_name, *own.names])
            table = read_table(part.file, part.table(axis), wanted)
            found = {column: table[name] for column, name in stored.items() if name in table}
            tables.append(pd.DataFrame(found, index=table.index))
        return tables


class JoinedTables(Tables):
    """obs of several studies, one after another, and var of all their genes.

    obs has a column with the study of each cell. A ``soma_joinid`` is the number of a row.

    Parameters
    ----------
    parts
        The parts of a source.
    studies
        The name of the study of each part.
    genes
        The genes of all parts.
    how
        Whether obs has the columns of any part or those of all parts.
    """

    def __init__(self, parts: Sequence[Part], studies: Sequence[str], genes: JoinedGenes, how: How) -> None:
        super().__init__(parts)
        self._studies, self._genes, self._how = tuple(studies), genes, how

    def _parts_of(self, axis: Axis) -> Sequence[Part]:
        return self._parts

    def own_name(self, axis: Axis) -> str:
        """Return the name of an index that has none: the parts may name theirs differently."""
        return INDEX

    def known(self, axis: Axis) -> list[str]:
        """Return the names of all columns, each once, the index first."""
        names = self._joined_names(axis)
        return [self.index_name(axis), *names, *([study_column(names)] if axis == "obs" else [])]

    def _joined_names(self, axis: Axis) -> list[str]:
        each = [own.names for own in self._columns[axis]]
        names = [name for name in dict.fromkeys(chain.from_iterable(each)) if name != JOINID]
        if axis == "var" or self._how == "union":
            return names
        return [name for name in names if all(name in own for own in each)]

    def _read(self, axis: Axis, columns: Sequence[str]) -> pd.DataFrame:
        tables = self._read_parts(axis, known_among(columns, self._joined_names(axis)))
        if axis == "var":
            frame = join_var(tables, self._genes).assign(**{self.index_name(axis): self._genes.names})
        else:
            frame = join_tables(tables, "union")
            names = pd.Index(dict.fromkeys(self._studies), dtype=object)
            codes = np.repeat(names.get_indexer(pd.Index(self._studies)), [part.n_rows for part in self._parts])
            frame[study_column(self._joined_names(axis))] = pd.Categorical.from_codes(codes, names)
            if (index := self.index_name(axis)) in columns:
                frame[index] = join_names([read_names(part.file, "obs") for part in self._parts], self._studies)
        return frame[list(columns)]


def known_among(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return the wanted names that are known, in their order."""
    return [column for column in wanted if column in known]
