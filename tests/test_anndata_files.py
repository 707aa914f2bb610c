"""What users keep as AnnData is recognised and read, and for everything else a message says what to do."""

import pickle
import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from fsspec.implementations.memory import MemoryFileSystem

from cellfeed.errors import SelectionError
from cellfeed.sources.anndata.files import AnnDataFile, anndata_files, identify
from cellfeed.sources.anndata.layers import find_counts, find_layer, layer_names
from cellfeed.sources.anndata.tables import columns_of, length_of, read_names, read_table
from tests.support.stores import addressed, write_experiment
from tests.support.studies import KINDS, make_adata, obs_of_every_type, write


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def edit(file):
    """Open the root for writing, without the consolidated metadata, which would hide changes."""
    if file.kind == "h5ad":
        return h5py.File(file.path, "r+")
    return zarr.open_group(file.path, mode="r+", use_consolidated=False)


def consolidate(root):
    if isinstance(root, zarr.Group):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(root.store)
    else:
        root.close()


# What is there


def test_an_anndata_is_found_and_its_place_is_picklable(tmp_path, kind):
    file = write(make_adata(), tmp_path, kind)
    assert identify(file.path) == (kind.rstrip("23"), (file,), "")
    assert pickle.loads(pickle.dumps(file)) == file
    assert file.name == "cells"
    with file.open() as root:
        assert columns_of(root, "obs") == ("_index", [])
        assert (length_of(root, "obs"), length_of(root, "var")) == (4, 3)


def test_files_of_hdf5_are_closed(tmp_path):
    with write(make_adata(), tmp_path).open() as root:
        pass
    assert not root


def test_addresses_of_files_are_paths(tmp_path):
    file = write(make_adata(), tmp_path, "zarr3")
    assert anndata_files(f"file://{file.path}/") == anndata_files(tmp_path / "cells.zarr") == (file,)


def write_collection(root, numbers, **options):
    zarr.open_group(root, mode="w")
    for number in numbers:
        write(make_adata(**options), root, "zarr3", f"dataset_{number}")
        (root / f"dataset_{number}.zarr").rename(root / f"dataset_{number}")


def test_members_of_a_collection_are_in_the_order_of_their_numbers(tmp_path):
    root = tmp_path / "collection.zarr"
    write_collection(root, [10, 2, 0])
    write_collection(tmp_path / "other", [7])
    (tmp_path / "other" / "dataset_7").rename(root / ".dataset_7")  # a part that is being written
    found = identify(root)
    assert found.kind == "collection"
    assert [file.path for file in found.files] == [f"{root}/dataset_{k}" for k in (0, 2, 10)]


def test_a_damaged_member_is_named(tmp_path):
    write_collection(tmp_path / "collection", [0, 1])
    root = zarr.open_group(tmp_path / "collection/dataset_1", mode="r+", use_consolidated=False)
    del root["obs"].attrs["encoding-type"]
    consolidate(root)
    with pytest.raises(SelectionError, match="has a member 'dataset_1' that has obs without encoding attributes"):
        anndata_files(tmp_path / "collection")


OTHERS = {
    "nothing": (lambda path: None, "nothing", "does not exist; give the path of an AnnData"),
    "text": (lambda path: path.write_text("cells"), "other", "is a file of another kind than HDF5"),
    "folder": (lambda path: path.mkdir(), "other", "is a folder without zarr metadata; give the path"),
    "soma": (lambda path: write_experiment(path, addressed(3, 2)), "soma", "is a SOMA experiment"),
    "array": (
        lambda path: zarr.create_array(path, shape=(3,), dtype="i4"), "other", "is a single zarr array of shape (3,)"
    ),
    "group": (
        lambda path: zarr.open_group(path, mode="w").create_group("images"),
        "other", "lacks obs and var of an AnnData, and holds 'images'",
    ),
    "spatialdata": (
        lambda path: zarr.open_group(path, mode="w").create_group("tables"),
        "other", "is a SpatialData; give one of its tables",
    ),
    "10x": (
        lambda path: h5py.File(path, "w").create_group("matrix").file.close(),
        "other", "is an HDF5 file of 10x Genomics; rewrite it: scanpy.read_10x_h5",
    ),
    "loom": (
        lambda path: [h5py.File(path, "a").create_group(name).file.close() for name in ("matrix", "row_attrs")],
        "other", "is a Loom file; rewrite it: anndata.io.read_loom",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "kind", "message"), OTHERS.values(), ids=OTHERS)
