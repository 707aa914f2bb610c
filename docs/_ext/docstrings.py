"""Docstrings on the reference page: napoleon, with three changes.

A *Returns* section is prose: napoleon takes each of its lines as a type. A property is prose: napoleon takes the words
before its colon as a type. Attributes that share a description, ``a, b``, are names: Sphinx takes ``a,`` as the type of
``b``.
"""

import re

from sphinx.ext.napoleon import NumpyDocstring


class Docstring(NumpyDocstring):
    def _consume_returns_section(self, preprocess_types=False):
        return [("", "", self._dedent(self._consume_to_next_section()))]

    def _parse_attributes_section(self, section):
        fields = super()._parse_attributes_section(section)
        return [
            re.sub(
                r"^(:ivar .*?:)(?= |$)", lambda names: names[1].replace(", ", ","), line
            )
            for line in fields
        ]


def process(app, what, name, obj, options, lines):
    what = "method" if what == "property" else what
    lines[:] = Docstring(lines, app.config, app, what, name, obj, options).lines()


def setup(app):
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
