"""Each yielded value is verified with its whole tile, for any selection and on every reading path."""

import struct
import zlib
from pathlib import Path

import numcodecs.zstd
import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
import tiledbsoma as soma

from cellfeed import ExperimentDataset, ReadError
from cellfeed.sources.soma.tiles.index import _load_fragments
from tests.support.stores import addressed, collect, consolidate, write_experiment

N_OBS, N_VARS, ROW_BLOCK, CAPACITY = 600, 300, 128, 40_000
X = addressed(N_OBS, N_VARS, density=0.4)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store whose tiles span several row-blocks and many chunks, so that few reads need a whole tile."""
    uri = tmp_path_factory.mktemp("verified") / "s"
    layout = {"extent": ROW_BLOCK, "column_extent": 512, "capacity": CAPACITY, "unfiltered": ("soma_data",)}
    return write_experiment(uri, X, **layout)


@pytest.fixture
def _anew():
    """Forget which tiles were verified, before and after the test, so that flipped bytes are verified again."""
    _load_fragments.cache_clear()
    yield
    _load_fragments.cache_clear()


SELECTIONS = {
    "all cells": {},
    "one row-block": {"obs_query": soma.AxisQuery(coords=(slice(0, 127),))},
    "scattered cells": {"obs_query": soma.AxisQuery(coords=(list(range(3, N_OBS, 17)),))},
    "small chunks": {"soma_chunk_size": 16, "shuffle_chunk_count": 2},
    "some genes": {"var_query": soma.AxisQuery(coords=(list(range(0, N_VARS, 3)),))},
    "mixed": {"mixing": 0.9, "memory_budget": "64 MiB", "batch_size": 16},
}


def file_of(uri, name):
    (fragment,) = Path(uri, "ms/RNA/X/raw/__fragments").iterdir()
    return fragment / f"{name}.tdb"


def flip(path, at, mask):
    content = bytearray(path.read_bytes())
    content[at] ^= mask
    path.write_bytes(content)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("name", ["d0", "d1", "a0"])
@pytest.mark.usefixtures("_anew")
def test_a_flipped_byte_is_an_error_or_is_not_in_what_is_read(store, name, selection):
    """Tiles straddle row-blocks and are read in part; a flipped byte changes a cell, a gene or a value."""
    path = file_of(store, name)
    rng = np.random.default_rng(5)
    n_errors = 0
    for _ in range(25):
        at, mask = int(rng.integers(path.stat().st_size)), 1 << int(rng.integers(8))
        flip(path, at, mask)
        _load_fragments.cache_clear()
        try:
            dataset = ExperimentDataset(store, obs_column_names=["soma_joinid"], seed=0, **SELECTIONS[selection])
            got, joinids, _ = collect(dataset, dataset.shape[1])
        except ReadError:
            n_errors += 1
        else:
            assert np.array_equal(got, X[joinids[:, 0]][:, dataset.var_joinids].toarray()), (at, mask)
        finally:
            flip(path, at, mask)
    assert n_errors  # otherwise the test has tried nothing


@pytest.mark.usefixtures("_anew")
def test_tiles_that_are_read_in_part_are_verified_once(store):
    """The cost of small chunks: only the first read of a tile unpacks all of it."""
    dataset = ExperimentDataset(store, soma_chunk_size=16, shuffle_chunk_count=2, seed=0)
    (fragment,) = dataset._engine.selection.source.open_tiles().fragments
    assert not fragment.verified.any()
    next(iter(dataset))
    assert fragment.verified.any()
    list(dataset)
    assert fragment.verified.all()


@pytest.mark.usefixtures("_anew")
def test_genes_of_one_cell_that_descend_are_damage(tmp_path):
    """Two genes that are swapped have the same sum, and would be sorted with each other's values."""
    uri = write_experiment(tmp_path / "s", addressed(8, 2000), extent=8, column_extent=2048, capacity=8192)
    path = file_of(uri, "d1")
    content = path.read_bytes()
    head, packed = content[:36], content[36:]
    columns = np.frombuffer(numcodecs.zstd.decompress(packed), np.int64)
    for k in range(1, len(columns) - 1):  # until the packed columns are as long as before
        swapped = columns.copy()
        swapped[[k, k + 1]] = columns[[k + 1, k]]
        packed_anew = numcodecs.zstd.compress(swapped.tobytes(), level=3)
        if len(packed_anew) == len(packed) and columns[k] < columns[k + 1]:
            path.write_bytes(head + packed_anew)
            break
    assert path.read_bytes() != content
    with pytest.raises(ReadError, match="is damaged"):
        list(ExperimentDataset(uri))


