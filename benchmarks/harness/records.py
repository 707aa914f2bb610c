"""The records of benchmarks: JSON lines, with the commit and the versions of the packages that were measured.

This module needs nothing but Python, because contenders import it in environments of their own.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def processor() -> str:
    """Return the name of the processor, on which ratios depend; empty if the system does not report it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def highest_resident_bytes(pid: int | str) -> int:
    """Return the largest resident memory that a process has had; 0 if the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def append(out: Path | None, record: dict[str, Any], *, separators: tuple[str, str] | None = None) -> None:
    """Append a record to a file, if one was asked for."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as lines:
            lines.write(json.dumps(record, separators=separators) + "\n")


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a process that imports this repository, with whichever interpreter."""
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", **more}
