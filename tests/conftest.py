from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from cellfeed.topology import LAUNCHERS
from tests.support.stores import addressed, labelled_obs, write_experiment

# Tests read with tiledbsoma, too, and side by side: its crash (cellfeed.address.SAFE_SETTINGS) would come now and then.
os.environ.setdefault("TILEDB_SM_QUERY_SPARSE_GLOBAL_ORDER_PREPROCESS_TILE_MERGE", "0")

settings.register_profile(
    "default",
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("ci", settings.get_profile("default"), print_blob=True, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test is alone in its world, whatever launched it."""
    for name in (*LAUNCHERS.values(), *LAUNCHERS, "LOCAL_RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["direct", "private", "public"])
def reading_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All ways of reading: the array's files, tiledbsoma's private query, and its public API."""
    monkeypatch.setenv("CELLFEED_DIRECT", "1" if request.param == "direct" else "0")
    monkeypatch.setenv("CELLFEED_PUBLIC_API", "1" if request.param == "public" else "0")
    return request.param


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """100 cells x 30 genes; values tell their row and column; row-blocks of 8."""
    path = tmp_path_factory.mktemp("stores") / "hundred.soma"
    return write_experiment(path, addressed(100, 30), labelled_obs(100))


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Write a store of ``n_obs x n_vars``, once for each set of arguments."""
    made: dict[tuple[object, ...], str] = {}

    def make(n_obs: int, n_vars: int = 3, **options: object) -> str:
        key = (n_obs, n_vars, *sorted((k, str(v)) for k, v in options.items()))
        if key not in made:
            path = tmp_path_factory.mktemp("stores") / "made.soma"
            made[key] = write_experiment(path, addressed(n_obs, n_vars), labelled_obs(n_obs), **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def real_counts() -> Callable[[str], Path]:
    """Find a file of real counts beside the repository; skip where there is none."""

    def find(name: str) -> Path:
        root = Path(__file__).resolve().parents[1]
        folders = [Path(p) for p in [os.environ.get("CELLFEED_TEST_DATA")] if p]
        folders += sorted(root.parent.glob("*/data"))
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
        pytest.skip(f"{name} is not here; set CELLFEED_TEST_DATA to the folder that holds it")

    return find