@pytest.mark.usefixtures("_anew")
def test_values_beyond_the_extremes_of_their_tile_are_damage(tmp_path):
    """Two opposite changes leave the sum unchanged; the metadata also has the smallest and the largest value."""
    constant = sp.csr_matrix(np.full((8, 30), 7.0))
    uri = write_experiment(tmp_path / "s", constant, unfiltered=("soma_data",), capacity=240)
    path = file_of(uri, "a0")
    values = bytearray(path.read_bytes())
    for place, value in (20 + 4 * 5, 6.0), (20 + 4 * 9, 8.0):
        assert struct.unpack_from("<f", values, place) == (7.0,)
        struct.pack_into("<f", values, place, value)
    path.write_bytes(values)
    with pytest.raises(ReadError, match="is damaged"):
        list(ExperimentDataset(uri))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
@pytest.mark.parametrize(
    "values",
    [
        [2**53 + 1, 2**62, 2**62, 5],  # the sum leaves int64
        [2**62, -(2**62), 2**53 + 1, 7],  # the parts cancel
        [-(2**62), -(2**62), -(2**62), -1],
        [2**63 - 1, 1, 1, 1],
    ],
    ids=str,
)
def test_sums_of_large_integers_are_no_damage(tmp_path, dtype, values):
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    clipped = [v if info is None else min(max(v, int(info.min)), int(info.max)) for v in values]
    row = np.array([v or 1 for v in clipped], dtype)
    uri = write_large(tmp_path / "s", row)
    (minibatch,) = ExperimentDataset(uri, X_dtype="stored", batch_size=3, shuffle=False)
    assert minibatch.X.numpy().dtype == dtype
    assert np.array_equal(minibatch.X.numpy(), np.tile(row, (3, 1)))


def write_large(path, row):
    """Write three equal rows of a type whose values a CSR matrix of float32 cannot hold."""
    uri = write_experiment(path, addressed(3, len(row), density=0.0), dtype=row.dtype)
    with soma.open(f"{uri}/ms/RNA/X/raw", "w") as array:
        rows, columns = np.divmod(np.arange(3 * len(row)), len(row))
        array.write(pa.table({"soma_dim_0": rows, "soma_dim_1": columns, "soma_data": np.tile(row, 3)}))
    return uri


@pytest.mark.parametrize(("draw", "dtype"), [("standard_normal", np.float32), ("standard_cauchy", np.float64)])
def test_sums_of_fractions_are_those_of_the_writer_to_the_last_bit(tmp_path, dtype, draw):
    """With a tolerance, a flipped bit of a small value would be lost in the sum of a tile."""
    fractions = addressed(200, 150)
    fractions.data = getattr(np.random.default_rng(0), draw)(fractions.nnz).astype(dtype)
    layout = {"extent": 64, "column_extent": 64, "capacity": 1000, "allows_duplicates": False}
    uri = write_experiment(tmp_path / "s", fractions, dtype=dtype, **layout)
    for _ in range(2):  # once as it was written, once after a consolidation
        _load_fragments.cache_clear()
        got, joinids, _ = collect(ExperimentDataset(uri, obs_column_names=["soma_joinid"], X_dtype="stored"), 150)
        assert np.array_equal(got, fractions[joinids[:, 0]].toarray())
        with soma.open(f"{uri}/ms/RNA/X/raw", "w") as array:
            array.write(pa.table({"soma_dim_0": [199], "soma_dim_1": [0], "soma_data": np.zeros(1, dtype)}))
        consolidate(f"{uri}/ms/RNA/X/raw", vacuum=True)
        fractions[199, 0] = 0


