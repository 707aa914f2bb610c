"""Reading the files of an array without TileDB: the result is that of TileDB, or TileDB reads, or an error."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
import tiledbsoma as soma
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfeed import ExperimentDataset, ReadError
from cellfeed.rows.row_builder import GeneTable
from cellfeed.sources.soma.address import ArrayAddress
from cellfeed.sources.soma.layer import SomaLayer
from cellfeed.sources.soma.layers import _layout_of
from cellfeed.sources.soma.tiles.fragment_metadata import parse_fragment
from cellfeed.sources.soma.tiles.fragments import UnknownLayout, visible_fragments
from cellfeed.sources.soma.tiles.index import TileLayout, _load_fragments
from cellfeed.sources.soma.tiles.reader import TileReader
from cellfeed.stats import Meter
from tests.support.fakes import as_csr, row_allocator
from tests.support.stores import addressed, write_experiment

LATEST = 2**62


def opened(uri, timestamp_ms=LATEST):
    address = ArrayAddress(f"{uri}/ms/RNA/X/raw", timestamp_ms, {})
    with soma.open(address.uri) as array:
        geometry, layout = _layout_of(array)
    return layer_at(address, geometry, layout).open_tiles(), geometry


def layer_at(address, geometry, layout):
    return SomaLayer(address, address, address, geometry, layout, identity=None)


def reader(uri, var_joinids=None, dtype=np.float32):
    index, geometry = opened(uri)
    wanted = np.arange(geometry.n_columns) if var_joinids is None else var_joinids
    return TileReader(index, GeneTable.from_joinids(wanted, geometry.n_columns), dtype, meter=Meter())


def read(reader, joinids, n_vars):
    """Rows of joinids as a matrix."""
    space, arenas = row_allocator(np.arange(len(joinids)) % 3)
    rows = reader.read(joinids, space)
    X = as_csr(rows, n_vars).astype(np.float64).toarray()
    del arenas  # they held the rows until here
    return X


@pytest.fixture(autouse=True)
def _direct(monkeypatch):
    monkeypatch.setenv("CELLFEED_DIRECT", "1")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize(
    "values", [[1, 2, 255], [1, 300, 70_000], [-1, 5, -7], [-1, 5, 7], [-1, -1, 300], [0.5, 3, 1.25]]
)
def test_values_of_every_type_come_back_exactly(tmp_path, dtype, values):
    as_stored = np.array(values).astype(dtype).astype(np.float64)
    X = sp.csr_matrix(np.tile(as_stored, (20, 4)))
    index_of = write_experiment(tmp_path / "s", X, dtype=dtype)
    assert np.array_equal(read(reader(index_of, dtype=dtype), np.arange(20), 12), X.toarray())


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
def test_any_rows_and_genes_of_any_layout(tmp_path_factory, data):
    n_obs, n_vars = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 40))
    X = addressed(n_obs, n_vars, density=data.draw(st.sampled_from([0.05, 0.5, 1.0])))
    if X.nnz == 0:
        return
    uri = write_experiment(
        tmp_path_factory.mktemp("any") / "s",
        X,
        extent=data.draw(st.integers(1, 16)),
        column_extent=data.draw(st.integers(1, 16)),
        capacity=data.draw(st.sampled_from([1, 7, 64, 30_000])),
        n_fragments=data.draw(st.integers(1, 3)),
    )
    rows = data.draw(st.lists(st.integers(0, X.nonzero()[0].max()), min_size=1, unique=True).map(sorted))
    genes = data.draw(st.lists(st.integers(0, X.nonzero()[1].max()), min_size=1, unique=True).map(sorted))
    got = read(reader(uri, np.array(genes)), np.array(rows), len(genes))
    assert np.array_equal(got, X.toarray()[rows][:, genes])


def test_tiles_that_span_many_chunks_are_stepped_through(tmp_path):
    """Tiles of 40,000 values in chunks of 8,192: few of their rows are selected, so that chunks are skipped."""
    X = addressed(400, 300, density=1.0)
    uri = write_experiment(tmp_path / "s", X, extent=512, column_extent=512, capacity=40_000)
    for rows in ([0], [399], [57, 58, 200], list(range(0, 400, 37))):
        assert np.array_equal(read(reader(uri), np.array(rows), 300), X.toarray()[rows])


ZSTD = {"_type": "ZstdFilter", "level": 9}
CENSUS = {
    "capacity": 2**16,
    "dims": {
        "soma_dim_0": {"tile": 2048, "filters": [ZSTD]},
        "soma_dim_1": {"tile": 2048, "filters": ["ByteShuffleFilter", ZSTD]},
    },
    "attrs": {"soma_data": {"filters": ["ByteShuffleFilter", ZSTD]}},
    "cell_order": "row-major",
    "tile_order": "row-major",
    "allows_duplicates": True,
}
"""The layout of X in the CZ CELLxGENE Census (its builder's ``globals.py``)."""


@pytest.mark.parametrize("create", [CENSUS, {}], ids=["Census", "tiledbsoma"])
def test_the_layouts_of_a_census_and_of_tiledbsoma_are_read_directly(tmp_path, create):
    X = addressed(300, 3000, density=0.1)
    uri = write_experiment(tmp_path / "s", X, create=create)
    assert np.array_equal(read(reader(uri), np.arange(300), 3000), X.toarray())


def test_what_is_not_known_is_left_to_tiledb(tmp_path, monkeypatch):
    X = addressed(20, 10)
    plain = write_experiment(tmp_path / "plain", X)
    assert opened(plain)[0] is not None
    overlapping = write_experiment(tmp_path / "overlapping", X, allows_duplicates=False)
    with soma.open(f"{overlapping}/ms/RNA/X/raw", "w") as array:
        array.write(pa.table({"soma_dim_0": [0], "soma_dim_1": [0], "soma_data": np.float32([7])}))
    assert opened(overlapping)[0] is None
    Path(tmp_path / "plain/ms/RNA/X/raw/__commits/__1_1_00_22.del").touch()
    assert opened(plain)[0] is None
    _, geometry = opened(plain)
    layout = TileLayout(filters=((), (), ()), row_major=True, allows_duplicates=True)
    assert layer_at(ArrayAddress("tiledb://space/X", LATEST, {}), geometry, layout).open_tiles() is None
    assert not np.array_equal(X.toarray()[0, 0], 7)
    rows = np.concatenate([m.X.numpy() for m in ExperimentDataset(overlapping, batch_size=20, shuffle=False)])
    changed = X.toarray()
    changed[0, 0] = 7
    assert np.array_equal(rows, changed)  # the later value counts, as in TileDB


def test_what_was_written_later_is_not_seen(tmp_path):
    uri = write_experiment(tmp_path / "s", addressed(20, 10))
    with soma.open(f"{uri}/ms/RNA/X/raw") as array:
        pinned = array.tiledb_timestamp_ms
    with soma.open(f"{uri}/ms/RNA/X/raw", "w", tiledb_timestamp=pinned + 1) as array:
        array.write(pa.table({"soma_dim_0": [0], "soma_dim_1": [0], "soma_data": np.float32([7])}))
    assert len(opened(uri, pinned)[0].fragments) == 1
    assert len(opened(uri, pinned + 1)[0].fragments) == 2


def test_commits_decide_what_is_seen():
    name = "__5_5_ab_22"
    assert visible_fragments([f"{name}.wrt"], {}, 9) == [name]
    assert visible_fragments([f"{name}.wrt"], {}, 4) == []
    listed = {"__9_9_cc_22.con": f"__fragments/{name}.wrt\n".encode(), "__9_9_cc_22.ign": b""}
    assert visible_fragments(listed, listed, 9) == [name]
    listed["__9_9_cc_22.ign"] = f"__fragments/{name}.wrt\n".encode()
    assert visible_fragments(listed, listed, 9) == []
    for commits, texts in (["x.del"], {}), (["x.con"], {"x.con": b"a.del\n\0\1"}), (["odd.wrt"], {}):
        with pytest.raises(UnknownLayout):
            visible_fragments(commits, texts, 9)
    with pytest.raises(UnknownLayout, match="consolidated over the timestamp"):
        visible_fragments(["__1_9_ab_22.wrt"], {}, 5)


@pytest.mark.parametrize("wanted", [slice(0, 40), slice(33, 34)])
def test_columns_that_the_array_does_not_have_are_damage(tmp_path, wanted):
    """They would be written outside of a minibatch. The check of sums would find them, too, but may be switched off."""
    uri = write_experiment(tmp_path / "s", addressed(40, 12, density=1.0), capacity=64)
    index, _ = opened(uri)
    genes = GeneTable.from_joinids(np.arange(11), 11)
    narrow = TileReader(replace(index, n_columns=11), genes, np.float32, verify=False, meter=Meter())
    with pytest.raises(ReadError, match="is damaged"):
        read(narrow, np.arange(40)[wanted], 11)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("damaged") / "s", addressed(40, 30), capacity=200)


