"""What a minibatch has beside X and obs: each row is that of its cell, over SOMA and AnnData."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
import tiledbsoma as soma
import torch

import cellfeed
from cellfeed import (
    ExperimentDataPipe,
    ExperimentDataset,
    ExtendedMinibatch,
    Minibatch,
    PlanError,
    SelectionError,
    experiment_dataloader,
    inference_dataloader,
)
from cellfeed.loader import copying
from cellfeed.sources.anndata.copies.layout import Layout
from cellfeed.sources.anndata.copies.part_writer import PartWriter
from cellfeed.transforms import Log1p
from tests.support.sources import Cells, writing
from tests.support.stores import write_experiment

pytestmark = pytest.mark.filterwarnings("ignore:obs_values:UserWarning")  # of missing values

N = 100
CELLS = Cells.make(N)
OBS = CELLS.obs.assign(
    age=pd.array([None if i % 10 == 3 else i for i in range(N)], "Int64"),
    score=[np.nan if i == 7 else i / 8 for i in range(N)],
    grade=pd.Categorical([[1.5, 2.5][i % 2] for i in range(N)]),
    wide=np.where(np.arange(N) == 5, 1e300, 1.0),
)


LAYERS = {"scaled": CELLS.X * 0.5, "dense": sp.csr_matrix(CELLS.X.toarray() + 3)}
PROTEINS = sp.csr_matrix((np.arange(N * 5) % 7).reshape(N, 5).astype(np.float32))


EMBEDDINGS = {"scvi": np.arange(N * 3, dtype=np.float32).reshape(N, 3) / 4, "pca": -np.arange(N * 2.0).reshape(N, 2)}


def add_embeddings(path: Path) -> None:
    """Write one embedding as cellfeed does, and one as a dense array."""
    cellfeed.write_obsm(path, "scvi", CELLS.joinids, EMBEDDINGS["scvi"])
    cellfeed.write_obsm(path, "some", CELLS.joinids[::2], EMBEDDINGS["scvi"][::2])
    rows = np.zeros((int(CELLS.joinids.max()) + 1, 2))
    rows[CELLS.joinids] = EMBEDDINGS["pca"]
    with soma.Experiment.open(str(path), "w") as experiment:
        array = experiment.ms["RNA"].obsm.add_new_dense_ndarray("pca", type=pa.float64(), shape=rows.shape)
        with array:
            array.write((slice(None), slice(None)), pa.Tensor.from_numpy(rows))


def add_layer(measurement: Any, name: str, X: sp.csr_matrix) -> None:
    """Write a layer in tiles of other sizes than those of X."""
    array = measurement["X"].add_new_sparse_ndarray(
        name,
        type=pa.float32(),
        shape=(int(CELLS.joinids.max()) + 1, X.shape[1]),
        platform_config={"tiledb": {"create": {"dims": {"soma_dim_0": {"tile": 32}, "soma_dim_1": {"tile": 3}}}}},
    )
    coo = X.tocoo()
    table = {
        "soma_dim_0": CELLS.joinids[coo.row],
        "soma_dim_1": coo.col.astype(np.int64),
        "soma_data": coo.data.astype(np.float32),
    }
    with array:
        array.write(pa.table(table))


def write_soma(folder: Path) -> Path:
    path = folder / "cells.soma"
    write_experiment(path, CELLS.X, OBS, var=CELLS.var, joinids=CELLS.joinids)
    with soma.Experiment.open(str(path), "w") as experiment:
        rna = experiment.ms["RNA"]
        for name, X in LAYERS.items():
            add_layer(rna, name, X)
        protein = experiment.ms.add_new_collection("protein", soma.Measurement)
        protein.add_new_collection("X", soma.Collection)
        add_layer(protein, "counts", PROTEINS)
        var = pa.table({"soma_joinid": np.arange(PROTEINS.shape[1]), "name": [f"P{j}" for j in range(5)]})
        with protein.add_new_dataframe("var", schema=var.schema, domain=[(0, PROTEINS.shape[1])]) as frame:
            frame.write(var)
    add_embeddings(path)
    return path


def write_zarr(folder: Path) -> Path:
    path = folder / "cells.zarr"
    adata = Cells(CELLS.X, OBS, CELLS.var, CELLS.joinids).to_anndata()
    adata.layers["scaled"] = LAYERS["scaled"]
    adata.layers["dense"] = LAYERS["dense"].toarray()
    some = EMBEDDINGS["scvi"].copy()
    some[1::2] = np.nan
    frame = pd.DataFrame(EMBEDDINGS["pca"], adata.obs_names, ["a", "b"])
    adata.obsm.update({**EMBEDDINGS, "some": some, "sparse": sp.csr_matrix(some), "frame": frame})
    with writing(3):
        adata.write_zarr(path)
    return path


@pytest.fixture(scope="module", params=[write_soma, write_zarr], ids=["soma", "zarr"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param(tmp_path_factory.mktemp("content"))


@pytest.fixture
def make(source: Path) -> Callable[..., ExperimentDataset]:
    """Make a dataset whose epoch has many windows and minibatches."""
    defaults = {"seed": 5, "batch_size": 7, "soma_chunk_size": 4, "shuffle_chunk_count": 3, "joinids": True}

    def make(*, everything: bool = False, **parameters: Any) -> ExperimentDataset:
        return ExperimentDataset(source, **{**defaults, **(of(source) if everything else {}), **parameters})

    return make


def of(source: Path) -> dict[str, Any]:
    """All further content of a store."""
    content: dict[str, Any] = {"layers": list(LAYERS), "obsm": list(EMBEDDINGS), "obs_values": VALUES}
    return content | ({"measurements": {"protein": "counts"}} if source.suffix == ".soma" else {})


def rows_of(minibatch: ExtendedMinibatch) -> np.ndarray:
    """The row in ``CELLS`` of each cell of a minibatch."""
    return (minibatch.joinids.numpy() - 2) // 3


def check(minibatch: ExtendedMinibatch) -> None:
    """Compare each part of a minibatch with that of its cells."""
    rows = rows_of(minibatch)
    assert np.array_equal(minibatch.X.to_dense().numpy(), CELLS.X[rows].toarray())
    for name, X in minibatch.layers.items():
        expected = LAYERS[name][rows].toarray()
        assert np.array_equal(X.to_dense().numpy(), expected)
    for X in minibatch.measurements.values():
        assert np.array_equal(X.to_dense().numpy(), PROTEINS[rows].toarray())
    for name, embedding in minibatch.obsm.items():
        assert embedding.dtype == torch.float32
        assert np.array_equal(embedding.numpy(), EMBEDDINGS[name][rows])
    if minibatch.obs_values is not None:
        expected = OBS[VALUES].iloc[rows].to_numpy(np.float32, na_value=np.nan)
        assert minibatch.obs_values.dtype == torch.float32
        assert np.array_equal(minibatch.obs_values.numpy(), expected, equal_nan=True)


VALUES = ["score", "flag", "number"]


def test_minibatches_have_two_fields_unless_more_is_asked_for(make):
    assert type(next(iter(make(joinids=False)))) is Minibatch
    assert type(next(iter(make()))) is ExtendedMinibatch
    minibatch = next(iter(make(everything=True, joinids=False)))
    assert minibatch._fields[:8] == (
        "X", "obs", "layers", "obsm", "obs_values", "measurements", "joinids", "mask"
    )  # fmt: skip
    assert minibatch.joinids is None


@pytest.mark.parametrize("parameters", [{}, {"return_sparse_X": True}, {"shuffle": False, "soma_chunk_size": None}])
def test_each_row_is_that_of_its_cell(make, parameters):
    if "shuffle" in parameters:
        parameters = {**parameters, "shuffle_chunk_count": None}
    dataset = make(everything=True, **parameters)
    for _ in range(2):
        minibatches = list(dataset)
        for minibatch in minibatches:
            check(minibatch)
            matrices = (*minibatch.layers.values(), *minibatch.measurements.values())
            assert {X.layout for X in matrices} == {minibatch.X.layout}
        assert sorted(itertools.chain(*map(rows_of, minibatches))) == list(range(N))


def test_rows_stay_with_their_cells_over_ranks_splits_and_resume(make):
    for rank in range(3):
        for minibatch in make(everything=True, rank=rank, world_size=3, rank_remainder="pad"):
            check(minibatch)
            assert len(minibatch.mask) == len(minibatch.X)
    for part in make(everything=True).random_split([0.5, 0.5], seed=1):
        for minibatch in part:
            check(minibatch)
    dataset = make(everything=True)
    whole = [rows_of(minibatch).tolist() for minibatch in dataset]
    dataset = make(everything=True)
    iterator = iter(dataset)
    for k in range(len(whole)):
        restored = make(everything=True)
        restored.load_state_dict(dataset.state_dict())
        rest = list(restored)
        assert [rows_of(minibatch).tolist() for minibatch in rest] == whole[k:]
        for minibatch in rest:
            check(minibatch)
        next(iterator)


def test_copies_of_cells_have_the_content_of_their_cells(make):
    """A resampled epoch repeats cells in every matrix alike."""
    dataset = make(everything=True, return_sparse_X=True)
    resampled = dataset.resample(weights=dataset.obs_joinids % 4, n_obs=90)
    for minibatch in resampled:
        check(minibatch)
    resampled.set_epoch(0)
    assert len(np.concatenate([rows_of(minibatch) for minibatch in resampled])) == 90


def test_inference_yields_the_content_in_order(make):
    minibatches = list(inference_dataloader(make(everything=True, joinids=False)))
    for minibatch in minibatches:
        check(minibatch)
    assert list(itertools.chain(*map(rows_of, minibatches))) == list(range(N))


@pytest.mark.slow
@pytest.mark.parametrize("return_sparse_X", [True, False])
def test_worker_processes_send_the_content(make, return_sparse_X):
    minibatches = list(experiment_dataloader(make(everything=True, return_sparse_X=return_sparse_X), num_workers=2))
    for minibatch in minibatches:
        check(minibatch)
    assert sorted(itertools.chain(*map(rows_of, minibatches))) == list(range(N))


def test_a_minibatch_is_pickled_moved_and_made_a_dict(make):
    minibatch = next(iter(make(everything=True)))
    check(pickle.loads(pickle.dumps(minibatch)))
    check(minibatch.to("cpu"))
    moved = minibatch.to("meta")
    assert type(moved) is ExtendedMinibatch
    assert moved.obs_values.device.type == moved.X.device.type == "meta"
    named = minibatch.as_dict()
    assert {"X", "obs", "layers", "obsm", "obs_values", "joinids"} <= set(named)
    assert list(next(iter(make(obsm=["pca"], joinids=False))).as_dict()) == ["X", "obs", "obsm"]
    assert named["X"] is minibatch.X
    assert list(next(iter(make(joinids=False))).as_dict()) == ["X", "obs"]


def test_single_cells_of_a_datapipe_have_no_first_dimension(source):
    cell = next(iter(ExperimentDataPipe(source, X_name=None, seed=0, **of(source))))
    assert cell.obs_values.shape == (len(VALUES),)
    assert cell.X.shape == (CELLS.X.shape[1],)


# Layers and measurements


def test_genes_are_selected_in_layers_too(make):
    chosen = make(everything=True).select_genes(["G7", "G0", "G11"])
    for minibatch in chosen:
        rows = rows_of(minibatch)
        assert np.array_equal(minibatch.X.numpy(), CELLS.X[rows].toarray()[:, [7, 0, 11]])
        for name, X in minibatch.layers.items():
            assert np.array_equal(X.numpy(), LAYERS[name][rows].toarray()[:, [7, 0, 11]])
        for X in minibatch.measurements.values():
            assert np.array_equal(X.numpy(), PROTEINS[rows].toarray())


@pytest.mark.parametrize("return_sparse_X", [True, False])
def test_a_transform_changes_X_only(make, return_sparse_X):
    dataset = make(everything=True, transform=Log1p(), return_sparse_X=return_sparse_X)
    for minibatch in dataset:
        expected = np.log1p(CELLS.X[rows_of(minibatch)].toarray())
        assert np.allclose(minibatch.X.to_dense().numpy(), expected)
        check(minibatch._replace(X=torch.from_numpy(np.expm1(expected).round())))


@pytest.mark.parametrize("X_dtype", ["float16", "stored"])
def test_matrices_have_the_type_of_X(make, X_dtype):
    for minibatch in make(everything=True, X_dtype=X_dtype, transform=None):
        dtypes = {tensor.dtype for tensor in (*minibatch.layers.values(), *minibatch.measurements.values())}
        assert dtypes == {torch.float16 if X_dtype == "float16" else torch.float32}


def test_X_itself_can_be_a_layer_beside_its_transform(make, source):
    name = "raw" if source.suffix == ".soma" else "X"
    dataset = make(layers=[name, "scaled"], transform=Log1p())
    for minibatch in dataset:
        rows = rows_of(minibatch)
        assert np.array_equal(minibatch.layers[name].numpy(), CELLS.X[rows].toarray())
        assert np.array_equal(minibatch.layers["scaled"].numpy(), LAYERS["scaled"][rows].toarray())
        assert np.allclose(minibatch.X.numpy(), np.log1p(CELLS.X[rows].toarray()))
    assert dataset.stats().nnz == CELLS.X.nnz + LAYERS["scaled"].nnz  # X is read once


def test_all_matrices_are_planned_and_held_within_the_budget(make):
    alone, dataset = make(memory_budget="64 MiB").plan(), make(everything=True, memory_budget="64 MiB")
    plan = dataset.plan()
    assert alone.pool_bytes < plan.pool_bytes < plan.peak_memory_bytes <= 64 << 20
    for _ in dataset:
        pass
    assert 0 < dataset.stats().peak_pool_bytes <= 64 << 20


def test_a_layer_may_have_more_values_than_nnz_of_obs(tmp_path):
    """The number of values of X is known per cell, and is not that of a layer."""
    path = tmp_path / "cells.soma"
    obs = OBS.assign(nnz=np.diff(CELLS.X.indptr))
    write_experiment(path, CELLS.X, obs, var=CELLS.var, joinids=CELLS.joinids)
    alone = ExperimentDataset(path, seed=0)
    with soma.Experiment.open(str(path), "w") as experiment:
        add_layer(experiment.ms["RNA"], "dense", LAYERS["dense"])
    dataset = ExperimentDataset(path, layers=["dense"], joinids=True, seed=0)
    for minibatch in dataset:
        check(minibatch)
    n_values = CELLS.X.nnz + LAYERS["dense"].nnz
    assert dataset.plan().pool_bytes == pytest.approx(alone.plan().pool_bytes * n_values / CELLS.X.nnz, rel=0.5)


def test_a_local_copy_holds_X_only(source, tmp_path):
    with pytest.raises(PlanError, match="local_copy= holds X only.* dataset.write_copy"):
        ExperimentDataset(source, local_copy=tmp_path / "copy", layers=["scaled"])
    dataset = ExperimentDataset(source, local_copy=tmp_path / "copy", obs_values=["score"], joinids=True, seed=0)
    for _ in range(2):
        for minibatch in dataset:
            assert np.array_equal(
                minibatch.obs_values[:, 0].numpy(), OBS["score"].iloc[rows_of(minibatch)], equal_nan=True
            )
    assert dataset.stats().n_obs_from_copy == N


# obsm


def test_cells_without_an_embedding_have_nan(make):
    with pytest.warns(UserWarning, match="obsm: 'some' has no values for 50 of 100 cells, which are NaN"):
        dataset = make(obsm=["some"])
    for minibatch in dataset:
        rows = rows_of(minibatch)
        expected = np.where(rows[:, None] % 2 == 0, EMBEDDINGS["scvi"][rows], np.nan)
        assert np.array_equal(minibatch.obsm["some"].numpy(), expected, equal_nan=True)


def test_a_query_reads_the_embeddings_of_its_cells(make):
    dataset = make(obsm=["pca", "scvi"], obs_query="flag == True")
    minibatches = list(dataset)
    for minibatch in minibatches:
        check(minibatch)
    assert sorted(itertools.chain(*map(rows_of, minibatches))) == list(range(0, N, 2))


def test_embeddings_are_part_of_the_plan(make):
    alone, more = make(memory_budget="64 MiB").plan(), make(obsm=["pca"], memory_budget="64 MiB").plan()
    assert more.peak_memory_bytes - alone.peak_memory_bytes >= N * 2 * 4


def test_embeddings_beyond_half_of_the_budget_are_an_error(make):
    with pytest.raises(PlanError, match=r"obsm=\['scvi', 'pca'\] takes 1.95 KiB for 100 cells, .* give memory_budget="):
        make(obsm=["scvi", "pca"], memory_budget=3000)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scVI", "obsm: 'scVI' is not in obsm.*did you mean 'scvi'"),
        ("sparse", r"'sparse' of .* is a csr_matrix, .* adata.obsm\['sparse'\] = adata.obsm\['sparse'\].toarray\(\)"),
        ("frame", r"'frame' of .* is a dataframe, .* adata.obsm\['frame'\].to_numpy\(\)"),
    ],
)
def test_other_embeddings_are_errors(make, source, name, message):
    if source.suffix == ".soma" and name != "scVI":
        message = f"obsm: '{name}' is not in obsm"
    with pytest.raises(SelectionError, match=message):
        make(obsm=[name])


def test_a_store_without_embeddings(store):
    with pytest.raises(SelectionError, match="obsm: 'scvi' is not in obsm; There are: none"):
        ExperimentDataset(store, obsm=["scvi"])


# Copies


@pytest.fixture
def small_shards(monkeypatch):
    """A part that is not complete keeps the rows of its complete shards."""
    monkeypatch.setattr(Layout.__init__, "__defaults__", ("lz4", 16, 3))


def test_a_copy_has_the_content_of_its_dataset(make, source, tmp_path, small_shards):
    dataset = make(everything=True, obs_query="flag == True", measurements=None)
    path = dataset.write_copy(tmp_path / "copy.zarr", obs_columns=["label"])
    written = anndata.read_zarr(path)
    rows = (written.obs["soma_joinid"].to_numpy() - 2) // 3
    assert sorted(rows) == list(range(0, N, 2))
    for name, X in LAYERS.items():
        assert (written.layers[name] != X[rows]).nnz == 0
    for name, embedding in EMBEDDINGS.items():
        assert np.array_equal(written.obsm[name], embedding[rows])
    assert {"label", *VALUES} <= set(written.obs)
    copied = ExperimentDataset(path, joinids=True, seed=0, **{**of(source), "measurements": None})
    for minibatch in copied:
        check(minibatch)
        assert {X.dtype for X in minibatch.layers.values()} == {torch.float32}
    alone = ExperimentDataset(path, joinids=True, seed=0)
    assert alone.shape == copied.shape == (N // 2, CELLS.X.shape[1])


def test_layers_of_a_copy_have_their_own_types(tmp_path):
    """Values are stored in the smallest type, and the type of X is not that of a layer."""
    adata = Cells.make(20).to_anndata()
    adata.layers["whole"] = adata.X.astype(np.int32)
    with writing(2):
        adata.write_zarr(tmp_path / "cells.zarr")
    content: dict[str, Any] = {"layers": ["whole"], "X_dtype": "stored", "seed": 0}
    path = ExperimentDataset(tmp_path / "cells.zarr", **content).write_copy(tmp_path / "copy.zarr")
    minibatch = next(iter(ExperimentDataset(path, **content)))
    assert minibatch.X.dtype == torch.float32
    assert minibatch.layers["whole"].dtype == torch.int32


def test_a_copy_that_was_interrupted_is_continued_with_its_layers(make, tmp_path, small_shards, monkeypatch):
    dataset = make(layers=["scaled"])
    append, calls = PartWriter.append, []

    def fail(self: Any, rows: Any, layers: Any = None) -> None:
        calls.append(len(rows))
        if len(calls) == 8:
            raise OSError("no space left")
        append(self, rows, layers)

    monkeypatch.setattr(copying, "_IN_RANDOM_ORDER", {**copying._IN_RANDOM_ORDER, "batch_size": 10})
    monkeypatch.setattr(PartWriter, "append", fail)
    with pytest.raises(SelectionError, match="no space left"):
        dataset.write_copy(tmp_path / "copy.zarr")
    with pytest.raises(SelectionError, match="is the beginning of a copy"):
        make(layers=["dense"]).write_copy(tmp_path / "copy.zarr")
    path = dataset.write_copy(tmp_path / "copy.zarr")
    assert sum(calls) < N + 80  # of which 80 were tried before the error
    minibatches = list(ExperimentDataset(path, joinids=True, layers=["scaled"], seed=0))
    for minibatch in minibatches:
        check(minibatch)
    assert sorted(itertools.chain(*map(rows_of, minibatches))) == list(range(N))


def test_a_copy_has_one_measurement(tmp_path):
    dataset = ExperimentDataset(write_soma(tmp_path), measurements={"protein": "counts"})
    with pytest.raises(SelectionError, match="one measurement, and the dataset has 'protein', too"):
        dataset.write_copy(tmp_path / "copy.zarr")


# obs_values


def test_missing_values_are_nan_and_counted(make):
    with pytest.warns(UserWarning, match="column 'age' has no value for 10 of 100 cells, which are NaN"):
        dataset = make(obs_values=["age"])
    for minibatch in dataset:
        expected = OBS["age"].iloc[rows_of(minibatch)].to_numpy(np.float32, na_value=np.nan)
        assert np.array_equal(minibatch.obs_values[:, 0].numpy(), expected, equal_nan=True)


def test_categories_that_are_numbers_are_numbers(make):
    for minibatch in make(obs_values=["grade"]):
        assert minibatch.obs_values[:, 0].tolist() == [[1.5, 2.5][i % 2] for i in rows_of(minibatch)]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"obs_values": ["agee"]}, "obs_values: obs has no column 'agee'; did you mean 'age'"),
        ({"obs_values": ["label"]}, r"'label' holds text \('type 0', .*\), not numbers; obs_column_names=\['label'\]"),
        ({"obs_values": ["text"]}, "'text' holds text .* and 45 others"),
        ({"obs_values": "age"}, r"obs_values='age' must be a list of names: \['age'\]"),
        ({"obs_values": ["score", "score"]}, "holds 'score' more than once"),
        ({"obs_values": [1]}, "a name=1 must be a name, as text"),
        ({"obs_values": ["wide"]}, r"'wide' holds 1e\+300, which float32 cannot hold"),
        ({"obs_values": ["soma_joinid"]}, "give joinids=True"),
        ({"layers": ["skaled"]}, "layers: .*'skaled' is not a layer of .*did you mean '(layers/)?scaled'"),
        ({"layers": "scaled"}, r"layers='scaled' must be a list of names: \['scaled'\]"),
        ({"layers": ["scaled", "scaled"]}, "holds 'scaled' more than once"),
        ({"measurements": ["protein"]}, r"measurements=\['protein'\] must be a dict of layers by measurement"),
        ({"measurements": {"protein": None}}, "the layer of 'protein'=None must be a name, as text"),
    ],
)
def test_bad_names_are_errors(make, parameters, message):
    with pytest.raises(SelectionError, match=message):
        make(**parameters)


@pytest.mark.parametrize(
    ("measurements", "message"),
    [
        ({"proteins": "counts"}, "measurements: 'proteins' is not in the experiment; did you mean 'protein'"),
        ({"protein": "raw"}, "measurements: 'raw' of 'protein' is not a layer of X; There are: 'counts'"),
        ({"RNA": "scaled"}, r"'RNA' is the measurement of X; give its layers by name: layers=\['scaled'\]"),
    ],
)
def test_bad_measurements_are_errors(make, source, measurements, message):
    if source.suffix == ".zarr":
        message = "an AnnData has one measurement; leave it out"
    with pytest.raises(SelectionError, match=message):
        make(measurements=measurements)


def test_layers_with_other_genes_are_refused(tmp_path):
    adata = Cells.make(20).to_anndata()
    adata.raw = adata
    with writing(2):
        adata.write_zarr(tmp_path / "cells.zarr")
    with pytest.raises(SelectionError, match="'raw/X' has other genes than 'X', which is X; give it as X_name"):
        ExperimentDataset(tmp_path / "cells.zarr", layers=["raw"])


def test_joinids_is_a_switch(make):
    with pytest.raises(ValueError, match="joinids='yes' must be True or False"):
        make(joinids="yes")


def test_pinning_keeps_the_class_and_the_content(make, monkeypatch):
    """As the loader of PyTorch pins minibatches; no memory is pinned here, which needs CUDA."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, device=None: tensor.clone())
    minibatch = next(iter(make(everything=True)))
    pinned = torch.utils.data._utils.pin_memory.pin_memory(minibatch)
    assert type(pinned) is ExtendedMinibatch
    assert pinned.layers["scaled"] is not minibatch.layers["scaled"]
    check(pinned)
