"""Several AnnData become one: cells one after another, genes by name; and their rows come back as they were written."""

import pickle

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from cellfeed import ExperimentDataset
from cellfeed.errors import ReadError, SelectionError
from cellfeed.sources.anndata.chunks.h5_chunks import InflatedArray, inflated
from cellfeed.sources.anndata.files import AnnDataFile
from cellfeed.sources.anndata.joins import (
    check_same_var,
    join_genes,
    join_names,
    join_tables,
    join_var,
    study_column,
    study_names,
)
from cellfeed.sources.anndata.studies import find_studies, source_of
from cellfeed.sources.anndata.tables import read_table
from tests.support.stores import addressed
from tests.support.studies import KINDS, make_adata, obs_of_every_type, write

# Obs

MISSING = st.none()
COLUMNS = {
    "label": lambda n: st.lists(st.sampled_from("abc") | MISSING, min_size=n, max_size=n).map(pd.Categorical),
    "number": lambda n: st.sampled_from([np.int8, np.int64, np.uint16, np.float32, np.float64]).flatmap(
        lambda dtype: st.lists(st.integers(0, 100), min_size=n, max_size=n).map(lambda values: np.array(values, dtype))
    ),
    "nullable": lambda n: st.lists(st.integers(0, 9) | MISSING, min_size=n, max_size=n).map(
        lambda values: pd.array(values, dtype="Int16")
    ),
    "flag": lambda n: st.lists(st.booleans(), min_size=n, max_size=n).map(lambda values: np.array(values, bool)),
    "maybe": lambda n: st.lists(st.booleans() | MISSING, min_size=n, max_size=n).map(
        lambda values: pd.array(values, dtype="boolean")
    ),
    "name": lambda n: st.lists(st.text("xyz", max_size=2), min_size=n, max_size=n).map(
        lambda values: np.array(values, object)
    ),
}


@st.composite
def tables(draw):
    n = draw(st.integers(0, 4))
    names = draw(st.lists(st.sampled_from(sorted(COLUMNS)), unique=True))
    return pd.DataFrame({name: draw(COLUMNS[name](n)) for name in names}, index=range(n))


def values_of(column):
    """Python values, with None for each kind of missing value."""
    return [None if pd.isna(value) else value for value in column.astype(object)]


@given(st.lists(tables(), min_size=1, max_size=4), st.sampled_from(["union", "intersection"]))
def test_joined_obs_has_the_values_of_each_table(parts, how):
    joined = join_tables(parts, how)
    combine = set.union if how == "union" else set.intersection
    assert set(joined) == combine(*(set(part) for part in parts))
    assert list(joined.index) == list(range(sum(map(len, parts))))
    for name in joined:
        expected = [
            value for part in parts for value in (values_of(part[name]) if name in part else [None] * len(part))
        ]
        assert values_of(joined[name]) == expected
        given_types = [part[name].dtype for part in parts if name in part and len(part)]
        if name == "number" and None not in expected and given_types:
            assert joined[name].dtype == np.result_type(*given_types)
        if name == "label":
            seen = dict.fromkeys(value for part in parts if name in part for value in part[name].cat.categories)
            assert joined[name].cat.categories.tolist() == list(seen)


def test_integers_and_booleans_stay_such_beside_missing_values():
    obs = pd.DataFrame({"n": np.array([2**53 + 1]), "u": np.array([7], np.uint8), "flag": [True], "f": [1.5]})
    joined = join_tables([obs, pd.DataFrame(index=[0])], "union")
    assert dict(joined.dtypes.astype(str)) == {"n": "Int64", "u": "UInt8", "flag": "boolean", "f": "float64"}
    assert joined["n"][0] == 2**53 + 1


ORDERS = [
    ([["low", "mid", "high"], ["low", "high"]], ["low", "mid", "high"], True),
    ([["low", "high"], ["low", "mid", "high"]], ["low", "mid", "high"], True),  # as found where both are known
    ([["low", "high"], ["high", "low"]], ["low", "high"], False),
    ([["low", "mid"], ["mid", "high"]], ["low", "mid", "high"], False),
]


