"""Notebooks: that in examples/ runs in a kernel, its outputs are tables, and workers and bars work from its cells."""

from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from tests.support.census import write_tongues
from tests.support.processes import ENVIRONMENT, PATIENCE_S, ROOT

pytest.importorskip("cellxgene_census", reason="cellxgene-census is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat")

OFFLINE = """
import cellxgene_census
open_online = cellxgene_census.open_soma
cellxgene_census.open_soma = lambda **_: open_online(uri={uri!r})
"""

INTERRUPTED = """
import os, signal
FACTOR = 2
class Times:
    def __call__(self, X):
        return X * FACTOR

def begin(worker):
    print("worker", worker, "begins", flush=True)

dataset = cellfeed.ExperimentDataset({uri!r} + "/census_data/homo_sapiens", seed=0, transform=Times())
loader = cellfeed.experiment_dataloader(dataset, num_workers=1, worker_init_fn=begin)
for X, obs in loader:
    os.killpg(os.getpgrp(), signal.SIGINT)  # as a notebook does: to the kernel and its workers
"""

WORKERS = """
plain = dataset._with(transform=None)
sum(X.sum().item() for X, obs in loader) / sum(X.sum().item() for X, obs in plain)
"""

BAR = """
dataset.write_copy({copy!r}, progress=True)
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after a run on a small Census, and cells that a user might append."""
    folder = tmp_path_factory.mktemp("notebooks")
    uri, obs = write_tongues(folder / "census")
    notebook = nbformat.read(ROOT / "examples/census_classifier.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # a repository keeps code, without its output
    more = {"interrupted": INTERRUPTED, "workers": WORKERS, "bar": BAR}
    cells = {
        name: nbformat.v4.new_code_cell(code.format(uri=uri, copy=str(folder / "copy.zarr")))
        for name, code in more.items()
    }
    cells["interrupted"].metadata["tags"] = ["raises-exception"]
    written = list(notebook.cells)
    notebook.cells = [nbformat.v4.new_code_cell(OFFLINE.format(uri=uri)), *written, *cells.values()]
    client = nbclient.NotebookClient(notebook, timeout=PATIENCE_S, kernel_name="python3")
    client.execute(cwd=str(folder), env=ENVIRONMENT)
    n_obs = int(((obs.tissue_general == "tongue") & obs.is_primary_data).sum())
    return SimpleNamespace(cells=written, n_obs=n_obs, **cells)


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def shown(cells):
    """Return the objects that cells show as HTML, by the titles of their tables."""
    outputs = (output.data["text/html"] for cell in cells for output in cell.get("outputs", ()) if "data" in output)
    tables = map(ElementTree.fromstring, outputs)
    return {
        html.findtext("strong"): {row.findtext("th"): row.findtext("td") for row in html.iter("tr")} for html in tables
    }


def test_the_notebook_of_the_article_learns_and_shows_tables(executed):
    """What it shows needs neither scripts nor the network."""
    tables = shown(executed.cells)
    assert list(tables) == ["ExperimentDataPipe", "Plan", "ExperimentDataLoader", "Stats"]
    assert tables["ExperimentDataPipe"]["cells x genes"] == f"{executed.n_obs} x 50"
    assert tables["ExperimentDataLoader"]["part"] == "train (weights=[0.8, 0.2], seed=1)"
    n_train = round(executed.n_obs * 0.8)
    assert tables["Stats"]["received"].startswith(f"{5 * n_train:,} cells in 5 minibatches")
    text = "".join(map(printed, (cell for cell in executed.cells if cell.cell_type == "code")))
    assert text.count("loss") == 5
    assert f"{executed.n_obs - n_train} cells of the test set are right" in text


def test_workers_receive_what_a_notebook_defines(executed):
    """A transform, the globals that it uses, and ``worker_init_fn``; also after a cell was interrupted."""
    assert executed.interrupted.outputs[-1].ename == "KeyboardInterrupt"
    assert "worker 0 begins\n" in printed(executed.workers)
    assert executed.workers.outputs[-1].data["text/plain"] == "2.0"


def test_a_notebook_shows_progress(executed):
    """As text without ipywidgets; stderr is no terminal there."""
    assert "300/300" in printed(executed.bar)
