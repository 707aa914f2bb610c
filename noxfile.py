"""Tests on the versions of Python and of the libraries that cellfeed supports; ``nox --list`` shows the sessions.

nox skips a session if its Python is not installed. ``PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu`` in the
environment gets PyTorch for CPUs, which is much smaller. Arguments after ``--`` go to pytest.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["newest", "lowest", "scvi", "wheel"]

ROOT = Path(__file__).parent
PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))

PYTEST = (
    "boto3",
    "hypothesis",
    "moto[server]>=5",
    "psutil",
    "pytest>=8",
    "pytest-timeout",
    "pytest-xdist",
    "scikit-misc",
)
"""What most tests need."""

NEED_MORE = tuple(
    f"--ignore=tests/{name}" for name in ("programs", "test_census.py", "test_examples.py", "test_pages.py")
)
"""Tests that need what requirements-dev.txt lists."""

WITHOUT_LIGHTNING = "--deselect=src/cellfeed/errors.py::cellfeed.errors.MissingDependencyError"
"""An example that prints nothing where Lightning is installed."""

WARNINGS = (  # of pandas and h5py in their lowest versions, about NumPy
    "-Wignore:np.find_common_type:DeprecationWarning",
    "-Wignore:`product` is deprecated:DeprecationWarning",
)


def run_tests(session: nox.Session, *arguments: str, **options: Any) -> None:
    """Run pytest on up to four cores."""
    session.run("pytest", "-q", "--numprocesses=logical", "--maxprocesses=4", "--dist=worksteal", *arguments, **options)


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """Run the quick tests with the newest libraries."""
    session.install("-e", ".[dask,demo,plot]", *PYTEST)
    run_tests(session, "-m", "not slow", *NEED_MORE, *session.posargs)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest libraries that pyproject.toml permits."""
    session.install("-e", ".[dask,demo,plot]", *PYTEST, "--constraint", "constraints-lowest.txt")
    run_tests(session, *NEED_MORE, WITHOUT_LIGHTNING, *WARNINGS, *session.posargs)


@nox.session(python=PYTHONS)
def scvi(session: nox.Session) -> None:
    """Train models of scvi-tools: of 1.4 on Python 3.11, and of 1.5 on later ones, which it needs."""
    session.install("-e", ".[demo,scvi]", "huggingface_hub", *PYTEST)
    run_tests(session, "tests/test_scvi.py", "tests/test_scvi_models.py", "tests/test_order.py", *session.posargs)


@nox.session(python=PYTHONS)
def wheel(session: nox.Session) -> None:
    """Build the distributions, and use the wheel outside of the repository in an environment of its own."""
    session.install("build", "twine")
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--outdir", folder)
        session.run("twine", "check", "--strict", *(str(path) for path in Path(folder).iterdir()))
        (built,) = Path(folder).glob("*.whl")
        session.install(f"cellfeed[demo] @ {built.as_uri()}")
        with session.chdir(folder):
            session.run("python", "-P", str(ROOT / "tests/programs/installed.py"))


@nox.session(python=PYTHONS[-1])
def coverage(session: nox.Session) -> None:
    """Measure which lines the quick tests run; there is a floor in pyproject.toml."""
    session.install("-e", ".[dask,demo,plot]", *PYTEST, "pytest-cov>=6")
    run_tests(session, "-m", "not slow", "--cov", *NEED_MORE, *session.posargs, env={"COVERAGE_CORE": "sysmon"})
