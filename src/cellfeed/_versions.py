"""The versions of packages in records of data."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def versions_of(*packages: str) -> dict[str, str | None]:
    """Return the versions of packages; ``None`` for one that is imported from a folder and not installed.

    Examples
    --------
    >>> versions_of("not-installed")
    {'not-installed': None}
    """
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
