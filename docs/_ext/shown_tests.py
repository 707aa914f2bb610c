"""Links from guarantees to their tests: a role, and a page with the code of each test.

``{test}`test_plan.py::test_coverage` `` links to that function on the page ``tests``. The page is written before each
build and has the tests that ``guarantees.md`` names.
"""

import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

ROLE = re.compile(r"\{test\}`([^`]+)`")

HEAD = """---
orphan: true
---

# Tests behind the guarantees

The code of each test that the [guarantees](guarantees.md) name. All tests are in the folder `tests`.
"""

ONE = """
({label})=
## {name}

```{{literalinclude}} ../tests/{file}
:language: python
:pyobject: {function}
```
"""


def label_of(test):
    return "test-" + re.sub(r"\W+", "-", test.replace("_", "-"))


def link(name, rawtext, text, lineno, inliner, options=None, content=()):
    shown = text.split("::")[1]
    reference = addnodes.pending_xref(
        rawtext, nodes.literal(rawtext, shown), refdomain="std", reftype="ref", reftarget=label_of(text),
        refexplicit=True, refwarn=True, refdoc=inliner.document.settings.env.docname,
    )  # fmt: skip
    return [reference], []


def write_page(app):
    source = Path(app.srcdir)
    named = dict.fromkeys(ROLE.findall((source / "guarantees.md").read_text()))
    page, text = source / "tests.md", HEAD + "".join(map(show, named))
    if (
        not page.exists() or page.read_text() != text
    ):  # otherwise Sphinx would read it again
        page.write_text(text)


def show(test):
    file, function = test.split("::")
    return ONE.format(label=label_of(test), name=test, file=file, function=function)


def setup(app):
    app.add_role("test", link)
    app.connect("builder-inited", write_page)
    return {"parallel_read_safe": True}
