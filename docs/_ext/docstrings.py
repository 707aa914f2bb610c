"""Docstrings on the reference page: a *Returns* section is prose, and so is what stands before a property's colon.

By itself napoleon takes each line of such a section for a type, and the words of a property before a colon as well.
"""

from sphinx.ext.napoleon import NumpyDocstring


class Docstring(NumpyDocstring):
    def _consume_returns_section(self, preprocess_types=False):
        return [("", "", self._dedent(self._consume_to_next_section()))]


def process(app, what, name, obj, options, lines):
    what = "method" if what == "property" else what
    lines[:] = Docstring(lines, app.config, app, what, name, obj, options).lines()


def setup(app):
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
