"""Links to the pages of other projects, without a network: inventories of the names that our pages refer to.

Inventories of whole projects are large and change every week. These are made from a list when Sphinx starts. A name is
listed as our signatures write it (``npt.NDArray``). A reference to a name that is not listed fails the build.
"""

import zlib
from pathlib import Path

PROJECTS = {
    "python": ("https://docs.python.org/3", "library/", {
        "collections.abc.Callable": "collections.abc.html#collections.abc.Callable",
        "collections.abc.Iterator": "collections.abc.html#collections.abc.Iterator",
        "collections.abc.Mapping": "collections.abc.html#collections.abc.Mapping",
        "collections.abc.Sequence": "collections.abc.html#collections.abc.Sequence",
        "os.PathLike": "os.html#os.PathLike",
        "pathlib.Path": "pathlib.html#pathlib.Path",
    }),
    "numpy": ("https://numpy.org/doc/stable", "reference/", {
        "numpy.ndarray": "generated/numpy.ndarray.html#numpy.ndarray",
        "npt.ArrayLike": "typing.html#numpy.typing.ArrayLike",
        "IntArray": "typing.html#numpy.typing.NDArray",
        "npt.NDArray": "typing.html#numpy.typing.NDArray",
    }),
    "pandas": ("https://pandas.pydata.org/docs", "reference/api/", {
        "pandas.core.frame.DataFrame": "pandas.DataFrame.html#pandas.DataFrame",
        "pd.DataFrame": "pandas.DataFrame.html#pandas.DataFrame",
        "pd.Series": "pandas.Series.html#pandas.Series",
    }),
    "anndata": ("https://anndata.readthedocs.io/en/stable", "generated/", {
        "AnnData": "anndata.AnnData.html#anndata.AnnData",
    }),
    "torch": ("https://docs.pytorch.org/docs/stable", "", {
        "torch.Tensor": "tensors.html#torch.Tensor",
        "torch.Tensor.to": "generated/torch.Tensor.to.html#torch.Tensor.to",
        "torch.device": "tensor_attributes.html#torch.device",
        "torch.utils.data.DataLoader": "data.html#torch.utils.data.DataLoader",
    }),
}  # fmt: skip
METHODS = {"torch.Tensor.to"}


def write(folder: Path) -> dict[str, tuple[str, str]]:
    """Write an inventory per project, in version 2 of Sphinx's format, and return ``intersphinx_mapping``."""
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for project, (url, prefix, names) in PROJECTS.items():
        kinds = {name: "py:method" if name in METHODS else "py:class" for name in names}
        lines = [
            f"{name} {kinds[name]} 1 {prefix}{page} -\n" for name, page in names.items()
        ]
        head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
        head += "# The remainder of this file is compressed using zlib.\n"
        path = folder / f"{project}.inv"
        path.write_bytes(head.encode() + zlib.compress("".join(lines).encode()))
        mapping[project] = (url, str(path))
    return mapping