@pytest.mark.parametrize(("categories", "expected", "ordered"), ORDERS)
def test_an_order_is_kept_if_all_files_share_it(categories, expected, ordered):
    parts = [pd.DataFrame({"stage": pd.Categorical(own, own, ordered=True)}) for own in categories]
    joined = join_tables(parts, "union")["stage"]
    assert joined.cat.ordered == ordered
    assert joined.cat.categories.tolist() == expected
    assert joined.tolist() == [value for own in categories for value in own]


def test_an_order_of_one_file_only_is_no_order():
    parts = [pd.DataFrame({"stage": pd.Categorical(["a"], ordered=ordered)}) for ordered in (True, False)]
    assert not join_tables(parts, "union")["stage"].cat.ordered


def test_clusters_that_are_numbers_in_one_file_become_text():
    numbers, text = pd.DataFrame({"leiden": [1, 0]}), pd.DataFrame({"leiden": pd.Categorical(["0", None])})
    with pytest.warns(UserWarning, match="column 'leiden' holds numbers and text in different files"):
        joined = join_tables([numbers, text], "union")
    assert values_of(joined["leiden"]) == ["1", "0", "0", None]


def test_a_column_without_any_value_does_not_change_the_others():
    empty = pd.DataFrame({"label": pd.Categorical([None])})
    joined = join_tables([empty, pd.DataFrame({"label": pd.Categorical(["a"])})], "union")
    assert values_of(joined["label"]) == [None, "a"]


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_joined_as_tables_are(tmp_path, kind):
    first = obs_of_every_type()
    second = first.iloc[:2].drop(columns=["count", "flag", "score", "label"]).assign(extra=[1, 2])
    files = [
        write(make_adata(len(obs), obs=obs.copy()), tmp_path, kind, name)
        for name, obs in (("first", first), ("second", second))
    ]
    joined = join_tables(
        [read_table(file, "obs", list(obs)) for file, obs in zip(files, (first, second), strict=True)], "union"
    )
    for name in {*first, *second}:
        parts = [values_of(obs[name]) if name in obs else [None] * len(obs) for obs in (first, second)]
        assert values_of(joined[name]) == parts[0] + parts[1]
    assert joined["stage"].cat.ordered


def test_how_is_checked():
    with pytest.raises(SelectionError, match='obs=\'outer\' must be "union" or "intersection"'):
        join_tables([pd.DataFrame()], "outer")
    with pytest.raises(SelectionError, match='genes=\'inner\' must be "union" or "intersection"'):
        join_genes([np.array(["A"], object)], ["lung"], "inner")


# Genes

gene_names = st.lists(st.sampled_from("ABCDEF"), unique=True, min_size=1)


@given(st.lists(gene_names, min_size=1, max_size=4), st.sampled_from(["union", "intersection"]))
def test_joined_genes_are_those_of_pandas(parts, how):
    """Whose ``concat`` of dense frames, without sorting, is the reference."""
    frames = [pd.DataFrame(addressed(2, len(own), 1.0, k).toarray(), columns=own) for k, own in enumerate(parts)]
    reference = pd.concat(frames, join="outer" if how == "union" else "inner", ignore_index=True, sort=False)
    names, studies = [np.array(own, object) for own in parts], [f"study {k}" for k in range(len(parts))]
    if reference.shape[1] == 0:
        with pytest.raises(SelectionError, match="no gene in common"):
            join_genes(names, studies, how)
        return
    genes = join_genes(names, studies, how)
    assert list(genes.names) == list(reference)
    joined = np.full(reference.shape, np.nan, np.float32)
    for k, (frame, columns) in enumerate(zip(frames, genes.columns, strict=True)):
        assert columns.dtype == np.int64
        joined[2 * k : 2 * k + 2, columns[columns >= 0]] = frame.to_numpy()[:, columns >= 0]
    np.testing.assert_array_equal(joined, reference.to_numpy())

    own_var = [pd.DataFrame({"place": [f"{k}:{name}" for name in own]}) for k, own in enumerate(parts)]
    first = [next(f"{k}:{name}" for k, own in enumerate(parts) if name in own) for name in genes.names]
    assert join_var(own_var, genes)["place"].tolist() == first


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["A", "B", "A"], "genes 'A' of 'liver' stand for several columns each; .* adata.var_names_make_unique"),
        (["A", None], "1 genes of 'liver' have no name"),
    ],
)
def test_genes_without_a_name_of_their_own_are_refused(names, message):
    with pytest.raises(SelectionError, match=message):
        join_genes([np.array(["A"], object), np.array(names, object)], ["lung", "liver"], "union")


