"""``cellfeed copy`` writes the cells, genes and columns that were asked for, of each kind of source."""

import functools
import json
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import cellfeed
from cellfeed.command.cli import main
from cellfeed.plan import budget
from cellfeed.sources.anndata.copies import layout
from cellfeed.sources.anndata.copies.part_writer import PartWriter
from cellfeed.sources.soma import layer as soma_layer
from cellfeed.sources.soma import tables
from tests.support.stores import addressed, labelled_obs
from tests.support.studies import KINDS, make_adata, obs_of_every_type, write


def copy(*arguments, out):
    """Run the command, and return the copy as anndata reads it."""
    assert main(["copy", *map(str, arguments), str(out)]) == 0
    return read(out)


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of anndata
        adata = anndata.read_zarr(path)
    for name in ("indices", "indptr"):  # scipy has no function for uint16, and 1.12 none for two types
        setattr(adata.X, name, getattr(adata.X, name).astype(np.int32))
    return adata


def assert_same_cells(copied, adata, columns=None):
    """The copy has the cells of an AnnData, in any order, with their names, values and columns of obs."""
    assert sorted(copied.obs_names) == sorted(adata.obs_names)
    assert list(copied.var_names) == list(adata.var_names)
    assert (sp.csr_matrix(adata.X) != copied[adata.obs_names].X).nnz == 0
    obs = copied.obs.loc[adata.obs_names]  # an AnnData that is sliced loses categories
    for name in adata.obs if columns is None else columns:
        pd.testing.assert_series_equal(obs[name].astype(object), adata.obs[name].astype(object), check_names=False)


def labelled(n_obs, prefix, genes, **columns):
    """An AnnData of named cells and genes."""
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical([f"type {i % 3}" for i in range(n_obs)]), **columns},
        index=[f"{prefix}{i}" for i in range(n_obs)],
    )
    return make_adata(n_obs, len(genes), obs=obs, var=pd.DataFrame({"length": range(len(genes))}, index=genes))


@pytest.fixture
def tongue(tmp_path):
    """An AnnData of 60 cells and 20 genes, and its file."""
    adata = labelled(60, "t", [f"G{j}" for j in range(20)], score=np.linspace(0, 1, 60))
    return SimpleNamespace(adata=adata, path=write(adata, tmp_path, name="tongue").path)


# Sources


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [lambda X: X, lambda X: X.toarray()], ids=["CSR", "dense"])
def test_an_anndata_is_copied_with_names_and_columns(tmp_path, kind, change):
    obs = obs_of_every_type().drop(columns="all_missing").rename_axis("barcode")
    adata = make_adata(change=change, obs=obs)
    copied = copy(write(adata, tmp_path, kind).path, out=tmp_path / "copy.zarr")
    assert_same_cells(copied, adata)
    assert copied.obs_names.name == "barcode"
    assert copied.var_names.name is None
    assert copied.obs.columns.tolist() == [*obs, "soma_joinid", "nnz", "raw_sum"]
    for name in set(obs) - {"text"}:  # which becomes categorical
        assert copied.obs[name].dtype == obs[name].dtype
    ordered = copied[adata.obs_names]
    assert ordered.obs["soma_joinid"].tolist() == [0, 1, 2, 3]
    assert ordered.obs["nnz"].tolist() == np.diff(sp.csr_matrix(adata.X).indptr).tolist()
    assert ordered.obs["raw_sum"].tolist() == np.asarray(sp.csr_matrix(adata.X).sum(axis=1)).ravel().tolist()


