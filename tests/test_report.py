"""Plans and statistics as text: each number has a name and a unit."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

import cellfeed
from cellfeed import _progress
from cellfeed._progress import progress_bar
from cellfeed.command.calibration import Calibration, Setting
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


@pytest.fixture(params=["plan", "tag", "stats", "dataset", "loader"])
def shown(request, store):
    dataset = cellfeed.ExperimentDataset(store, obs_column_names=["label"], batch_size=32, seed=0)
    return {
        "plan": PLAN,
        "tag": replace(PLAN, label="<b>donor</b> & batch"),
        "stats": Stats(),
        "dataset": dataset,
        "loader": cellfeed.experiment_dataloader(dataset, num_workers=2),
    }[request.param]


def test_a_notebook_shows_the_printed_table(shown):
    """The name of the class, and names and whole values, also where a column of obs is named like a tag."""
    html = ElementTree.fromstring(shown._repr_html_())
    assert html.findtext("strong") == type(shown).__name__
    assert [(row.findtext("th"), row.findtext("td")) for row in html.iter("tr")] == [
        (name, value.strip()) for name, value in lines(shown).items()
    ]


def test_a_notebook_shows_the_settings_of_a_calibration_under_their_names():
    """An impossible one has its reason in place of figures, and below is the text that names the chosen one."""
    possible = Setting("own plan", "own plan", {"memory_budget": "1 GiB"}, requested=True, plan=PLAN)
    refused = Setting("<small>", "own plan", {"memory_budget": 2**20}, impossible="1 MiB is too small. Ways out: ...")
    calibration = Calibration(70_000, 765, 64, "donor & <site>", (possible, refused))
    html = ElementTree.fromstring(calibration._repr_html_())
    assert html.findtext("strong") == calibration.title
    heads, first, second = ([cell.text.strip() for cell in row] for row in html.iter("tr"))
    assert dict(zip(heads, first, strict=True)) == {
        "setting": "* own plan", "budget": "1 GiB", "effective": "25.45", "ratio": "0.40", "chunks mixed": "20 x 500",
        "pool": "1 MiB", "peak": "512 MiB", "decoded": "1.25",
    }  # fmt: skip
    assert second == ["<small>", "1 MiB", "impossible (1 MiB is too small)"]
    assert [int(cell.get("colspan", 1)) for cell in list(html.iter("tr"))[2]] == [1, 1, 6]
    assert "".join(html.itertext()).endswith("\n* is chosen: ExperimentDataset(..., memory_budget='1 GiB')")


def test_a_loader_prints_the_cells_and_how_they_come(store):
    dataset = cellfeed.ExperimentDataset(store, batch_size=32, seed=0)
    loader = cellfeed.experiment_dataloader(dataset)
    shown = {name: value.strip() for name, value in lines(loader).items()}
    assert shown["cells x genes"] == "100 x 30"
    assert shown["minibatches"] == "4 per epoch, of 32 cells"
    assert (shown["workers"], shown["device"]) == ("threads of this process", "cpu")
    assert lines(cellfeed.experiment_dataloader(dataset, num_workers=2))["workers"].strip() == "2 processes"
    assert repr(loader) == (
        "ExperimentDataLoader(100 cells x 30 genes of RNA/raw, batch_size=32, seed=0, num_workers=0, device=None)"
    )


@pytest.mark.parametrize(
    ("progress", "notebook", "shown"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_progress_bar_is_shown_in_a_notebook_and_not_in_a_log(monkeypatch, capsys, progress, notebook, shown):
    """The stderr of either is no terminal."""
    monkeypatch.setattr(_progress, "in_notebook", lambda: notebook)
    with progress_bar(progress, total=3, unit=" cells") as bar:
        bar.update(3)
    assert ("3/3" in capsys.readouterr().err) == shown


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
