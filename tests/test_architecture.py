"""The house rules that a program can check, beside the contracts of import-linter in pyproject.toml."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import cellfeed

SOURCE = Path(cellfeed.__file__).parent
MODULES = {str(path.relative_to(SOURCE)): path for path in SOURCE.rglob("*.py")}

MAX_FOLDERS, MAX_CODE_LINES, MAX_LINES = 14, 250, 300


def test_folders_stay_few():
    assert len({path.parent for path in MODULES.values()} - {SOURCE}) <= MAX_FOLDERS


def test_all_kernels_have_one_decorator():
    """``cellfeed.rows.compiled`` chooses the cache; no kernel sets ``cache=True``."""
    for name, path in MODULES.items():
        if name != "rows/compiled.py":
            assert "njit" not in path.read_text(), name


def test_private_tiledbsoma_in_one_module_only():
    for name, path in MODULES.items():
        if name != "sources/soma/tiledb_private.py":
            assert "pytiledbsoma" not in path.read_text()
            assert "._handle" not in path.read_text()


def code_lines(path):
    """Lines that do something: no blank ones, comments or docstrings."""
    tree = ast.parse(path.read_text())
    docs = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docs.update(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(path.read_text().splitlines(), start=1)
    return sum(bool(text.strip()) and not text.strip().startswith("#") and k not in docs for k, text in lines)


def test_modules_stay_small():
    assert {name: n for name, path in MODULES.items() if (n := code_lines(path)) > MAX_CODE_LINES} == {}


def test_files_fit_on_a_few_screens():
    """But the class that users make: most of its lines are the documentation of its parameters and methods."""
    long = {name for name, path in MODULES.items() if len(path.read_text().splitlines()) > MAX_LINES}
    assert long <= {"loader/dataset.py"}


def test_public_names_are_listed_and_sorted():
    assert cellfeed.__all__ == sorted(cellfeed.__all__)
    assert all(hasattr(cellfeed, name) for name in cellfeed.__all__)


def test_completion_shows_public_names_only():
    """``dir`` and tab completion list the public names and the public modules that are always loaded."""
    assert set(dir(cellfeed)) == {*cellfeed.__all__, "__version__", "datasets", "errors", "tokens", "transforms"}
    assert all(hasattr(cellfeed, name) for name in dir(cellfeed))


def test_import_compiles_and_loads_nothing_heavy():
    heavy = {"matplotlib", "numba", "scanpy", "tqdm", "lightning", "pytorch_lightning", "scvi", "typer", "rich"}
    code = "import sys, torch, tiledbsoma; before = set(sys.modules); import cellfeed; print(set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = {name.split(".")[0] for name in ast.literal_eval(done.stdout)}
    assert "cellfeed" in new
    assert not new & heavy


def test_the_lowest_versions_are_those_that_the_package_permits():
    """``make test-lowest`` installs each lower bound except PyTorch's, which has no old build for CPUs."""
    root = SOURCE.parents[1]
    bounds = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = (root / "constraints-lowest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for bound in bounds:
        name, version = bound.split(">=")
        assert name == "torch" or pins[name].startswith(version), bound