def test_names_that_repeat_stay(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata, that names repeat
        adata = make_adata(obs=pd.DataFrame(index=["a", "a", "b", "a"]))
        copied = copy(write(adata, tmp_path).path, out=tmp_path / "copy.zarr")
    by_row = copied.obs.sort_values("soma_joinid")
    assert by_row.index.tolist() == ["a", "a", "b", "a"]


def test_an_experiment_is_copied(tmp_path, store):
    copied = copy(store, "--where", "label == 'type 1'", out=tmp_path / "copy.zarr")
    obs = labelled_obs(100)
    chosen = np.flatnonzero(obs["label"] == "type 1")
    by_row = copied[np.argsort(copied.obs["soma_joinid"])]
    assert by_row.obs["soma_joinid"].tolist() == chosen.tolist()
    assert (addressed(100, 30)[chosen] != by_row.X).nnz == 0


def test_all_columns_of_obs_come_from_one_read(tmp_path, store, monkeypatch):
    """A read opens obs, which takes longer than the values of a column."""
    addresses = []

    def read_columns(address, *arguments):
        addresses.append(str(address))
        return tables.read_columns(address, *arguments)

    monkeypatch.setattr(soma_layer, "read_columns", read_columns)
    copied = copy(store, out=tmp_path / "copy.zarr")
    assert len(copied.obs.columns) > 3
    assert [Path(address).name for address in addresses].count("obs") == 1


def test_a_copy_is_mixed_from_its_first_cell_on(tmp_path, store, monkeypatch):
    """An epoch starts with few chunks, so that a training loop starts soon; nothing waits for the start of a copy."""
    monkeypatch.setattr(budget, "FIRST_NNZ", 30)
    copied = copy(store, out=tmp_path / "copy.zarr")
    row_blocks = copied.obs["soma_joinid"].to_numpy() // 8
    assert len(set(row_blocks[:8])) > 4  # of 13


def test_a_collection_is_copied(tmp_path, capsys):
    parts = [labelled(10, prefix, ["A", "B", "C"]) for prefix in "xy"]
    for k, part in enumerate(parts):
        (tmp_path / "all.zarr").mkdir(exist_ok=True)
        write(part, tmp_path / "all.zarr", "zarr3", f"dataset_{k}")
        (tmp_path / f"all.zarr/dataset_{k}.zarr").rename(tmp_path / f"all.zarr/dataset_{k}")
    (tmp_path / "all.zarr/zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    copied = copy(tmp_path / "all.zarr", out=tmp_path / "copy.zarr")
    assert_same_cells(copied, anndata.concat(parts))


def test_the_copy_of_a_copy_is_equal(tmp_path, tongue):
    first = copy(tongue.path, out=tmp_path / "first.zarr")
    second = copy(tmp_path / "first.zarr", out=tmp_path / "second.zarr")
    assert_same_cells(second, first)
    assert sorted(second.obs) == sorted(first.obs)


def test_a_copy_trains(tmp_path, tongue, capsys):
    copy(tongue.path, out=tmp_path / "copy.zarr")
    shown = capsys.readouterr()
    assert "60 cells x 20 genes" in shown.out
    assert "bytes per value" in shown.out
    lines = "\n".join(line.strip() for line in shown.out.splitlines() if line.startswith("    "))
    received = {"cellfeed": cellfeed, "n": 0}
    exec(lines.replace("...", "n += len(X)"), received)
    assert received["n"] == 60
    assert shown.err.startswith(f"{tongue.path}: X is taken; X holds integers of at least 0")


def test_the_figures_are_json(tmp_path, tongue, capsys):
    copy(tongue.path, "--json", "--compression", "zstd", out=tmp_path / "copy.zarr")
    result = json.loads(capsys.readouterr().out)
    assert (result["n_obs"], result["n_vars"], result["nnz"]) == (60, 20, tongue.adata.X.nnz)
    assert result["n_bytes"] == sum(
        file.stat().st_size for file in (tmp_path / "copy.zarr").rglob("*") if file.is_file()
    )


# Cells, genes, columns and layers


def test_cells_genes_and_columns_are_chosen(tmp_path, tongue):
    chosen = tongue.adata[tongue.adata.obs["cell_type"] == "type 2", ["G3", "G11"]]
    options = ["--where", "cell_type == 'type 2'", "--obs", "cell_type"]
    (tmp_path / "genes.txt").write_text("G11\n\nG3\n")
    for k, genes in enumerate(["G3,G11", tmp_path / "genes.txt"]):
        copied = copy(tongue.path, *options, "--genes", genes, out=tmp_path / f"copy{k}.zarr")
        assert_same_cells(copied, chosen, ["cell_type"])
        assert list(copied.obs) == ["cell_type", "soma_joinid", "nnz", "raw_sum"]
    copied = copy(tongue.path, *options, "--genes", "3,11", "--var-column", "length", out=tmp_path / "copy.zarr")
    assert_same_cells(copied, chosen, ["cell_type"])


def with_layers(scaled="X"):
    adata = labelled(20, "c", ["A", "B", "C", "D"])
    counts = adata.X.copy()
    adata.layers["counts"] = counts
    adata.X = counts * np.float32(0.3)
    adata.raw = anndata.AnnData(counts * 2, obs=adata.obs, var=pd.DataFrame(index=["A", "B", "C", "E"]))
    return adata, counts


@pytest.mark.parametrize(
    ("options", "factor", "genes"),
    [
        ([], 1, "ABCD"),
        (["--layer", "counts"], 1, "ABCD"),
        (["--layer", "X"], np.float32(0.3), "ABCD"),
        (["--layer", "raw/X"], 2, "ABCE"),
    ],
)
def test_a_layer_is_chosen_or_counts_are_found(tmp_path, capsys, options, factor, genes):
    adata, counts = with_layers()
    copied = copy(write(adata, tmp_path).path, *options, out=tmp_path / "copy.zarr")
    assert list(copied.var_names) == list(genes)
    assert (counts * factor != copied[adata.obs_names].X).nnz == 0
    assert ("layers/counts is taken; layers/counts holds integers" in capsys.readouterr().err) is (not options)


def test_values_without_counts_are_copied_with_a_warning(tmp_path, capsys):
    adata = make_adata(change=lambda X: X * np.float32(0.5))
    with pytest.warns(UserWarning, match="no layer of .* holds counts"):
        copied = copy(write(adata, tmp_path).path, out=tmp_path / "copy.zarr")
    assert_same_cells(copied, adata)
    assert "raw_sum" not in copied.obs
    assert "X is taken; no layer holds counts: X holds values such as" in capsys.readouterr().err


# Several studies


@pytest.fixture
def studies():
    """Two AnnData whose genes overlap, in different orders, and whose columns differ."""
    lung = labelled(30, "cell", ["A", "B", "C", "D"], age=np.arange(30), soma_joinid=np.arange(30) + 7)
    liver = labelled(20, "cell", ["D", "E", "B"], smoker=[True, False] * 10)
    return {"lung": lung, "liver": liver}


@pytest.mark.parametrize("genes", ["union", "intersection"])
@pytest.mark.parametrize("obs", ["union", "intersection"])
def test_joined_studies_equal_those_of_anndata(tmp_path, studies, genes, obs):
    paths = [write(adata, tmp_path, kind, name).path for (name, adata), kind in zip(studies.items(), KINDS)]  # noqa: B905
    copied = copy(*paths, "--join-genes", genes, "--join-obs", obs, out=tmp_path / "copy.zarr")
    how = {"union": "outer", "intersection": "inner"}[genes]
    expected = anndata.concat(studies, join=how, label="study", index_unique="-", fill_value=0)
    assert sorted(copied.var_names) == sorted(expected.var_names)
    assert sorted(copied.obs_names) == sorted(expected.obs_names)
    ordered = copied[expected.obs_names, expected.var_names]
    assert (ordered.X != expected.X).nnz == 0
    assert ordered.obs["soma_joinid"].tolist() == list(range(50))
    assert ordered.obs["study"].tolist() == expected.obs["study"].tolist()
    assert ordered.obs["cell_type"].tolist() == expected.obs["cell_type"].tolist()
    assert ({"age", "smoker"} <= set(copied.obs)) is (obs == "union")
    if obs == "union":
        assert ordered.obs["age"].isna().tolist() == [False] * 30 + [True] * 20
        assert ordered.obs["age"][:30].tolist() == list(range(30))
        assert ordered.obs["smoker"][30:].tolist() == [True, False] * 10
    lengths = {**studies["liver"].var["length"], **studies["lung"].var["length"]}
    assert copied.var["length"].to_dict() == {gene: lengths[gene] for gene in copied.var_names}


def test_cells_of_joined_studies_are_chosen_by_study_and_gene(tmp_path, studies):
    paths = [write(adata, tmp_path, name=name).path for name, adata in studies.items()]
    options = ["--where", "study == 'liver' and smoker == True", "--genes", "A,E"]
    copied = copy(*paths, *options, out=tmp_path / "copy.zarr")
    liver = studies["liver"][::2]
    assert copied.obs["soma_joinid"].sort_values().tolist() == list(range(30, 50, 2))
    ordered = copied[[f"{name}-liver" for name in liver.obs_names]]
    assert (ordered[:, "E"].X != liver[:, "E"].X).nnz == 0
    assert ordered[:, "A"].X.nnz == 0


def test_genes_are_joined_by_a_column(tmp_path, studies):
    studies["liver"].var["symbol"] = ["D", "E", "B"]
    studies["liver"].var_names = ["ENSG1", "ENSG2", "ENSG3"]
    studies["lung"].var["symbol"] = studies["lung"].var_names
    paths = [write(adata, tmp_path, name=name).path for name, adata in studies.items()]
    copied = copy(*paths, "--var-column", "symbol", out=tmp_path / "copy.zarr")
    assert list(copied.var_names) == ["A", "B", "C", "D", "E"]


# Bad input


def csc(folder):
    return [write(make_adata(change=lambda X: X.tocsc()), folder, name="csc").path, "--layer", "X"]


def nothing(folder):
    return [folder / "nothing.h5ad"]


def text(folder):
    (folder / "notes.txt").write_text("notes")
    return [folder / "notes.txt"]


def without_values(folder):
    return [write(anndata.AnnData(obs=make_adata().obs, var=make_adata().var), folder).path]


def cells(*options):
    return lambda folder: [write(make_adata(), folder).path, *options]


def twice(folder):
    return [*cells()(folder), *cells()(folder)]


def nothing_in_common(folder):
    other = make_adata(var=pd.DataFrame(index=["x", "y", "z"]))
    return [*cells()(folder), write(other, folder, name="other").path, "--join-genes", "intersection"]


BAD = [
    (csc, "X of '.*csc.h5ad' is in CSC, by genes.*adata.X = adata.X.tocsr"),
    (nothing, "SOURCE='.*nothing.h5ad' does not exist; give the path of an AnnData"),
    (text, "SOURCE='.*notes.txt' is a file of another kind than HDF5"),
    (without_values, "has neither X, layers nor raw/X"),
    (cells("--layer", "cuonts"), "layer='cuonts' is not a layer of"),
    (cells("--obs", "tissue"), "obs has no column 'tissue'"),
    (cells("--genes", "g0,TP53"), "1 of 2 genes are not in the store: 'TP53'"),
    (cells("--where", "tissue == 'lung'"), "tissue"),
    (cells("--where", "obs_id == 'c9'"), "obs_query selects nothing: \"obs_id == 'c9'\""),
    (cells("--measurement-name", "ATAC"), "an AnnData has one measurement"),
    (cells("--memory-budget", "much"), "memory_budget='much'"),
    (twice, "SOURCE='.*cells.h5ad' is given twice"),
    (nothing_in_common, "the AnnData have no gene in common"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_named_before_anything_is_written(tmp_path, capsys, arguments, message):
    given = [str(argument) for argument in arguments(tmp_path)]
    assert main(["copy", *given, str(tmp_path / "copy.zarr")]) == 2
    assert not list(tmp_path.glob("copy.zarr*"))
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("cellfeed: ")
    assert re.search(message, error)


def test_an_experiment_is_copied_alone(tmp_path, capsys, store, tongue):
    assert main(["copy", store, tongue.path, str(tmp_path / "copy.zarr")]) == 2
    assert "is a SOMA experiment, which is copied alone" in capsys.readouterr().err


def test_what_exists_is_not_overwritten(tmp_path, capsys, tongue):
    (tmp_path / "copy.zarr").mkdir()
    assert main(["copy", tongue.path, str(tmp_path / "copy.zarr")]) == 2
    assert f"OUT={str(tmp_path / 'copy.zarr')!r} exists; give another folder, or remove it" in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(tmp_path, capsys, monkeypatch, tongue):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    assert main(["copy", tongue.path, str(tmp_path / "copy.zarr")]) == 2
    assert re.search("the copy takes about .* B, and '.*' has 100 B free", capsys.readouterr().err)
    assert not list(tmp_path.glob("copy.zarr*"))


# Interruptions


def test_a_copy_that_is_interrupted_is_continued(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(layout, "Layout", functools.partial(layout.Layout, chunk_size=512, shard_chunks=2))
    adata = labelled(5000, "c", [f"G{j}" for j in range(8)])
    path, out = write(adata, tmp_path).path, tmp_path / "copy.zarr"
    append, n_appended = PartWriter.append, []

    def appending(writer, rows, layers):
        if len(n_appended) == 3:
            raise KeyboardInterrupt
        append(writer, rows, layers)
        n_appended.append(len(rows))

    monkeypatch.setattr(PartWriter, "append", appending)
    assert main(["copy", path, str(out)]) == 130
    assert "copy.zarr.partial keeps what was written: the same command continues the copy" in capsys.readouterr().err
    assert not out.exists()
    assert main(["copy", path, str(out), "--where", "cell_type == 'type 1'"]) == 2
    assert "is the beginning of a copy of other cells" in capsys.readouterr().err
    n_appended.clear()
    copied = copy(path, out=out)
    assert 0 < sum(n_appended) < 5000
    assert_same_cells(copied, adata)
