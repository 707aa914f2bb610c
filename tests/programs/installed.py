"""Use cellfeed as it was installed from a wheel: ``python -P installed.py``, in a folder outside of the repository."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import cellfeed

ROOT = Path(__file__).resolve().parents[2]


def files_of(package: Path) -> set[str]:
    """The files of the package, without what Python and numba keep beside them."""
    return {str(path.relative_to(package)) for path in package.rglob("*.*") if "__pycache__" not in path.parts}


def main() -> None:
    installed = Path(cellfeed.__file__).parent
    assert ROOT not in installed.parents, f"cellfeed was imported from {installed}, not from a wheel"
    assert importlib.metadata.version("cellfeed") == cellfeed.__version__
    assert files_of(installed) == files_of(ROOT / "src/cellfeed")  # py.typed, for example

    readme = (ROOT / "README.md").read_text()
    first_example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]
    names: dict = {}
    exec(first_example, names)
    assert (names["X"].shape[1], names["obs"].shape[1]) == (765, 1)

    (script,) = importlib.metadata.entry_points(group="console_scripts", name="cellfeed")
    assert callable(script.load())
    subprocess.run([sys.executable, "-P", "-m", "cellfeed", "demo"], check=True, stdout=subprocess.DEVNULL)
    print(f"cellfeed {cellfeed.__version__} works from {installed}")


if __name__ == "__main__":
    main()