def test_everything_else_is_described(tmp_path, make, kind, message):
    path = tmp_path / "place"
    make(path)
    assert identify(path).kind == kind
    with pytest.raises(SelectionError) as caught:
        anndata_files(path, "SOURCE")
    assert str(caught.value).startswith(f"SOURCE={str(path)!r} {message}")


def test_the_files_in_a_folder_are_suggested(tmp_path):
    file = write(make_adata(), tmp_path)
    with pytest.raises(SelectionError, match=f"give what it contains: '{file.path}'"):
        anndata_files(tmp_path)


def test_home_is_not_expanded():
    with pytest.raises(SelectionError, match="'~' is not expanded"):
        anndata_files("~/cells.h5ad")


@pytest.mark.parametrize("element", ["obs", "X", "obsm", "layers"])
def test_a_part_of_an_anndata_is_not_a_whole_one(tmp_path, element):
    file = write(make_adata(), tmp_path, "zarr3")
    with pytest.raises(SelectionError, match="is one element of an AnnData, .*; give the path of the whole AnnData"):
        anndata_files(f"{file.path}/{element}")


def test_a_mudata_is_named(tmp_path):
    file = write(make_adata(), tmp_path)
    root = edit(file)
    root.attrs["encoding-type"] = "MuData"
    consolidate(root)
    with pytest.raises(SelectionError, match="is a MuData; give one of its modalities"):
        anndata_files(file.path)


@pytest.mark.parametrize(("axis", "version"), [("obs", None), ("obs", "0.1.0"), ("var", None), ("var", "9.0.0")])
def test_encodings_of_another_time_are_refused(tmp_path, kind, axis, version):
    file = write(make_adata(), tmp_path, kind)
    root = edit(file)
    if version is None:
        del root[axis].attrs["encoding-type"]
    else:
        root[axis].attrs["encoding-version"] = version
    consolidate(root)
    found = "without encoding attributes" if version is None else f"of encoding 'dataframe', version '{version}'"
    with pytest.raises(SelectionError, match=f"has {axis} {found}.*; rewrite it: anndata.read_"):
        anndata_files(file.path)


def test_a_root_without_attributes_is_recognised_by_its_elements(tmp_path, kind):
    """Other programs, and anndata before 0.8, write no attributes there."""
    file = write(make_adata(), tmp_path, kind)
    root = edit(file)
    for name in list(root.attrs):
        del root.attrs[name]
    consolidate(root)
    assert anndata_files(file.path) == (file,)


@pytest.fixture
def remote(tmp_path):
    """A function that copies a local folder to an address on a remote store."""
    system = MemoryFileSystem()

    def upload(path, name):
        for file in path.rglob("*"):
            if file.is_file():
                system.pipe(f"/{name}/{file.relative_to(path)}", file.read_bytes())
        return f"memory://{name}"

    yield upload
    system.store.clear()


def test_remote_stores_are_identified(tmp_path, remote):
    write_collection(tmp_path / "parts", [0, 1])
    write_experiment(tmp_path / "soma", addressed(3, 2))
    file = write(make_adata(), tmp_path, "zarr3")
    uri = remote(tmp_path / "cells.zarr", "bucket/cells.zarr")
    assert identify(uri) == ("zarr", (AnnDataFile(uri, "zarr"),), "")
    assert list(read_names(AnnDataFile(uri, "zarr"), "var")) == list(read_names(file, "var"))
    uri = remote(tmp_path / "parts", "bucket/parts")
    assert [file.path for file in identify(uri).files] == [f"{uri}/dataset_0", f"{uri}/dataset_1"]
    assert identify(remote(tmp_path / "soma", "bucket/soma")).kind == "soma"
    assert identify("memory://bucket/nowhere").kind == "nothing"
    assert "copy it to a local disk" in identify("s3://bucket/cells.h5ad").message
    assert identify("tiledb://name/cells").kind == "soma"


def test_messages_hide_credentials():
    with pytest.raises(SelectionError) as caught:
        anndata_files("https://user:sesame@127.0.0.1:9/cells.h5ad")
    assert "sesame" not in str(caught.value)


# Tables


