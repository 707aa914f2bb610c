"""Doctests write into a folder of their own and find the package by its name."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import cellfeed


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace.update(cellfeed=cellfeed, np=np, pd=pd)
