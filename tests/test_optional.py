"""cellfeed works without the optional libraries; a module that needs one says how to install it."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import cellfeed
from cellfeed import MissingDependencyError, datasets
from tests.programs.bare import OPTIONAL
from tests.support.processes import PATIENCE_S, python


def test_an_error_names_a_missing_library_and_the_line_that_installs_it(store):
    """Every module but two is imported, minibatches come, and the two name their extra."""
    process = python("-m", "tests.programs.bare", store, stdout=subprocess.PIPE)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    record = json.loads(output)
    assert record.pop("cells") == 100
    assert set(record) == {"lightning", "scvi"}
    for module, message in record.items():
        assert f'not installed: pip install "cellfeed[{module}]"' in message


def test_the_example_cells_name_their_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scanpy", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "cellfeed\[demo\]"'):
        datasets.pbmc700_anndata()


def test_no_module_imports_a_library_of_another_extra():
    """Accelerate and Ray are supported without being imported: no extra is needed for them."""
    allowed = {"lightning": set(), "scvi": {"scvi", "lightning"}, "loader": {"skmisc"}}
    source = Path(cellfeed.__file__).parent
    for path in source.rglob("*.py"):
        part = path.relative_to(source).with_suffix("").parts[0]
        assert OPTIONAL.intersection(libraries(path)) <= allowed.get(part, set()), path


def libraries(path):
    """The libraries that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]
