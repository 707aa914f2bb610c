"""Files that describe the package agree with each other; ``tests/programs/installed.py`` uses the built one."""

import re
import tomllib
from pathlib import Path

import pytest

import cellfeed

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"tiledbsoma": "tiledbsoma-py", "torch": "pytorch"}


def versions(text):
    return re.findall(r"\b3\.\d\d\b", text)


def recipe():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / "recipe/recipe.yaml").read_text())


def test_the_recipe_has_the_version_the_requirements_and_the_command_of_the_package():
    build, context, run = recipe()["build"], recipe()["context"], recipe()["requirements"]["run"]
    assert context == {"version": cellfeed.__version__, "python_min": versions(PROJECT["requires-python"])[0]}
    required = (re.match(r"([\w-]+)(.*)", line).groups() for line in PROJECT["dependencies"])
    assert run[1:] == sorted(f"{CONDA_NAMES.get(name, name)} {bound}" for name, bound in required)
    assert build["python"]["entry_points"] == [f"{name} = {place}" for name, place in PROJECT["scripts"].items()]


def test_the_recipe_builds_with_what_the_package_builds_with():
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert recipe()["requirements"]["host"][2:] == [line.replace(">=", " >=") for line in backend]


def test_the_pythons_that_are_declared_are_those_of_the_readme_and_the_workflow():
    declared = [version for line in PROJECT["classifiers"] for version in versions(line)]
    assert versions(PROJECT["requires-python"]) == declared[:1]
    support = (ROOT / "README.md").read_text().split("## Support")[1].split("\n## ")[0]
    assert set(versions(support)) == set(declared)
    matrix = re.search(r"session: \[(.*)\]", (ROOT / ".github/workflows/ci.yml").read_text())[1].split(", ")
    for session in ("newest", "scvi", "wheel"):
        assert [name.partition("-")[2] for name in matrix if name.startswith(session)] == declared
    assert {"lowest", "coverage"} < set(matrix)


def test_the_extra_all_has_every_extra():
    extras = PROJECT["optional-dependencies"]
    (line,) = extras.pop("all")
    assert line == f"cellfeed[{','.join(sorted(extras))}]"


def test_the_changelog_has_the_version():
    assert re.search(rf"^## {re.escape(cellfeed.__version__)} \(", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_addresses_of_the_repository_are_in_two_files():
    """They are not known yet: OWNER stands for the owner."""
    known = {path.relative_to(ROOT).as_posix() for path in (ROOT / ".github").rglob("*.*")}
    files = {
        "pyproject.toml",
        "recipe/recipe.yaml",
        "README.md",
        "CITATION.cff",
        "SECURITY.md",
        "CONTRIBUTING.md",
        *known,
    }
    with_address = {name for name in files if re.search(r"github\S*/cellfeed", (ROOT / name).read_text())}
    assert with_address == {"pyproject.toml", "recipe/recipe.yaml"}


def test_actions_are_pinned_by_the_hash_of_a_commit():
    used = [
        line
        for path in (ROOT / ".github/workflows").iterdir()
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert used
    for line in used:
        assert re.search(r"uses: [\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d", line), line
