"""Arrays that are needed again and again on a device, copied to it once."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch


class DeviceCopies:
    """Tensors of some arrays on each device on which they are used; a pickle has the arrays only.

    Parameters
    ----------
    arrays
        They must not change.

    Examples
    --------
    >>> import numpy as np
    >>> copies = DeviceCopies(np.arange(3))
    >>> copies.on(torch.device("cpu"))
    (tensor([0, 1, 2]),)
    """

    def __init__(self, *arrays: npt.NDArray[Any]) -> None:
        self._arrays = arrays
        self._tensors: dict[torch.device, tuple[torch.Tensor, ...]] = {}

    def on(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return the tensors on a device. The copy is complete when it returns, so that any stream may use them."""
        if device not in self._tensors:
            self._tensors[device] = tuple(torch.from_numpy(array).to(device) for array in self._arrays)
        tensors = self._tensors[device]
        if device.type == "cuda":
            for tensor in tensors:  # after its end, the memory waits for the work of this stream
                tensor.record_stream(torch.cuda.current_stream(device))
        return tensors

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tensors": {}}
