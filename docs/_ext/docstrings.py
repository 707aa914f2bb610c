"""Docstrings in the reference: napoleon, with three changes, and the members that users need.

A *Returns* section is prose: napoleon takes each of its lines as a type. A property is prose: napoleon takes the words
before its colon as a type. Attributes that share a description, ``a, b``, are names: Sphinx takes ``a,`` as the type of
``b``.

The page of a class has the members that cellfeed documents, its own and inherited ones. It leaves out those of other
libraries, and the hooks that Lightning calls.
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


def skip(app, what, name, obj, skipped, options):
    getter = getattr(obj, "fget", obj)  # of a property
    foreign = not str(getattr(getter, "__module__", "")).startswith("cellfeed")
    return True if foreign or name == "setup" or name.startswith("on_") else None


def setup(app):
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
