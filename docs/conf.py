"""Sphinx configuration."""

import cellfeed

project = "cellfeed"
author = "The cellfeed developers"
copyright = "2026, The cellfeed developers"
version = release = cellfeed.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "cellfeed"
nitpicky = False
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
