"""Words that the prose of cellfeed does not use: an everyday or technical term says the same."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(page for page in ROOT.glob("docs/*.md") if page.name != "tests.md"),  # a build writes it
    *ROOT.glob("docs/tutorials/*.md"),
    *ROOT.glob("examples/*.py"),
    *ROOT.glob("src/cellfeed/**/*.py"),
    *(page for page in ROOT.glob("tests/**/*.py") if page != Path(__file__).resolve()),
    *ROOT.glob("benchmarks/**/*.py"),
    *ROOT.glob("benchmarks/*.md"),
]

CALQUES = (
    "told", "tell", "tells", "telling", "foretell", "foretells", "foretold", "shall", "thrice", "whoever", "anew",
    "nobody", "somebody", "anybody", "for ever", "hence", "is none", "are none", "of ours", "of theirs", "so many",
    "as many", "so much", "as much", "goes on", "go on", "went on", "going on", "than is", "beneath", "fate",
)  # fmt: skip
"""Words that need a second reading."""

REPLACED = (
    "walk", "walks", "walked", "lap", "stretch", "stretches", "leavers", "shelf", "shelves", "arrival", "arrivals",
    "topology", "workbench", "a pass", "each pass", "every pass", "one pass", "next pass", "first pass", "last pass",
    "the pass", "this pass", "later passes", "told_as", "PlacedRows", "RowSpace",
)  # fmt: skip
"""Terms that the glossary replaces by those of the field."""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_plain(page):
    unwanted = re.compile(rf"(?<!\.)\b({'|'.join(map(re.escape, (*CALQUES, *REPLACED)))})\b", re.IGNORECASE)
    found = [
        f"line {number}: {match[0]!r}"
        for number, line in enumerate(page.read_text().splitlines(), start=1)
        for match in unwanted.finditer(line)
        if match[0] != "is None"  # Python's
    ]
    assert not found, "; ".join(found)
