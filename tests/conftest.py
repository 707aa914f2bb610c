from __future__ import annotations

import multiprocessing.process
import os
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

from cellfeed.loader.world import LAUNCHERS
from tests.support.stores import addressed, labelled_obs, write_experiment

# Tests also read with tiledbsoma itself, at the same time: without these settings it crashes at random.
os.environ.setdefault("TILEDB_SM_QUERY_SPARSE_GLOBAL_ORDER_PREPROCESS_TILE_MERGE", "0")

SLOW_MODULES = {
    "test_address",
    "test_architecture",
    "test_benchmarks",
    "test_calibrate",
    "test_cli",
    "test_compiled",
    "test_dask",
    "test_devices",
    "test_ecosystem",
    "test_effective",
    "test_examples",
    "test_fault_proxy",
    "test_hostile",
    "test_lightning",
    "test_mixing",
    "test_notebooks",
    "test_optional",
    "test_other_loaders",
    "test_pages",
    "test_processes",
    "test_progress",
    "test_real_counts",
    "test_s3",
    "test_scvi",
    "test_scvi_models",
    "test_sending",
    "test_soak",
    "test_verification",
    "test_workers",
}
"""Many of their tests start processes or servers, train models, or take seconds; elsewhere single tests are marked."""

settings.register_profile(
    "default",
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("ci", settings.get_profile("default"), print_blob=True, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the variables of a launcher, so that a test is a single process without ranks."""
    for name in (*LAUNCHERS.values(), *LAUNCHERS, "LOCAL_RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SLOW_MODULES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _fast_tests_start_no_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold the marker ``slow`` complete."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("this test starts a process: decorate it with @pytest.mark.slow")

    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
        monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)


@pytest.fixture(params=["direct", "private", "public"])
def reading_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All ways of reading: the array's files, tiledbsoma's private query, and its public API."""
    monkeypatch.setenv("CELLFEED_DIRECT", "1" if request.param == "direct" else "0")
    monkeypatch.setenv("CELLFEED_PUBLIC_API", "1" if request.param == "public" else "0")
    return request.param


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """100 cells x 30 genes; values encode their row and column; row-blocks of 8."""
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
