"""Pages: their code runs, their links and terms are defined, and public names have an example."""

import ast
import doctest
import importlib.util
import inspect
import re
from pathlib import Path

import cellxgene_census
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tiledbsoma as soma
import torch

import cellfeed
import cellfeed.lightning
import cellfeed.scvi
from tests.support.stores import write_experiment

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:^([^\n]*)\n)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "% not run: "
"""Precedes code that cannot run here, with the reason."""


def blocks_of(page):
    """Return the Python blocks of a page that the page itself does not run, from top to bottom."""
    return [code for before, code in BLOCK.findall(page.read_text()) if not before.startswith(NOT_RUN)]


def counts_with_census_columns():
    """400 cells x 40 genes of counts, and obs with the columns that the pages use."""
    n_obs, n_vars = 400, 40
    rng = np.random.default_rng(0)
    X = sp.csr_matrix(rng.poisson(0.7, (n_obs, n_vars)).astype(np.float32))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(["basal cell", "fibroblast", "T cell"], n_obs)),
            "tissue_general": pd.Categorical(rng.choice(["tongue", "heart"], n_obs)),
            "is_primary_data": rng.random(n_obs) < 0.8,
            "dataset_id": pd.Categorical([f"data set {k}" for k in np.arange(n_obs) // 100]),
            "donor_id": pd.Categorical([f"donor {k}" for k in np.arange(n_obs) // 40]),
            "assay": pd.Categorical(["10x 3' v3"] * n_obs),
            "age": rng.integers(20, 90, n_obs).astype(np.float32),
            "batch": pd.Categorical([f"batch {k}" for k in np.arange(n_obs) % 2]),
            "perturbation": pd.Categorical(rng.choice(["non-targeting", "KLF1", "TP53"], n_obs, p=[0.6, 0.2, 0.2])),
        }
    )
    var = pd.DataFrame({"feature_id": [f"ENSG{j:011}" for j in range(n_vars)]})
    return X, obs, var


class Census(dict):
    """The return value of ``open_soma``: a collection that is also a context manager."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """The names that the code of the pages uses: an experiment, a Census, a dataset, a model."""
    X, obs, var = counts_with_census_columns()
    uri = write_experiment(tmp_path / "my_experiment", X, obs, var=var, extent=64, capacity=500)
    experiment = soma.open(uri)
    census = Census(census_data={"homo_sapiens": experiment, "mus_musculus": experiment})
    monkeypatch.setattr(cellxgene_census, "open_soma", lambda **_: census)
    monkeypatch.chdir(tmp_path)
    dataset = cellfeed.ExperimentDataset(uri, obs_column_names=["dataset_id"], seed=0)
    list(dataset)  # for statistics of one epoch
    names = {"uri": uri, "census": census, "dataset": dataset, "test": dataset, "model": torch.nn.Linear(40, 3)}
    yield {"soma": soma, "cellfeed": cellfeed, "torch": torch, **names}
    experiment.close()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=lambda page: page.stem)
def test_code_of_pages_runs(page, reader):
    for code in blocks_of(page):
        # TileDB resolves relative paths against the folder in which the process began.
        located = code.replace('"my_experiment"', repr(reader["uri"]))
        exec(compile(located, page.name, "exec"), reader)


@pytest.mark.parametrize("name", ["README.md", "docs/index.md", "docs/quickstart.md"])
def test_the_first_code_of_a_page_runs_as_pasted(name):
    """In an empty session: it needs no store, no other name and no network."""
    session = {}
    exec(compile(blocks_of(ROOT / name)[0], name, "exec"), session)
    assert session["X"].shape[1] == 765
    assert session["obs"].shape[1] == 1


def test_the_readme_and_the_front_page_are_different_texts():
    readme, front = (
        set(re.split(r"(?<=[.:])\s", re.sub(r"```.*?```", "", (ROOT / name).read_text(), flags=re.DOTALL)))
        for name in ("README.md", "docs/index.md")
    )
    assert [sentence for sentence in readme & front if len(sentence) > 30] == []


def test_code_that_is_not_run_has_a_reason():
    for page in PAGES:
        for line in page.read_text().splitlines():
            assert not line.startswith(NOT_RUN.strip()) or len(line) > len(NOT_RUN), page


MESSAGE = re.compile(r"^```text\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
"""A message of cellfeed on the troubleshooting page; … stands for names and numbers."""


def messages_in_the_source():
    """Yield each string of the package except docstrings; f-strings with … for their values."""
    for module in Path(cellfeed.__file__).parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(module.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield node.value


def test_messages_on_the_troubleshooting_page_are_those_of_the_source():
    """A search for a message finds it: its fixed parts are in one string of the package, in this order."""
    shown = MESSAGE.findall((ROOT / "docs" / "troubleshooting.md").read_text())
    known = list(messages_in_the_source())
    assert len(shown) > 5
    for message in shown:
        pattern = re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)
        assert any(pattern.search(text) for text in known), message


TESTS = re.compile(r"\{test\}`(\w+\.py)::(\w+)`")


def test_every_guarantee_names_tests_that_are_there():
    text = (ROOT / "docs" / "guarantees.md").read_text()
    for section in text.split("\n## ")[1:]:
        assert TESTS.search(section), section.splitlines()[0]
    for file, function in TESTS.findall(text):
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{function}"


def test_the_journey_leads_through_modules_that_are_there():
    package = Path(cellfeed.__file__).parent
    named = re.findall(r"`([a-z_/]+(?:/|\.py))`", (ROOT / "docs/journey.md").read_text())
    folders = {f"{path.parent.relative_to(package)}/" for path in package.glob("*/__init__.py")}
    assert folders <= set(named)
    assert [name for name in named if not (package / name).exists()] == []


TERM = re.compile(r"\{term\}`(?:[^`<]*<)?([^`>]+)>?`")


def test_the_glossary_defines_each_term_once_and_pages_use_each():
    (glossary,) = re.findall(r"```\{glossary\}\n(.*?)```", (ROOT / "docs/glossary.md").read_text(), re.DOTALL)
    defined = re.findall(r"^(\S.*)\n  \S", glossary, re.MULTILINE)
    assert len(defined) == len(re.findall(r"^\S", glossary, re.MULTILINE))  # each has a definition
    assert defined == sorted(set(defined))
    used = {term for page in PAGES for term in TERM.findall(page.read_text())}
    assert used == set(defined)


def test_links_between_pages_lead_to_files():
    """Of the README and of all pages."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            named = page.parent / target
            assert named.exists() or named.with_suffix(".md").exists(), f"{page.name} links to {target}"


def public_objects():
    """Yield the names that users call: of the package and of the modules for other libraries."""
    yield from ((name, getattr(cellfeed, name)) for name in cellfeed.__all__)
    yield from ((f"scvi.{name}", getattr(cellfeed.scvi, name)) for name in cellfeed.scvi.__all__)
    yield "lightning.ExperimentDataModule", cellfeed.lightning.ExperimentDataModule


def test_the_reference_has_a_page_for_every_public_name():
    """Tables with the option ``toctree`` make the pages."""
    tables = re.findall(
        r"autosummary::\n   :toctree: reference\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL
    )
    listed = {name for table in tables for name in re.findall(r"^   ([\w.]+)$", table, re.MULTILINE)}
    assert {name.removeprefix("scvi.") for name, _ in public_objects()} - listed == set()


def extension_of_sphinx(name):
    pytest.importorskip("sphinx")
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "_ext" / f"{name}.py")
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    return extension


RETURNS = re.compile(r"^Returns\n-+\n(.+?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)


def test_the_reference_shows_returns_and_properties_as_they_are_written():
    """No line of *Returns*, and no words before the colon of a property, become a type."""
    extension = extension_of_sphinx("docstrings")
    from sphinx.ext.napoleon import Config

    app = type("App", (), {"config": Config(napoleon_use_rtype=False)})

    def shown(what, thing):
        lines = inspect.getdoc(thing).splitlines()
        extension.process(app, what, "name", thing, None, lines)
        return "\n".join(lines)

    kind = cellfeed.ExperimentDataset
    returning = [
        thing for _, thing in [*public_objects(), *vars(kind).items()] if RETURNS.search(inspect.getdoc(thing) or "")
    ]
    assert len(returning) > 10
    for thing in returning:
        (text,) = RETURNS.findall(inspect.getdoc(thing))
        (field,) = re.findall(r"^:returns: (.+?)(?=\n\n|\n:|\Z)", shown("method", thing), re.MULTILINE | re.DOTALL)
        assert field.split() == text.split()
    for name in ("shape", "obs_joinids", "var_joinids"):
        own = inspect.getattr_static(kind, name)
        assert shown("property", own) == inspect.getdoc(own)


FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)


def test_formulas_become_mathml_without_a_rest_of_latex():
    """A reader without a network sees formulas, not their LaTeX source."""
    converter = pytest.importorskip("latex2mathml.converter")
    formulas = [block or inline for block, inline in FORMULA.findall((ROOT / "docs" / "mixing.md").read_text())]
    assert len(formulas) > 20
    for formula in formulas:
        shown = converter.convert(formula)
        assert shown.startswith("<math")
        assert "\\" not in re.sub("<[^>]*>", "", shown), formula


def test_public_names_have_an_example():
    """It runs with the other doctests."""
    assert [name for name, thing in public_objects() if not examples_of(thing)] == []


def examples_of(thing):
    return doctest.DocTestParser().get_examples(inspect.getdoc(thing) or "")


def test_the_page_of_a_class_has_the_members_that_users_call():
    """Not the fields of a tuple, the members that other libraries define, or the hooks that Lightning calls."""
    skip = extension_of_sphinx("docstrings").skip

    def members(kind):
        found = {name: inspect.getattr_static(kind, name) for name in dir(kind) if not name.startswith("_")}
        return {name for name, thing in found.items() if skip(None, "class", name, thing, False, None) is None}

    assert members(cellfeed.Minibatch) == {"to", "as_dict"}
    assert {"obs_encoders", "train_dataloader", "state_dict"} < members(cellfeed.lightning.ExperimentDataModule)
    lightnings = {"hparams", "setup", "on_after_batch_transfer", "prepare_data"}
    assert members(cellfeed.lightning.ExperimentDataModule).isdisjoint(lightnings)
    shared = {"shape", "obs_encoders", "epoch", "set_epoch", "state_dict", "load_state_dict", "stats"}
    for kind in (cellfeed.ExperimentDataset, cellfeed.JoinedDataset):
        assert members(kind) == shared | {name for name in vars(kind) if not name.startswith("_")}


MARKDOWN = {
    "the {term}`ranks <rank>` of an {term}`epoch`": "the ranks of an epoch",
    "{meth}`~cellfeed.Plan.as_dict`, {func}`cellfeed.obs_filter`": "`as_dict`, `cellfeed.obs_filter`",
    "(measured)=\n% not run: no network\n## Measured": "## Measured",
    "[Census](#census), [a file](own_data.md#a-file), [scanpy](https://scanpy.org)": {
        "": "Census, a file, [scanpy](https://scanpy.org)",
        "https://a.org/tutorials/scvi.html": (
            "[Census](https://a.org/tutorials/scvi.html#census), "
            "[a file](https://a.org/tutorials/own_data.html#a-file), [scanpy](https://scanpy.org)"
        ),
    },
}


@pytest.mark.parametrize("address", ["", "https://a.org/tutorials/scvi.html"])
@pytest.mark.parametrize(("markdown", "expected"), MARKDOWN.items())
def test_notebooks_have_text_that_jupyter_shows(markdown, expected, address):
    text, pictures = extension_of_sphinx("notebooks").plain(markdown, address)
    assert text == (expected if isinstance(expected, str) else expected[address])
    assert pictures == []


RUN = [page for page in PAGES if "file_format: mystnb" in page.read_text()]
"""Pages whose code a build runs, and which have a notebook."""


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_notebooks_of_pages_are_complete(page):
    """No role of Sphinx is left, and pictures are inside."""
    nbformat = pytest.importorskip("nbformat")
    extension = extension_of_sphinx("notebooks")
    text = page.read_text().split("---\n", maxsplit=2)[2]
    cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell("import cellfeed")]
    raw = nbformat.v4.new_notebook(cells=cells, metadata={"file_format": "mystnb", "source_map": []})
    shown, code = extension.convert(raw, page.parent, "").cells
    assert code.source == "import cellfeed"
    assert re.findall(r"\{\w+\}`", shown.source) == []
    assert ".md)" not in shown.source
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert set(shown.get("attachments", {})) == {Path(name).name for name in pictures}
    assert shown.source.count("](attachment:") == len(pictures)


