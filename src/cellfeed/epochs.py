"""Which epoch a pass belongs to, known to worker processes as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cellfeed.errors import PlanError


class Epochs:
    """Counts the passes of a dataset.

    ``next`` is the epoch of the next pass, ``current`` that of the pass under way. Sent to another
    process the numbers are shared, not copied: workers that live through several passes follow what
    the main process says.
    """

    def __init__(self) -> None:
        self._numbers = torch.zeros(2, dtype=torch.int64)

    @property
    def next(self) -> int:
        """Epoch of the next pass."""
        return int(self._numbers[0])

    @property
    def current(self) -> int:
        """Epoch of the pass under way."""
        return int(self._numbers[1])

    def set(self, epoch: int) -> None:
        """Choose the epoch of the next pass, and of workers that nobody tells that it begins."""
        if isinstance(epoch, bool) or not isinstance(epoch, (int, np.integer)) or epoch < 0:
            raise PlanError(f"epoch={epoch!r} must be an integer of at least 0")
        self._numbers.fill_(int(epoch))

    def begin_pass(self) -> None:
        """Turn to the next epoch."""
        self._numbers[1] = self._numbers[0]
        self._numbers[0] += 1

    def __getstate__(self) -> dict[str, Any]:
        self._numbers.share_memory_()  # type: ignore[no-untyped-call]
        return self.__dict__
