"""Readers without a store."""

from __future__ import annotations

import threading
import time

import numpy as np
import scipy.sparse as sp

from cellfeed.block import Block


class FakeReader:
    """Rows of a matrix in memory; row ``i`` is joinid ``i``. Counts what it is asked and what is under way."""

    def __init__(self, X: sp.csr_matrix, *, delay_s: float = 0.0, fail_at: int | None = None) -> None:
        self.X = X
        self.delay_s = delay_s
        self.fail_at = fail_at
        self.reads: list[np.ndarray] = []
        self.closed = False
        self._lock = threading.Lock()

    def read(self, joinids: np.ndarray) -> Block:
        with self._lock:
            self.reads.append(joinids)
        time.sleep(self.delay_s)
        if self.fail_at is not None and self.fail_at in joinids:
            raise RuntimeError(f"no luck with {self.fail_at}")
        rows = self.X[joinids]
        rows.sort_indices()
        return Block(rows.indptr.astype(np.int64), rows.indices.astype(np.uint16), rows.data)

    def close(self) -> None:
        self.closed = True
