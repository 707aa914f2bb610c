"""A part of a copy: what is written is what anndata reads, to the bit, whatever happened while it was written."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cellfeed.sources.anndata.copies import journal, layout, matrix_writer, part_writer, shard_writer
from cellfeed.sources.anndata.copies.layout import Layout
from cellfeed.sources.anndata.copies.part_writer import PartWriter
from tests.support.rows import cell_rows

SMALL = Layout(chunk_size=16, shard_chunks=3)

COUNTS, LARGE_COUNTS, FLOATS = "counts", "large counts", "floats"
SPECIAL = {COUNTS: [1, 255], LARGE_COUNTS: [256, 65535], FLOATS: [65536, -1, 0.5, -0.0, np.inf, np.nan]}
"""Values of each kind, those that need the narrowest type of the kind among them."""


def matrix(n_obs, n_vars, *, kinds=(COUNTS,), dtype=np.float32, max_nnz=12, seed=0):
    """A CSR matrix with empty rows; the later kinds of values come in later rows only."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, min(max_nnz, n_vars) + 1, n_obs)
    indices = [np.sort(rng.choice(n_vars, size, replace=False)) for size in sizes]
    values = np.arange(1, sizes.sum() + 1) % 200 + 1.0
    for k, kind in enumerate(kinds):
        start = len(values) * k // len(kinds)
        n = min(len(SPECIAL[kind]), len(values) - start)
        values[start : start + n] = SPECIAL[kind][:n]
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    return sp.csr_matrix(
        (values.astype(dtype), np.concatenate([[], *indices]).astype(np.int32), indptr), (n_obs, n_vars)
    )


def obs_of(X):
    return pd.DataFrame(
        {"label": pd.Categorical([f"l{i % 3}" for i in range(X.shape[0])]), "number": np.arange(X.shape[0]) + 1},
        index=[f"cell {i}" for i in range(X.shape[0])],
    )


def var_of(X):
    return pd.DataFrame({"length": np.arange(X.shape[1]) + 1}, index=[f"gene {j}" for j in range(X.shape[1])])


def work_of(path):
    """The folder of a part before it is complete."""
    return path.with_name(f"{path.name}.partial")


def write(path, X, *, layer=None, layout=SMALL, step=7):
    """Write a part, or continue it, in appends of ``step`` rows."""
    writer = PartWriter.recover(work_of(path))
    if writer is None and path.exists():
        return path
    layers = {} if layer is None else {"other": layer}
    writer = writer or PartWriter(work_of(path), n_vars=X.shape[1], layers=tuple(layers), layout=layout)
    try:
        for low in range(writer.n_rows, X.shape[0], step):
            part = slice(low, low + step)
            others = {name: cell_rows(other[part], first=low) for name, other in layers.items()}
            writer.append(cell_rows(X[part], first=low), others)
        np.testing.assert_array_equal(writer.positions, np.arange(X.shape[0]))
        return writer.finish(path, obs_of(X), var_of(X), {"cellfeed": "{}"})
    finally:
        writer.abandon()


def assert_same_matrix(read, written):
    """Equal to the bit: values in the type that was written represent those that were given."""
    assert read.shape == written.shape
    np.testing.assert_array_equal(read.indptr, written.indptr)
    np.testing.assert_array_equal(read.indices, written.indices)
    assert read.data.astype(written.dtype).tobytes() == written.data.tobytes()