def test_columns_come_back_as_they_were_written(tmp_path, kind):
    obs = obs_of_every_type()
    file = write(make_adata(obs=obs.copy()), tmp_path, kind)
    table = read_table(file, "obs", ["_index", *obs.columns])
    expected = obs.reset_index(names="_index")
    expected["text"] = expected["text"].astype("category")
    assert table.pop("all_missing").isna().all()
    pd.testing.assert_frame_equal(table, expected.drop(columns="all_missing"))
    assert table["label"].cat.categories.tolist() == ["b", "a", "unused"]


def test_only_the_columns_that_are_asked_for_are_read(tmp_path, kind):
    file = write(make_adata(obs=obs_of_every_type()), tmp_path, kind)
    root = edit(file)
    del root["obs"]["score"]  # reading it fails
    consolidate(root)
    assert list(read_table(file, "obs", ["n_genes", "label"])) == ["n_genes", "label"]
    assert read_table(file, "obs", []).shape == (4, 0)


def test_the_index_has_its_own_name(tmp_path, kind):
    var = pd.DataFrame({"symbol": ["A", "B", "C"]}, index=pd.Index(["ENSG1", "ENSG2", "ENSG3"], name="gene_id"))
    file = write(make_adata(var=var), tmp_path, kind)
    assert read_table(file, "var", ["gene_id"])["gene_id"].tolist() == list(read_names(file, "var")) == list(var.index)
    assert type(read_names(file, "var")[0]) is str
    with file.open() as root:
        assert columns_of(root, "var") == ("gene_id", ["symbol"])


def test_similar_columns_are_suggested(tmp_path):
    file = write(make_adata(obs=obs_of_every_type()), tmp_path)
    with pytest.raises(SelectionError, match="has no column 'scores'; did you mean 'score'"):
        read_table(file, "obs", ["scores"])


def test_an_embedding_is_not_a_column(tmp_path):
    file = write(make_adata(obsm={"X_pca": np.zeros((4, 2))}), tmp_path)
    with pytest.raises(SelectionError, match="'X_pca' is in obsm, whose arrays are embeddings"):
        read_table(file, "obs", ["X_pca"])


def test_a_short_column_is_damage(tmp_path):
    file = write(make_adata(obs=obs_of_every_type()), tmp_path)
    with edit(file) as root:
        values = root["obs/score"][:3]
        attributes = dict(root["obs/score"].attrs)
        del root["obs/score"]
        root["obs/score"] = values
        root["obs/score"].attrs.update(attributes)
    with pytest.raises(SelectionError, match="'/obs/score' has 3 values, and the index has 4"):
        read_table(file, "obs", ["score"])


# Layers


def with_layers(**layers):
    return make_adata(20, 5, layers={name: change(addressed(20, 5)) for name, change in layers.items()})


def log(X):
    return X.log1p()


def test_names_of_layers(tmp_path, kind):
    adata = with_layers(counts=abs, spliced=abs)
    adata.raw = adata
    file = write(adata[:, :3].copy(), tmp_path, kind)
    with file.open() as root:
        assert layer_names(root) == ["X", "layers/counts", "layers/spliced", "raw/X"]
    assert find_layer(file, "counts") == find_layer(file, "layers/counts") == ("layers/counts", (20, 3), "csr")
    assert find_layer(file, "raw") == find_layer(file, "raw/X") == ("raw/X", (20, 5), "csr")
    assert find_layer(file, "raw").var == "raw/var"
    assert find_layer(file, "X").var == "var"
    with pytest.raises(SelectionError, match="X_name='count' is not a layer .*; did you mean 'layers/counts'"):
        find_layer(file, "count")


def test_dense_layers_are_layers(tmp_path, kind):
    file = write(make_adata(change=lambda X: X.toarray()), tmp_path, kind)
    assert find_layer(file, "X") == ("X", (4, 3), "dense")