def test_members_of_a_collection_have_one_var(tmp_path):
    def file(name, genes):
        return write(make_adata(2, len(genes), var=pd.DataFrame(index=genes)), tmp_path, "zarr3", name)

    first = file("first", ["A", "B"])
    check_same_var([first, file("same", ["A", "B"])])
    with pytest.raises(SelectionError, match="'.*swapped.zarr' and '.*first.zarr' have at gene 0 'B' and 'A'"):
        check_same_var([first, file("swapped", ["B", "A"])])
    with pytest.raises(SelectionError, match="have 3 genes and 2 genes; write one zarr of all of them"):
        check_same_var([first, file("longer", ["A", "B", "C"])])


# Names


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/data/lung.h5ad"], ["lung"]),
        (["/data/lung.h5ad", "liver.zarr"], ["lung", "liver"]),
        (["/data/lung/cells.h5ad", "/data/liver/cells.h5ad"], ["lung/cells", "liver/cells"]),
        (["/a/x/cells.h5ad", "/b/x/cells.h5ad", "/b/y/cells.h5ad"], ["a/x/cells", "b/x/cells", "b/y/cells"]),
        (["cells.h5ad", "cells.h5ad"], ["cells-1", "cells-2"]),
        (["s3://key:secret@bucket/cells.zarr"], ["cells"]),
    ],
)
def test_studies_have_distinct_names(paths, expected):
    assert study_names([AnnDataFile(path, "zarr") for path in paths]) == expected


def test_cells_of_several_studies_have_distinct_names():
    first, second = np.array(["a", "b"], object), np.array(["a", "c"], object)
    assert list(join_names([first], ["x"])) == ["a", "b"]
    assert list(join_names([first, np.array(["c"], object)], ["x", "y"])) == ["a", "b", "c"]
    assert list(join_names([first, second], ["x", "y"])) == ["a-x", "b-x", "a-y", "c-y"]


def test_a_column_study_of_the_files_is_kept():
    assert study_column(["label"]) == "study"
    assert study_column(["label", "study"]) == "study_2"
    assert study_column(["study_2", "study"]) == "study_3"


# Rows


def all_rows(file, **parameters):
    """X as a dataset reads it, in the order of the file."""
    dataset = ExperimentDataset(
        file.path, shuffle=False, batch_size=500, return_sparse_X=True, X_dtype="stored", **parameters
    )
    ((X, _),) = dataset
    arrays = X.values().numpy(), X.col_indices().numpy(), X.crow_indices().numpy()
    return sp.csr_matrix(arrays, shape=tuple(X.shape))


def assert_equal(left, right):
    assert left.shape == right.shape
    assert left.dtype == right.dtype
    assert (left != right).nnz == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [lambda X: X, lambda X: X.toarray()], ids=["CSR", "dense"])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_rows_come_back_as_they_were_written(tmp_path, kind, change, dtype):
    X = addressed(50, 20).astype(dtype)
    X = sp.vstack([X[:7], sp.csr_matrix((1, 20), dtype=dtype), X[8:]], format="csr")  # a cell without counts
    file = write(make_adata(50, 20, change=lambda _: change(X)), tmp_path, kind)
    assert_equal(all_rows(file), X)
    assert_equal(all_rows(file, obs_query="obs_id in ['c3', 'c7', 'c49']"), X[[3, 7, 49]])