def files(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


layouts = st.builds(Layout, st.sampled_from(["lz4", "zstd"]), st.integers(1, 40), st.integers(1, 4))


@pytest.mark.filterwarnings("ignore:Transforming to str index")  # of an AnnData without cells, by anndata 0.12.2
@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])
@given(
    n_obs=st.integers(0, 60),
    n_vars=st.sampled_from([1, 30, 1 << 16, (1 << 16) + 1]),
    kinds=st.lists(st.sampled_from([COUNTS, LARGE_COUNTS, FLOATS]), max_size=3),
    dtype=st.sampled_from([np.float32, np.float64]),
    layout=layouts,
    step=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_a_part_is_what_was_appended(tmp_path_factory, n_obs, n_vars, kinds, dtype, layout, step, seed):
    """Rows that straddle chunks and shards, empty rows, few and many genes, values that become wider on the way."""
    X = matrix(n_obs, n_vars, kinds=kinds, dtype=dtype, seed=seed)
    path = write(tmp_path_factory.mktemp("parts") / "part.zarr", X, layout=layout, step=step)
    adata = ad.read_zarr(path)
    assert_same_matrix(adata.X, X)
    group = zarr.open_group(path, mode="r")["X"]
    assert group["indices"].dtype == (np.uint16 if n_vars <= 1 << 16 else np.int32)
    indices = group["indices"][:].astype(np.int32)
    assert_same_matrix(sp.csr_matrix((group["data"][:], indices, group["indptr"][:]), X.shape), X)
    pd.testing.assert_frame_equal(adata.obs, obs_of(X))
    pd.testing.assert_frame_equal(adata.var, var_of(X))
    assert adata.uns == {"cellfeed": "{}"}


@pytest.mark.parametrize(
    ("kinds", "dtype", "stored"),
    [
        ([COUNTS], np.float32, np.uint8),
        ([COUNTS], np.int64, np.uint8),
        ([COUNTS, LARGE_COUNTS], np.float32, np.uint16),
        ([LARGE_COUNTS, COUNTS], np.float64, np.uint16),
        ([COUNTS, LARGE_COUNTS, FLOATS], np.float32, np.float32),
        ([FLOATS, COUNTS], np.float64, np.float64),
    ],
)
def test_values_have_the_smallest_type(tmp_path, kinds, dtype, stored):
    path = write(tmp_path / "part.zarr", matrix(40, 30, kinds=kinds, dtype=dtype))
    assert zarr.open_group(path, mode="r")["X/data"].dtype == stored
    assert sorted(file.name for file in (path / "X").iterdir()) == ["data", "indices", "indptr", "zarr.json"]


def test_layers_have_their_own_values(tmp_path):
    X, layer = matrix(40, 30, seed=1), matrix(40, 30, kinds=[FLOATS], seed=2)
    adata = ad.read_zarr(write(tmp_path / "part.zarr", X, layer=layer))
    assert_same_matrix(adata.X, X)
    assert_same_matrix(adata.layers["other"], layer)


def test_lazy_reading(tmp_path):
    pytest.importorskip("dask")
    pytest.importorskip("xarray")
    X = matrix(40, 30)
    lazy = ad.experimental.read_lazy(write(tmp_path / "part.zarr", X))
    assert_same_matrix(lazy.X.compute(), X)
    assert list(lazy.obs_names) == list(obs_of(X).index)


@pytest.mark.slow
@pytest.mark.parametrize("n_vars", [30, (1 << 16) + 1])
def test_scanpy_computes_with_a_part(tmp_path, n_vars):
    """Column numbers of 16 bits are no obstacle to scipy's own functions."""
    import scanpy

    X = matrix(40, n_vars, seed=3)
    adata = ad.read_zarr(write(tmp_path / "part.zarr", X))
    expected = ad.AnnData(X, obs_of(X), var_of(X))
    for data in (adata, expected):
        data.X = data.X.astype(np.float32)
        scanpy.pp.filter_cells(data, min_counts=1)
        scanpy.pp.normalize_total(data, target_sum=1e4)
        scanpy.pp.log1p(data)
    np.testing.assert_allclose(adata[:, ::2].X.toarray(), expected[:, ::2].X.toarray())
    np.testing.assert_allclose(adata.X.sum(axis=0), expected.X.sum(axis=0))


def test_records_describe_the_rows(tmp_path):
    X = matrix(40, 30, kinds=[COUNTS, LARGE_COUNTS])
    writer = PartWriter(work_of(tmp_path / "part.zarr"), n_vars=30, layout=SMALL)
    order = np.random.default_rng(0).permutation(40)
    writer.append(cell_rows(X).take(order))
    np.testing.assert_array_equal(writer.records["position"], order)
    np.testing.assert_array_equal(writer.records["nnz"], np.diff(X.indptr)[order])
    np.testing.assert_array_equal(writer.records["sum"], np.asarray(X.sum(axis=1)).ravel()[order])
    writer.abandon()


def arrays(path):
    return [
        array for _, array in zarr.open_group(path, mode="r").members(max_depth=None) if isinstance(array, zarr.Array)
    ]


def test_each_array_has_checksums(tmp_path):
    found = arrays(write(tmp_path / "part.zarr", matrix(40, 30)))
    assert {array.name for array in found} >= {"/X/data", "/X/indices", "/X/indptr", "/obs/_index", "/uns/cellfeed"}
    for array in found:
        codecs = array.metadata.to_dict()["codecs"]
        if codecs[0]["name"] == "sharding_indexed":
            assert codecs[0]["configuration"]["index_codecs"][-1]["name"] == "crc32c"
            codecs = codecs[0]["configuration"]["codecs"]
        assert codecs[-1]["name"] == "crc32c", array.name


def test_zarr_finds_each_flipped_byte(tmp_path):
    """Of X, in each chunk and index; of obs and var, one byte of each chunk."""
    path = write(tmp_path / "part.zarr", matrix(12, 30), layout=Layout(chunk_size=32, shard_chunks=2))
    rng = np.random.default_rng(0)
    for file in (file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json"):
        sound = file.read_bytes()
        name = file.relative_to(path).as_posix().rpartition("/c")[0]
        for place in rng.choice(len(sound), min(len(sound), 12), replace=False):
            damaged = bytearray(sound)
            damaged[place] ^= 1 << rng.integers(8)
            file.write_bytes(damaged)
            with pytest.raises((ValueError, RuntimeError)):
                zarr.open_array(path / name, mode="r")[...]
        file.write_bytes(sound)


def test_equal_rows_are_equal_bytes(tmp_path, monkeypatch):
    """However they are divided into appends, and whether the library of Blosc is found or not."""
    X = matrix(60, 30, kinds=[COUNTS, LARGE_COUNTS])
    for compression in ("lz4", "zstd"):
        options = {"layout": Layout(compression, chunk_size=40, shard_chunks=3)}
        first = files(write(tmp_path / f"{compression}1.zarr", X, **options))
        assert first == files(write(tmp_path / f"{compression}2.zarr", X, step=11, **options))
        with monkeypatch.context() as patch:
            patch.setattr(layout, "find_blosc", lambda: None)
            assert first == files(write(tmp_path / f"{compression}3.zarr", X, step=60, **options))


class KilledError(Exception):
    pass


class Failures:
    """Raises an error at the ``moment``-th change of files from now on; a write is half done then."""

    def __init__(self, patch: pytest.MonkeyPatch, moment: int, error: BaseException) -> None:
        self.left, self.error = moment, error
        for owner, name in [
            *((Path, name) for name in ("mkdir", "rename", "replace", "unlink", "write_text")),
            *((module, "rmtree") for module in (matrix_writer, part_writer, shard_writer)),
            (journal.np, "save"),
        ]:
            patch.setattr(owner, name, self.wrapped(getattr(owner, name)))
        patch.setattr(shard_writer, "write_all", self.wrapped(shard_writer.write_all, half=True))

    def wrapped(self, function: Any, *, half: bool = False) -> Any:
        def call(target: Any, *arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left >= 0:
                return function(target, *arguments, **options)
            if half and self.left == -1:
                function(target, arguments[0][: len(arguments[0]) // 2])
            raise self.error

        return call


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files of killed writers stay open
@settings(max_examples=12, phases=[Phase.explicit, Phase.generate])
@given(
    moments=st.lists(st.integers(0, 150), min_size=1, max_size=4),
    n_obs=st.integers(20, 60),
    layer=st.booleans(),
    step=st.integers(3, 20),
    seed=st.integers(0, 99),
)
def test_a_part_survives_kills(tmp_path_factory, moments, n_obs, layer, step, seed):
    """At any change of files: the part that is continued is equal, to the byte, to one that was never killed."""
    folder = tmp_path_factory.mktemp("parts")
    X = matrix(n_obs, 30, kinds=[COUNTS, LARGE_COUNTS], seed=seed)
    options = {"layer": matrix(n_obs, 30, kinds=[COUNTS, FLOATS], max_nnz=5, seed=seed + 1) if layer else None}
    for moment in moments:
        with pytest.MonkeyPatch.context() as patch:
            Failures(patch, moment, KilledError())
            try:
                write(folder / "part.zarr", X, step=step, **options)
            except KilledError:
                continue
    whole = write(folder / "whole.zarr", X, **options)
    assert files(write(folder / "part.zarr", X, **options)) == files(whole)
    PartWriter.recover(work_of(folder / "part.zarr"))
    assert sorted(path.name for path in folder.iterdir()) == ["part.zarr", "whole.zarr"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_part_survives_a_kill_at_each_moment(tmp_path, monkeypatch):
    """Of the writing of X, with values that become wider on the way."""
    monkeypatch.setattr(part_writer, "_write_elements", lambda store, elements: None)
    X = matrix(24, 30, kinds=[COUNTS, LARGE_COUNTS])
    whole = files(write(tmp_path / "whole.zarr", X))
    for moment in range(1000):
        path = tmp_path / f"{moment}.zarr"
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KilledError):
            Failures(patch, moment, KilledError())
            write(path, X)
            break
        assert files(write(path, X)) == whole
    assert 20 < moment < 1000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("moment", range(16, 46, 3))
def test_a_part_can_end_with_the_rows_that_are_left(tmp_path, moment):
    """And then is, to the byte, the part of these rows: no file of other rows stays."""
    X, path = matrix(60, 30), tmp_path / "part.zarr"
    with pytest.MonkeyPatch.context() as patch:
        Failures(patch, moment, KilledError())
        with pytest.raises(KilledError):
            write(path, X)
    writer = PartWriter.recover(work_of(path))
    left = X[: writer.n_rows]
    writer.finish(path, obs_of(left), var_of(left), {"cellfeed": "{}"})
    assert files(path) == files(write(tmp_path / "left.zarr", left))


def test_a_part_survives_a_kill_after_wider_values(tmp_path, monkeypatch):
    """They are in other rows than those that the shard had before: its journal must not outlive its values."""
    X, wider, path = matrix(40, 30, seed=4), matrix(40, 30, kinds=[LARGE_COUNTS]), tmp_path / "part.zarr"
    writer = PartWriter(work_of(path), n_vars=30, layout=SMALL)
    writer.append(cell_rows(X))
    assert 0 < X.nnz % SMALL.shard_size < SMALL.shard_size - wider[:3].nnz
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(part_writer, "_write_elements", None)
        writer.finish(path, obs_of(X), var_of(X))
    writer = PartWriter.recover(work_of(path))
    assert writer.n_rows == 40
    writer.append(cell_rows(wider[:3], first=40))
    writer.abandon()
    writer = PartWriter.recover(work_of(path))
    assert writer.n_rows < 40
    expected = sp.vstack([X[: writer.n_rows], wider], format="csr")
    writer.append(cell_rows(wider, first=40))
    writer.finish(path, obs_of(expected), var_of(expected))
    assert_same_matrix(ad.read_zarr(path).X, expected)


def test_a_kill_loses_no_complete_shard(tmp_path):
    X = matrix(60, 30)
    writer = PartWriter(work_of(tmp_path / "part.zarr"), n_vars=30, layout=SMALL)
    writer.append(cell_rows(X))
    writer.abandon()
    n_complete = X.nnz // SMALL.shard_size * SMALL.shard_size
    assert n_complete > 0
    recovered = PartWriter.recover(work_of(tmp_path / "part.zarr"))
    assert recovered.n_rows == np.searchsorted(X.indptr[1:], n_complete, side="right")
    recovered.abandon()


def test_a_full_disk_leaves_a_part_to_continue(tmp_path):
    X, path = matrix(60, 30), tmp_path / "part.zarr"
    writer = PartWriter(work_of(path), n_vars=30, layout=SMALL)
    writer.append(cell_rows(X[:30]))
    with pytest.MonkeyPatch.context() as patch:
        Failures(patch, 5, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OSError, match="No space left"):
            writer.append(cell_rows(X[30:], first=30))
    with pytest.raises(ValueError, match="recover the part, then append"):
        writer.append(cell_rows(X[:1]))
    with pytest.raises(ValueError, match="recover the part, then close"):
        writer.finish(path, obs_of(X[: writer.n_rows]), var_of(X))
    writer.abandon()
    assert_same_matrix(ad.read_zarr(write(path, X)).X, X)


def test_errors_name_what_is_wrong(tmp_path):
    X, path = matrix(20, 30), tmp_path / "part.zarr"
    writer = PartWriter(work_of(path), n_vars=30, layout=SMALL)
    with pytest.raises(FileExistsError, match="continue it by PartWriter.recover, or remove it"):
        PartWriter(work_of(path), n_vars=30)
    writer.append(cell_rows(X))
    with pytest.raises(ValueError, match="obs has 19 rows, and 20 rows were appended"):
        writer.finish(path, obs_of(X[:19]), var_of(X))
    with pytest.raises(ValueError, match="a row has 31 values, and the matrix has 30 columns"):
        writer.append(cell_rows(sp.csr_matrix(np.ones((1, 31), np.float32))))
    writer.finish(path, obs_of(X), var_of(X))
    with pytest.raises(OSError, match="not empty"):
        write(tmp_path / "other.zarr", X).rename(path)
    assert PartWriter.recover(work_of(path)) is None
    assert PartWriter.recover(work_of(tmp_path / "other.zarr")) is None