@pytest.mark.parametrize(("value", "dtype"), [(65_520.0, np.float32), (70_000.0, np.int32), (-1e5, np.float64)])
def test_values_beyond_a_16_bit_float_are_an_error(tmp_path, value, dtype):
    """They would become infinite, and NaN after the first normalisation."""
    large = addressed(30, 12, density=0.5)
    large.data[large.indptr[17] + 1] = value
    uri = write_experiment(tmp_path / "s", large, dtype=dtype)
    message = f"X holds {value:.12g} for soma_joinid 17, which X_dtype='float16' cannot hold"
    for sparse in (False, True):
        with pytest.raises(ReadError, match=message):
            list(ExperimentDataset(uri, X_dtype="float16", return_sparse_X=sparse))
        for X_dtype in ("bfloat16", "float32", "stored"):
            rows = ExperimentDataset(uri, X_dtype=X_dtype, return_sparse_X=sparse, batch_size=30, shuffle=False)
            assert np.isfinite(next(iter(rows)).X.to_dense().float().numpy()).all()


def test_the_largest_16_bit_float_is_read(tmp_path):
    largest = sp.csr_matrix(np.full((4, 3), 65_519.0))
    (minibatch,) = ExperimentDataset(write_experiment(tmp_path / "s", largest), X_dtype="float16")
    assert (minibatch.X == 65_504).all()


def test_values_beyond_float32_name_the_way_to_read_them(tmp_path):
    uri = write_large(tmp_path / "s", np.array([1.0, 1e300]))
    with pytest.raises(ReadError, match=r'beyond float32.*X_dtype="stored"'):
        list(ExperimentDataset(uri))
    (minibatch,) = ExperimentDataset(uri, X_dtype="stored")
    assert minibatch.X.numpy()[0, 1] == 1e300


@pytest.mark.parametrize("claimed", [True, False])
def test_metadata_that_unpacks_to_too_much_is_an_error(tmp_path, claimed):
    """A damaged or hostile file takes no more memory than the schema of its array permits."""
    uri = write_experiment(tmp_path / "s", addressed(20, 10))
    selection = ExperimentDataset(uri)._engine.selection
    path = file_of(uri, "__fragment_metadata")
    data = path.read_bytes()
    bomb = zlib.compress(bytes(1 << 24), 9)
    head = struct.pack("<II", 0, 1) + struct.pack("<II", 1 << 24, len(bomb))
    size = 1 << 24 if claimed else 300
    pipeline = struct.pack("<IIB", 1 << 16, 1, 1) + struct.pack("<I", 5) + b"\1" + bytes(4)
    tile = struct.pack("<IQQBQBI", 22, 0, size, 0, 1, 0, len(pipeline)) + pipeline
    tile += struct.pack("<QIII", 1, 1 << 24, len(bomb), len(head)) + head + bomb
    path.write_bytes(with_tree(data, tile))
    with pytest.raises(ReadError, match="metadata is damaged"):
        selection.source.open_tiles()


def with_tree(data, tile):
    """Put a tile at the end of the data of a metadata file, and have its footer name it as the R-tree."""
    (length,) = struct.unpack_from("<Q", data, len(data) - 8)
    body, footer = data[: len(data) - 8 - length], bytearray(data[len(data) - 8 - length : -8])
    (name,) = struct.unpack_from("<Q", footer, 4)
    at = 4 + 8 + name + 2 + 32 + 16 + 2 + 3 * 8 * (4 + footer[4 + 8 + name + 2 + 32 + 16])
    struct.pack_into("<Q", footer, at, len(body))
    return body + tile + bytes(footer) + struct.pack("<Q", length)
