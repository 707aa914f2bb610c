"""Plans and statistics as text: each number has a name and a unit."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

import cellfeed
from cellfeed.stats import Stats

PLAN = cellfeed.Plan(
    n_obs=70_000,
    n_vars=765,
    chunk_rows=500.0,
    n_chunks=140,
    chunks_per_block=20,
    chunks_held=11.5,
    n_minibatches=1094,
    batch_size=64,
    pool_bytes=2**20,
    peak_memory_bytes=2**29,
    decode_amplification=1.25,
    effective_batch_size=25.45,
)


def lines(shown):
    """Return the values of the printed table by name."""
    return dict(line.split("  ", 1) for line in str(shown).splitlines())


@pytest.mark.parametrize(
    "shown", [PLAN, replace(PLAN, label="<b>donor</b> & batch"), Stats()], ids=["plan", "tag", "stats"]
)
def test_a_notebook_shows_the_printed_table(shown):
    """Names and whole values, also where a column of obs is named like a tag."""
    rows = ElementTree.fromstring(shown._repr_html_()).iter("tr")
    assert [(row.findtext("th"), row.findtext("td")) for row in rows] == [
        (name, value.strip()) for name, value in lines(shown).items()
    ]


def test_a_plan_says_what_is_shuffled_and_what_memory_holds():
    shown = {name: value.strip() for name, value in lines(PLAN).items()}
    assert shown["minibatches"] == "1,094 per epoch, of 64 cells"
    assert shown["chunks"] == "140 per epoch, of 500 neighbouring cells on average"
    assert shown["shuffled together"] == "cells of 20 chunks at a time, while memory holds 11.5 chunks"
    assert lines(replace(PLAN, chunks_per_block=140))["shuffled together"].strip() == "all cells"
    assert lines(replace(PLAN, shuffle=False))["shuffled together"].strip().startswith("nothing")


def test_a_plan_says_of_which_labels_its_effective_batch_size_is():
    worst = lines(PLAN)["effective batch size"].strip()
    assert worst == "25.45 of 64 cells (worst case: each chunk has a label of its own)"
    assert (
        lines(replace(PLAN, label="donor_id"))["effective batch size"].strip()
        == "25.45 of 64 cells (labels in donor_id)"
    )


def test_stats_say_who_waited_for_whom():
    """The training loop for the loader, at the start and later; and the loader for the training loop."""
    stats = Stats(n_obs=640, consumer_wait_s=3.05, first_wait_s=2.99, producer_wait_s=9.9, elapsed_s=17.99)
    shown = {name: value.strip() for name, value in lines(stats).items()}
    assert shown["training loop waited"] == "2.99 s for the first minibatches of epochs, then 0.06 s (0.4% of its time)"
    assert shown["loader waited"] == "9.90 s for the training loop"