@given(
    chunk=st.integers(1, 40),
    bounds=st.tuples(st.integers(0, 100), st.integers(0, 100)).map(sorted),
    shuffle=st.booleans(),
    dtype=st.sampled_from([np.uint8, np.int32, np.float32, np.int64, ">i4"]),
    stored=st.integers(0, 100),
)
def test_inflated_slices_are_those_of_hdf5(tmp_path_factory, chunk, bounds, shuffle, dtype, stored):
    with h5py.File(tmp_path_factory.getbasetemp() / "slices.h5", "w") as file:
        dataset = file.create_dataset("a", (100,), dtype, chunks=(chunk,), compression="gzip", shuffle=shuffle)
        dataset[:stored] = np.arange(stored) % 200  # later chunks are not stored
        values = InflatedArray(dataset)[slice(*bounds)]
        assert values.dtype == dataset.dtype
        np.testing.assert_array_equal(values, dataset[slice(*bounds)])


def test_a_chunk_without_its_filters_is_read(tmp_path):
    with h5py.File(tmp_path / "skipped.h5", "w") as file:
        dataset = file.create_dataset("a", (4,), "i4", chunks=(2,), compression="gzip", shuffle=True)
        dataset[2:] = 7
        dataset.id.write_direct_chunk((0,), np.array([5, 6], "<i4").tobytes(), filter_mask=3)
    with h5py.File(tmp_path / "skipped.h5") as file:
        assert InflatedArray(file["a"])[:].tolist() == [5, 6, 7, 7]


@pytest.mark.parametrize(
    ("options", "is_inflated"),
    [
        ({"compression": "gzip"}, True),
        ({"compression": "gzip", "shuffle": True}, True),
        ({"compression": "gzip", "fletcher32": True}, False),  # a checksum that HDF5 verifies
        ({"compression": "lzf"}, False),
        ({}, False),
    ],
)
def test_all_filters_are_read(tmp_path, options, is_inflated):
    X = addressed(200, 30)
    file = write(make_adata(200, 30), tmp_path)
    with h5py.File(file.path, "r+") as root:
        for name in ("indices", "data"):
            values = root["X"][name][:]
            del root["X"][name]
            root["X"].create_dataset(name, data=values, chunks=(100,), **options)
    with file.open() as root:
        assert isinstance(inflated(root["X/data"]), InflatedArray) == is_inflated
    assert_equal(all_rows(file), X)


def damage(file, name, index, value):
    with h5py.File(file.path, "r+") as root:
        root["X"][name][index] = value


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("indptr", 0, 1, "X/indptr .* begins with 1"),
        ("indptr", -1, 3, "X/indptr .* ends with 3"),
        ("indptr", 2, 10_000, "indptr is damaged"),
        ("indices", 5, 30, "row 0 has a value outside of its 30 columns: X is damaged"),
        ("indices", 5, -1, "row 0 has a value outside of its 30 columns: X is damaged"),
    ],
)
def test_damaged_rows_are_refused(tmp_path, name, index, value, message):
    file = write(make_adata(200, 30), tmp_path)
    damage(file, name, index, value)
    with pytest.raises(ReadError, match=message):
        all_rows(file)


def test_a_damaged_chunk_is_named_by_its_rows(tmp_path):
    file = write(make_adata(200, 30), tmp_path, compression="gzip")
    with h5py.File(file.path) as root:
        chunk = root["X/data"].id.get_chunk_info(0)
    with open(file.path, "r+b") as stored:  # noqa: PTH123 - in place
        stored.seek(chunk.byte_offset + chunk.size - 1)
        stored.write(b"?")  # of the checksum that zlib writes
    with pytest.raises(ReadError, match="199 .*incorrect data check"):
        all_rows(file)


def test_a_source_of_joined_files_goes_to_other_processes(tmp_path):
    files = [write(make_adata(3, n), tmp_path, name=f"study{n}") for n in (2, 4)]
    source = pickle.loads(pickle.dumps(source_of(find_studies([file.path for file in files], None, "SOURCE"))))
    genes = source.read_var(np.arange(4), "genes", lambda known: ["var_id"])["var_id"]
    assert genes.tolist() == ["g0", "g1", "g2", "g3"]
    studies = source.read_obs(np.array([2, 3]), "studies", lambda known: ["study"])["study"]
    assert studies.tolist() == ["study2", "study4"]
