"""Short hashes of arrays, names and texts, by which they are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def digest(array: npt.NDArray[Any] | None) -> str | None:
    """Return a short hash of the contents of an array."""
    if array is None:
        return None
    data = np.ascontiguousarray(array)
    return hashlib.blake2b(data.view(np.uint8).data, digest_size=8).hexdigest()


def digest_of_names(names: Sequence[str]) -> str:
    """Return a digest of a list of names in this order."""
    return digest_of_text("\0".join(names))


def digest_of_text(text: str) -> str:
    """Return a short hash of a text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