@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_byte_is_an_error_or_harmless(damaged, data):
    """A flip of any byte of any file gives a ReadError, an unknown layout, or genes within the array."""
    (fragment,) = Path(damaged, "ms/RNA/X/raw/__fragments").iterdir()
    file = fragment / data.draw(st.sampled_from(["a0.tdb", "d0.tdb", "d1.tdb", "__fragment_metadata.tdb"]))
    content = file.read_bytes()
    at, flips = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
    file.write_bytes(content[:at] + bytes([content[at] ^ flips]) + content[at + 1 :])
    _load_fragments.cache_clear()
    try:
        genes = genes_read(damaged)
    finally:
        file.write_bytes(content)
    assert genes is None or ((genes >= 0) & (genes < 30)).all()


def genes_read(uri):
    """Return the genes of all values that are read; None if the store is refused."""
    try:
        index, _ = opened(uri)
        if index is None:
            return None
        space, arenas = row_allocator(np.zeros(40))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            genes = as_csr(reader(uri).read(np.arange(40), space), 30).indices
        del arenas  # they held the rows until here
        return genes
    except (soma.SOMAError, UnicodeDecodeError, ReadError):
        return None


@given(st.binary(max_size=200))
def test_no_bytes_are_taken_for_metadata(junk):
    with pytest.raises(UnknownLayout):
        parse_fragment("junk", junk, 8, np.float32)


def test_truncated_and_missing_files_say_so(tmp_path):
    uri = write_experiment(tmp_path / "s", addressed(40, 30))
    ready = reader(uri)
    (fragment,) = Path(uri, "ms/RNA/X/raw/__fragments").iterdir()
    content = (fragment / "d1.tdb").read_bytes()
    (fragment / "d1.tdb").write_bytes(content[:10])
    with pytest.raises(ReadError, match="shorter than its metadata says"):
        read(ready, np.arange(40), 30)
    (fragment / "d1.tdb").unlink()
    with pytest.raises(ReadError, match="soma_joinid 0 to 39"):
        read(ready, np.arange(40), 30)
    ready.close()
    with pytest.raises(ReadError, match="is closed"):
        read(ready, np.arange(40), 30)
