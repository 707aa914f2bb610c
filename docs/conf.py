"""Sphinx configuration."""

import os
import sys
import tomllib
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

about = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
REPOSITORY = about["project"]["urls"]["Repository"]

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
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "checked",
    "docstrings",
    "mathml",
    "notebooks",
    "shown_tests",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = "cellfeed"
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
    "top_of_page_buttons": ["view", "edit"],
    "footer_icons": [
        {"name": "Repository", "url": REPOSITORY, "html": "Repository", "class": ""}
    ],
}
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


def generated_pages_have_no_source(app, page, template, context, doctree):
    """Without it, they would have links to files that are not in the repository."""
    if page == "tests" or page.startswith("reference/"):
        context["page_source_suffix"] = ""


def setup(app):
    app.connect("html-page-context", generated_pages_have_no_source)
