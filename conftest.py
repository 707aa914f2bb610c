"""Doctests write into a folder of their own and find the package by its name."""

from __future__ import annotations

import importlib.util
import os

# Tests run in several processes, whose threads for arithmetic would wait for cores, each in a busy loop.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest

import cellfeed

collect_ignore = [
    f"src/cellfeed/{module}.py"
    for module, needed in {"scvi": ["scvi"], "lightning": ["lightning", "pytorch_lightning"]}.items()
    if not any(importlib.util.find_spec(name) for name in needed)
]
collect_ignore.append("tests/programs/unguarded.py")  # it is a script without a guard, and a test runs it


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace.update(cellfeed=cellfeed, np=np, pd=pd)
