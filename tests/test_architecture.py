"""The house rules that a program can check: arrows one way, edges at the edge, nothing heavy at import."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import cellfeed

SOURCE = Path(cellfeed.__file__).parent
ORDER = [
    "errors", "failures", "redact", "valuefilter", "memory", "backoff", "keyed", "joinids", "schedule", "plan",
    "walk", "effective", "delivered", "stats", "retry", "address", "progress", "state", "splits", "zstd",
    "compiled", "kernels", "pagerows", "scaling", "unfilter", "fragments", "tilerows", "allocator", "slabs",
    "rowspace", "rowbuilder", "watch", "rows", "native", "files", "vfs", "reader", "vocabulary", "encoders",
    "labels", "obsframe", "rowfigures", "selection", "integrity", "tileindex", "tilereader", "identity",
    "experiment", "info", "axisquery", "filterfit", "emptiness", "query", "densify", "transforms", "genes",
    "topology", "epochs", "settings", "provenance", "budget", "report", "target", "forecast", "planner", "prefetch",
    "layerreader", "feed", "minibatch", "pipeline", "passes", "workers", "frameworks", "dataset", "datapipe",
    "dataloader", "inference", "variability", "obsm", "datamodule", "lightning", "covariates", "modelregistry",
    "scvi", "datasets", "warmup", "demo", "bench", "plot", "calibrate", "cli", "__init__", "__main__",
]  # fmt: skip
PURE = {
    "errors", "memory", "keyed", "joinids", "schedule", "plan", "walk", "effective", "progress", "state", "splits",
    "target", "forecast", "kernels", "pagerows", "scaling", "unfilter", "tilerows", "fragments", "report", "budget",
    "vocabulary", "failures", "redact", "valuefilter", "backoff",
}  # fmt: skip
MAY_IMPORT = {
    "tiledbsoma": {
        "native", "address", "identity", "experiment", "axisquery", "query", "genes", "obsm", "datasets", "cli",
    },
    "torch": {
        "densify", "transforms", "topology", "watch", "minibatch", "pipeline", "frameworks", "workers", "dataset",
        "datapipe", "dataloader", "inference", "variability", "modelregistry", "scvi", "demo",
    },
}  # fmt: skip


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


MODULES = {path.stem: path for path in [*SOURCE.glob("command/[!_]*.py"), *SOURCE.glob("*.py")]}


def test_every_module_has_a_place():
    assert set(MODULES) == set(ORDER)


def test_arrows_point_one_way():
    for name, path in MODULES.items():
        for target in imports(path):
            parts = target.replace("cellfeed.command.", "cellfeed.").split(".")
            if parts[0] == "cellfeed" and len(parts) > 1 and parts[1] in MODULES:
                assert ORDER.index(parts[1]) < ORDER.index(name), f"{name} imports {parts[1]}"


def test_edges():
    for name, path in MODULES.items():
        for target in imports(path):
            library = target.split(".")[0]
            if library in MAY_IMPORT:
                assert name in MAY_IMPORT[library], f"{name} imports {library}"


def test_pure_modules_ask_nobody():
    """No clock, no environment, no thread, no generator object."""
    for name in PURE:
        for target in imports(MODULES[name]):
            assert target.split(".")[0] not in {"os", "time", "threading", "logging", "random"}, f"{name}: {target}"


def test_all_kernels_have_one_decorator():
    """Which keeps their code where it can: no kernel asks numba for a cache itself."""
    for name, path in MODULES.items():
        if name != "compiled":
            assert "njit" not in path.read_text(), name


def test_private_tiledbsoma_in_one_module_only():
    for name, path in MODULES.items():
        if name != "native":
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
    assert {name: n for name, path in MODULES.items() if (n := code_lines(path)) > 250} == {}


def test_public_names_are_listed_and_sorted():
    assert cellfeed.__all__ == sorted(cellfeed.__all__)
    assert all(hasattr(cellfeed, name) for name in cellfeed.__all__)


def test_completion_shows_public_names_only():
    """What ``dir`` and tab completion list: the public names and the public modules that are always loaded."""
    assert set(dir(cellfeed)) == {*cellfeed.__all__, "__version__", "datasets", "errors", "transforms"}
    assert all(hasattr(cellfeed, name) for name in dir(cellfeed))


def test_import_compiles_and_loads_nothing_heavy():
    heavy = {"matplotlib", "numba", "scanpy", "tqdm", "lightning", "pytorch_lightning", "scvi", "typer", "rich"}
    told = "import sys, torch, tiledbsoma; before = set(sys.modules); import cellfeed; print(set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    new = {name.split(".")[0] for name in ast.literal_eval(done.stdout)}
    assert "cellfeed" in new
    assert not new & heavy


def test_the_lowest_versions_are_those_that_the_package_permits():
    """What ``make test-lowest`` installs: each bound but PyTorch's, of which no old build for CPUs is offered."""
    root = SOURCE.parents[1]
    bounds = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = (root / "constraints-lowest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for bound in bounds:
        name, version = bound.split(">=")
        assert name == "torch" or pins[name].startswith(version), bound
