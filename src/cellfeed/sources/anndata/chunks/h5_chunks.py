"""Slices arrays of HDF5 whose chunks are deflated, in several threads at the same time."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt


def inflated(dataset: Any) -> Any:
    """Return a dataset of HDF5 of one axis, or, if its chunks are deflated, an equivalent that threads can share."""
    is_deflated = dataset.compression == "gzip" and not (dataset.fletcher32 or dataset.scaleoffset)
    return InflatedArray(dataset) if is_deflated else dataset


class InflatedArray:
    """Slices a dataset of HDF5 of one axis whose chunks are deflated, and shuffled or not.

    HDF5 inflates in one thread at a time. This class reads chunks as they are on disk, which takes HDF5 little time,
    and inflates them in the thread that calls.
    """

    def __init__(self, dataset: Any) -> None:
        self.shape, self.dtype, self.chunks = dataset.shape, dataset.dtype, dataset.chunks
        self._dataset, self._is_shuffled = dataset, dataset.shuffle

    def __getitem__(self, elements: slice) -> npt.NDArray[Any]:
        low, high, _ = elements.indices(self.shape[0])
        values, (size,) = np.empty(max(high - low, 0), self.dtype), self.chunks
        for start in range(low // size * size, high, size):
            begin, end = max(start, low), min(start + size, high)
            chunk = self._read_chunk(start)
            part = self._dataset[begin:end] if chunk is None else chunk[begin - start : end - start]
            values[begin - low : end - low] = part
        return values

    def _read_chunk(self, start: int) -> npt.NDArray[Any] | None:
        """Return a whole chunk; ``None`` if HDF5 must read it."""
        import numcodecs

        try:
            if not self._dataset.id.get_chunk_info_by_coord((start,)).size:  # the chunk is not stored
                return None
            skipped, stored = self._dataset.id.read_direct_chunk((start,))
        except (OSError, RuntimeError):  # HDF5 says why it cannot be read
            return None
        if skipped:  # filters that this chunk lacks
            return None
        size = self.dtype.itemsize
        raw = zlib.decompress(stored, bufsize=self.chunks[0] * size)
        return np.frombuffer(numcodecs.Shuffle(size).decode(raw) if self._is_shuffled else raw, self.dtype)