FAULTS = {
    '<script src="https://cdn.org/a.js"></script>': "loads https://cdn.org/a.js",
    '<link rel="stylesheet" href="//cdn.org/a.css">': "loads //cdn.org/a.css",
    '<img alt="a" src="http://badge.org/a.svg">': "loads http://badge.org/a.svg",
    '<p style="background: url(https://a.org/b.png)">': "loads https://a.org/b.png",
    '<img src="here.png">': "here.png has no alternative text",
    '<img alt="here.png" src="here.png">': "here.png has no alternative text",
    '<img alt="a" src="gone.png">': "links to gone.png, which does not exist",
    '<a href="gone.html">': "links to gone.html, which does not exist",
    '<a href="#gone">': "links to #gone, which does not exist",
    '<a href="../index.html#gone">': "links to ../index.html#gone, which does not exist",
}
SOUND = """<a href="https://a.org">, <a href="../index.html#there">, <a href="#here" id="here">, <link rel="canonical"
href="https://a.org">, <img alt="A cell" src="here.png">, <img alt="A cell" src="data:image/png;base64,AA">"""


@pytest.mark.parametrize(("html", "fault"), FAULTS.items())
def test_a_built_page_needs_no_network_and_its_links_and_pictures_are_complete(tmp_path, html, fault):
    """Each build checks its pages, and fails with one of these faults."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "here.png").touch()
    (tmp_path / "index.html").write_text('<p id="there">')
    page = tmp_path / "folder" / "page.html"
    page.write_text(SOUND)
    faults = extension_of_sphinx("checked").faults
    assert list(faults(tmp_path)) == []
    page.write_text(SOUND + html)
    (found,) = faults(tmp_path)
    assert found.startswith("folder/page.html")
    assert found.endswith(fault)


def test_a_style_loads_no_font_from_the_network(tmp_path):
    (tmp_path / "a.css").write_text("a { background: url(a.png) } @import 'https://fonts.org/a.css';")
    assert list(extension_of_sphinx("checked").faults(tmp_path)) == ["a.css loads https://fonts.org/a.css"]


# Machado, Oliveira and Fernandes (2009): linear RGB as it looks without one kind of cones.
COLOUR_VISIONS = {
    "all": np.eye(3),
    "no L": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no M": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no S": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
LMS_OF_RGB = [[0.412221, 0.536333, 0.051446], [0.211903, 0.680700, 0.107397], [0.088302, 0.281719, 0.629979]]
OKLAB_OF_LMS = [[0.210454, 0.793618, -0.004072], [1.977998, -2.428592, 0.450594], [0.025904, 0.782772, -0.808676]]


@pytest.mark.parametrize("vision", COLOUR_VISIONS)
def test_colours_of_figures_look_different_to_people_with_any_colour_vision(vision):
    """At least by the distance 0.06 in the space OKLab, in which black and white have the distance 1."""
    matplotlib = pytest.importorskip("matplotlib")
    from benchmarks import figure3, rare_types

    style = matplotlib.rc_params_from_file(ROOT / "docs/_static/matplotlibrc", use_default_template=False)
    cycle = style["axes.prop_cycle"].by_key()["color"]
    for colours in (cycle, figure3.COLOURS.values(), rare_types.COLOURS.values()):
        rgb = np.array([matplotlib.colors.to_rgb(colour) for colour in colours])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen = np.clip(linear @ np.transpose(COLOUR_VISIONS[vision]), 0, 1)
        places = np.cbrt(seen @ np.transpose(LMS_OF_RGB)) @ np.transpose(OKLAB_OF_LMS)
        distances = np.linalg.norm(places[:, None] - places, axis=2)[np.triu_indices(len(places), 1)]
        assert distances.min() > 0.06
