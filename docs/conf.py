"""Sphinx configuration."""

import os
import sys
from pathlib import Path

import cellfeed

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import inventories

# Tutorials run `cellfeed`, `torchrun` and the examples. All figures have one style.
os.environ["PATH"] = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
)
os.environ["EXAMPLES"] = str(Path(__file__).parents[1] / "examples")
# Models in tutorials are small: threads of PyTorch would wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MATPLOTLIBRC"] = str(Path(__file__).parent / "_static" / "matplotlibrc")

project = "cellfeed"
author = "The cellfeed developers"
copyright = "2026, The cellfeed developers"
version = release = cellfeed.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "docstrings",
    "mathml",
    "shown_tests",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = "cellfeed"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
nitpicky = True
nitpick_ignore_regex = [
    # Types that have no page: users get their objects from functions.
    ("py:class", r"cellfeed\.(loader|command)\.\w+\.\w+"),
]
intersphinx_mapping = inventories.write(Path(__file__).parent / "_build/inventories")
python_maximum_signature_line_length = (
    88  # longer signatures have one line per parameter
)
copybutton_prompt_text = r">>> |\.\.\. |\$ "  # prompts and output are not copied
copybutton_prompt_is_regexp = True
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "dollarmath"]
# Tutorials run when the pages are built, again only if their code has changed; an error fails the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True  # tutorials write stores
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars and the logs of other packages
napoleon_google_docstring = napoleon_numpy_docstring = (
    False  # the extension ``docstrings`` calls napoleon
)
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_typehints = "signature"
autodoc_type_aliases = {"npt.ArrayLike": "npt.ArrayLike", "IntArray": "numpy.ndarray"}
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
