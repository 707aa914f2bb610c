"""Libraries in C that installed packages bring with their compiled modules."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path


def bundled_libraries(package: str, pattern: str) -> Iterator[str]:
    """Yield the paths of the compiled modules of a package, which is not imported, that fit a pattern."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield from (str(path) for path in Path(folder).glob(pattern) if path.suffix in (".so", ".pyd"))
