"""Makes one pandas frame of Arrow pages of obs; text columns become categoricals."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cellfeed._joinids import JOINID, IntArray
from cellfeed.errors import SelectionError

_NULLABLE = {
    pa.bool_(): pd.BooleanDtype(),
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
}


class FrameBuilder:
    """Collects columns page by page, and keeps only codes or numbers of each page."""

    def __init__(self, columns: list[str]) -> None:
        self._columns = {name: _ColumnBuilder(name) for name in columns if name != JOINID}
        self._names = columns

    def add(self, table: pa.Table) -> None:
        """Add one page."""
        for name, builder in self._columns.items():
            builder.add(table.column(name))

    def finish(self, joinids: IntArray) -> pd.DataFrame:
        """Return the frame; its column ``soma_joinid``, if it has one, is ``joinids``."""
        data = {name: pd.Series(joinids) if name == JOINID else self._columns[name].finish() for name in self._names}
        return pd.DataFrame(data, index=pd.RangeIndex(len(joinids)), copy=False)


class _ColumnBuilder:
    """One column: categories and codes for text, Arrow chunks for other types."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._chunks: list[pa.Array] = []
        self._codes: list[npt.NDArray[Any]] = []
        self._categories: dict[Any, int] = {}
        self._dictionary: pa.Array | None = None
        self._new_codes: npt.NDArray[np.int32] | None = None

    def add(self, column: pa.ChunkedArray) -> None:
        for chunk in column.chunks:
            if pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type):
                chunk = chunk.dictionary_encode()
            if pa.types.is_dictionary(chunk.type):
                self._add_codes(chunk)
            else:
                self._chunks.append(chunk)

    def _add_codes(self, chunk: pa.DictionaryArray) -> None:
        if self._dictionary is None or not self._dictionary.equals(chunk.dictionary):
            self._dictionary = chunk.dictionary
            # A null or NaN in the dictionary means a missing value, like a null code.
            codes = [
                -1 if value is None or value != value else self._categories.setdefault(value, len(self._categories))
                for value in chunk.dictionary.to_pylist()
            ]
            self._new_codes = np.array([*codes, -1], np.int32)  # the last is the code of nulls
        assert self._new_codes is not None
        largest = pc.max(chunk.indices).as_py()  # None if all are missing
        if largest is not None and largest >= len(chunk.dictionary):
            raise SelectionError(
                f"column {self._name!r} of obs holds codes for values that its dictionary lacks; the store was "
                f"written through a handle older than the column: open obs again and rewrite the column"
            )
        width = np.int16 if len(self._categories) < 2**15 else np.int32
        indices = chunk.indices
        if indices.null_count:
            indices = pc.fill_null(indices.cast(pa.int32()), len(self._new_codes) - 1)
        self._codes.append(self._new_codes.astype(width)[indices.to_numpy(zero_copy_only=False)])

    def finish(self) -> pd.Series[Any]:
        if self._categories or self._codes:
            codes = np.concatenate(self._codes)
            self._codes.clear()
            return pd.Series(pd.Categorical.from_codes(codes, pd.Index(list(self._categories))))
        if not self._chunks:
            return pd.Series([], dtype=object)
        column = pa.chunked_array(self._chunks)
        self._chunks.clear()
        series: pd.Series[Any] = column.to_pandas(types_mapper=_NULLABLE.get if column.null_count else None)
        return series