REWRITTEN = {
    "X": "adata.X = adata.X.tocsr()",
    "layers/counts": "adata.layers['counts'] = adata.layers['counts'].tocsr()",
    "raw/X": "raw = adata.raw.to_adata(); raw.X = raw.X.tocsr(); adata.raw = raw",
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_the_code_that_rewrites_csc_does(tmp_path, kind, name):
    adata = make_adata(20, 5, change=lambda X: X.tocsc(), layers={"counts": addressed(20, 5).tocsc()})
    adata.raw = adata.copy()
    file = write(adata, tmp_path, kind)
    with pytest.raises(SelectionError, match="is in CSC, by genes") as caught:
        find_layer(file, name)
    assert str(caught.value).endswith(f"rewrite it: {REWRITTEN[name]}")
    names = {"adata": adata}
    exec(REWRITTEN[name], names)
    assert find_layer(write(names["adata"], tmp_path, kind, "new"), name).kind == "csr"


def test_a_missing_x_is_named(tmp_path):
    adata = with_layers(counts=abs)
    adata.X = None
    file = write(adata, tmp_path)
    with pytest.raises(SelectionError, match="X_name='X' is not a layer .*There are: 'layers/counts'"):
        find_layer(file, "X")
    assert find_counts(file).name == "layers/counts"


def test_an_old_sparse_layer_is_refused(tmp_path, kind):
    file = write(make_adata(), tmp_path, kind)
    root = edit(file)
    for name in ("encoding-type", "encoding-version"):
        del root["X"].attrs[name]
    consolidate(root)
    with pytest.raises(SelectionError, match="X of .* is without encoding attributes.*; rewrite it: anndata.read_"):
        find_layer(file, "X")


def test_a_shape_that_does_not_fit_is_damage(tmp_path):
    file = write(make_adata(), tmp_path)
    with edit(file) as root:
        root["X"].attrs["shape"] = [4, 7]
    with pytest.raises(SelectionError, match=r"X of .* has the shape \(4, 7\), and obs and var have 4 and 3 rows"):
        find_layer(file, "X")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"X": abs}, "X"),
        ({"X": log, "counts": abs}, "layers/counts"),
        ({"X": abs, "counts": log}, "X"),
        ({"X": abs, "counts": abs}, "layers/counts"),
        ({"X": log, "raw/X": abs}, "raw/X"),
        ({"X": log, "a": abs, "raw_umi": abs}, "layers/raw_umi"),
        ({"X": log, "spliced": abs, "raw/X": abs}, "raw/X"),
        ({"X": log, "spliced": abs}, "layers/spliced"),
        ({"X": lambda X: -X, "b": abs}, "layers/b"),
        ({"X": lambda X: X * np.nan, "b": abs}, "layers/b"),
        ({"X": lambda X: X * 0, "b": abs}, "layers/b"),
    ],
)
def test_counts_are_found_by_their_values(tmp_path, names, expected):
    made = {name: change(addressed(20, 5)) for name, change in names.items()}
    adata = make_adata(20, 5, layers={name: X for name, X in made.items() if name not in ("X", "raw/X")})
    if "raw/X" in made:
        adata.X = made["raw/X"]
        adata.raw = adata.copy()
    adata.X = made["X"]
    found = find_counts(write(adata, tmp_path))
    assert found.name == expected
    assert found.reason.startswith(f"{expected} holds integers of at least 0")


@pytest.mark.parametrize(
    "change", [lambda X: X, lambda X: X.tocsc(), lambda X: X.toarray()], ids=["CSR", "CSC", "dense"]
)
def test_counts_are_found_in_every_layout(tmp_path, kind, change):
    adata = make_adata(20, 5, change=lambda X: change(X.log1p()), layers={"a": change(addressed(20, 5))})
    assert find_counts(write(adata, tmp_path, kind)).name == "layers/a"


def test_a_single_scaled_value_at_the_end_is_seen(tmp_path):
    X = addressed(3000, 20)
    X.data[-1] += 0.5
    file = write(make_adata(3000, 20, change=lambda _: X), tmp_path)
    with pytest.warns(UserWarning, match="no layer of .* holds counts"):
        find_counts(file)


def test_scaled_values_are_not_taken_for_counts_silently(tmp_path):
    adata = with_layers(scaled=log)
    adata.X = log(adata.X)
    file = write(adata, tmp_path)
    with pytest.warns(UserWarning, match="holds counts .X holds values such as .*, and X is taken"):
        assert find_counts(file).name == "X"
    adata.X = None
    with pytest.warns(UserWarning, match="and layers/scaled is taken"):
        assert find_counts(write(adata, tmp_path, name="other")).name == "layers/scaled"


def test_an_anndata_without_any_layer_is_refused(tmp_path):
    file = write(anndata.AnnData(obs=pd.DataFrame(index=["c"]), var=pd.DataFrame(index=["g"])), tmp_path)
    with pytest.raises(SelectionError, match="has neither X, layers nor raw/X"):
        find_counts(file)
