"""The benchmarks run on a tiny store, so that they cannot rot; their figures are not asserted."""

import json
import sys
import time
from dataclasses import replace

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tiledbsoma as soma
import torch

from benchmarks import (
    cloud,
    content,
    faults,
    gpu,
    local_copy,
    rare_types,
    scale,
    scvi_epoch,
    scvi_knn,
    sets,
    tokens,
    training,
    transforms,
    wall,
)
from benchmarks.harness.contenders import Case, time_pass
from benchmarks.harness.formats import converted
from benchmarks.harness.stores import StoreSpec, write_store
from benchmarks.harness.uniform import UniformSpec
from benchmarks.run import run_in_turn, run_suite, summary
from cellfeed import ExperimentDataset


def test_the_generator_and_the_harness(tmp_path):
    uri = str(tmp_path / "tiny.soma")
    write_store(uri, StoreSpec(n_obs=3000, n_vars=500, nnz_per_cell=40, n_expressed=300, n_datasets=3))
    with soma.open(uri) as experiment:
        obs = experiment.obs.read().concat().to_pandas()
        X = experiment.ms["RNA"].X["raw"]
        assert np.array_equal(np.bincount(X.read().tables().concat()["soma_dim_0"]), obs["nnz"])
        assert len(list((tmp_path / "tiny.soma/ms/RNA/X/raw/__fragments").iterdir())) == 1
    assert ExperimentDataset(uri, obs_column_names=["cell_type"]).shape == (3000, 500)
    out = tmp_path / "records.jsonl"
    records = run_suite(uri, "sparse", repeat=1, peers=tmp_path / "none", cells=2048, out=out)
    assert [record["contender"] for record in records] == ["cellfeed"]
    assert "cells/s" in summary(records)
    assert json.loads(out.read_text())["passes"][0]["cells"] >= 2048


def test_the_cost_of_content(tmp_path):
    uri = str(tmp_path / "tiny.soma")
    write_store(uri, StoreSpec(n_obs=3000, n_vars=60, nnz_per_cell=10, n_expressed=50, n_datasets=3))
    lines = list(content.measure(uri, None, batch_size=100, n_passes=1))
    assert [line[:10].strip() for line in lines] == ["X alone", "balanced"]


def test_the_speed_of_tokens(tmp_path):
    uri = str(tmp_path / "tiny.soma")
    write_store(uri, StoreSpec(n_obs=1000, n_vars=60, nnz_per_cell=10, n_expressed=50, n_datasets=3))
    assert len(list(tokens.measure(uri, batch_size=100, n_passes=1))) == 7


def test_the_speed_of_sets(tmp_path):
    uri = str(tmp_path / "tiny.soma")
    write_store(uri, StoreSpec(n_obs=1000, n_vars=60, nnz_per_cell=10, n_expressed=50, n_datasets=3))
    assert len(list(sets.measure(uri, "cell_type", set_size=8, n_passes=1))) == 3


def test_the_training_of_a_model(tmp_path):
    uri, out, picture = str(tmp_path / "tiny.soma"), tmp_path / "training.jsonl", tmp_path / "training.png"
    training.write(uri, replace(training.SPEC, n_obs=3000, n_vars=60, nnz_per_cell=10, n_datasets=3))
    assert training.budget_for(uri, 1e6) > 1e6
    chosen = [replace(c, options={**c.options, "memory_budget": "2 MB"}) for c in training.contenders(uri, chunks=10)]
    training.run(uri, out, 1, chosen)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert {record["contender"] for record in records} == set(training.COLOURS)
    assert all(len(record["losses"]) == 22 for record in records)  # of 2,700 cells
    assert "±" in training.summary(records)
    training.draw(out, picture)
    assert picture.stat().st_size > 10_000


def test_rare_types(tmp_path):
    out, picture = tmp_path / "rare_types.jsonl", tmp_path / "rare_types.png"
    spec = rare_types.Spec(ratio=4, n_test=5, n_genes=50, batch_size=32, n_steps=64)
    records = rare_types.run(None, out, seeds=1, spec=spec)
    assert [json.loads(line) for line in out.read_text().splitlines()] == records
    assert [record["way"] for record in records] == list(rare_types.WAYS)
    assert all(np.sum(record["confusions"]["64"], axis=1).tolist() == [5] * 10 for record in records)
    assert records[0]["n_cells"][0] == 4 * records[0]["n_cells"][-1] == 32
    assert "±" in rare_types.summary(records)
    rare_types.draw(records, picture)
    assert picture.stat().st_size > 10_000


@pytest.mark.filterwarnings("ignore")
def test_scvi_by_both_paths(tmp_path):
    pytest.importorskip("scvi", reason="scvi-tools is not installed")
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"cell_type": ["T", "B"] * 50, "library": ["one"] * 50 + ["two"] * 50})
    anndata.AnnData(sp.csr_matrix(rng.poisson(1, (100, 20)).astype(np.float32)), obs=obs).write_h5ad(
        tmp_path / "c.h5ad"
    )
    records = scvi_knn.run(str(tmp_path / "c.h5ad"), n_seeds=1, n_epochs=1)
    assert [record["path"] for record in records] == ["cellfeed", "anndata"]
    assert "accuracy" in scvi_knn.summary(records)


def test_an_epoch_of_scvi(tmp_path):
    pytest.importorskip("scvi", reason="scvi-tools is not installed")
    uri, out, picture = str(tmp_path / "tiny.soma"), tmp_path / "records.jsonl", tmp_path / "epoch.png"
    write_store(uri, StoreSpec(n_obs=500, n_vars=60, nnz_per_cell=10, n_expressed=40, n_datasets=3))
    options = {"repeat": 1, "n_genes": 40, "batch_size": 100}
    records = scvi_epoch.run(uri, tmp_path / "none", out, only=("cellfeed, CSR",), **options)
    assert records[0]["n_steps"] == 5
    scvi_epoch.draw(records, picture)
    assert picture.stat().st_size > 5_000


def test_the_feed_of_a_device(tmp_path):
    out = tmp_path / "gpu.jsonl"
    spec = StoreSpec(n_obs=500, n_vars=60, nnz_per_cell=10, n_expressed=40, n_datasets=3)
    device = torch.device("cpu")
    lines = list(gpu.run(tmp_path, device, out, spec=spec, n_copies=2, n_genes=20, batch_size=100, seconds=0))
    assert len(lines) == 2 + 3 + 24 + 12
    parts = {part["part"]: part for part in json.loads(out.read_text())["parts"]}
    assert parts["copy, dense, all genes, device="]["cells_per_s"] > 0
    assert 0 <= parts["perceptron, 60 genes, device="]["waits"] <= 1


def test_a_store_far_away(tmp_path):
    uri = tmp_path / "tiny.soma"
    write_store(str(uri), StoreSpec(n_obs=2000, n_vars=500, nnz_per_cell=40, n_expressed=300, n_datasets=3))
    records = list(cloud.run(uri, peers=tmp_path / "none", repeat=1, seconds=0, labels=["cellfeed"]))
    assert [record["cells"] for record in records] == [2000]
    assert records[0]["sent"]["bytes"] > 2000 * records[0]["bytes_per_cell"]
    assert "of the line" in cloud.summary(records)


def test_the_table_of_faults(tmp_path):
    out = tmp_path / "faults.jsonl"
    records = faults.table(out, names=["outage of 1 s"], paths=["direct"], n_obs=2048)
    assert [record["outcome"] for record in records] == ["exact"]
    assert len(out.read_text().splitlines()) == 1
    assert "| outage of 1 s | exact" in faults.markdown(records)


def test_what_transforms_cost(tmp_path):
    uri = str(tmp_path / "tiny.soma")
    write_store(uri, StoreSpec(n_obs=300, n_vars=100, nnz_per_cell=10, n_expressed=60, n_datasets=2))
    lines = list(transforms.measure(uri, n_vars=50, batch_size=64, n_passes=1))
    assert [line.split()[0] for line in lines] == ["dense"] * 3 + ["CSR"] * 3


def test_the_wall(tmp_path):
    uri = str(tmp_path / "tiny.soma")
    write_store(uri, StoreSpec(n_obs=300, n_vars=100, nnz_per_cell=10, n_expressed=60, n_datasets=2))
    with soma.open(f"{uri}/ms/RNA/X/raw") as X:
        n_values = X.nnz
    took, n_unpacked = wall.seconds(uri, n_threads=1)
    assert n_unpacked == n_values
    assert took > 0


def test_a_local_copy_beside_its_source(tmp_path):
    uri, copy = tmp_path / "tiny.soma", tmp_path / "copy.zarr"
    write_store(str(uri), StoreSpec(n_obs=2000, n_vars=500, nnz_per_cell=40, n_expressed=300, n_datasets=3))
    sparse = local_copy.suites(str(uri), copy=None)["sparse"]
    records = run_in_turn("sparse", sparse, repeat=1, peers=tmp_path / "none", out=None)
    assert [record["label"] for record in records] == ["cellfeed, SOMA"]
    (copy / "X").mkdir(parents=True)
    (copy / "X/data").write_bytes(bytes(1000))
    (copy / "zarr.json").write_bytes(bytes(10))
    with soma.open(f"{uri}/ms/RNA/X/raw") as X:
        assert local_copy.bytes_per_nonzero(str(uri), str(copy))["local copy"] == 1000 / X.nnz
    assert local_copy.suites(str(uri), str(copy))["dense"][0][2].uri == str(copy)


def test_a_million_cells(tmp_path):
    spec = UniformSpec(n_obs=3000, n_vars=4500)
    scale.write(tmp_path, tmp_path / "none", spec)
    uri, _ = scale.stores(tmp_path)
    X = anndata.read_h5ad(converted(uri, "h5ad")).X
    assert X.nnz == pytest.approx(0.07 * X.shape[0] * X.shape[1], rel=0.01)
    assert X.data.min() == 2
    with soma.open(uri) as experiment:
        values = experiment.ms["RNA"].X["raw"].read().coos(X.shape).concat().to_scipy()
        assert (values != X).nnz == 0
    cases = scale.rates(tmp_path, 64, n_cells=512)
    assert {name for _, name, _ in cases} == {"cellfeed", "tiledbsoma_ml", "annbatch", "scdataset", "homeobox"}
    cases = [(label, name, replace(case, skip_cells=512)) for label, name, case in cases]
    records = run_in_turn("batch size 64", cases, repeat=1, peers=tmp_path / "none", out=None)
    assert [record["label"] for record in records] == ["cellfeed, local copy", "cellfeed, SOMA"]
    assert [record["passes"][0]["cells"] for record in records] == [512, 512]
    assert len(scale.summary(records).splitlines()) == 3
    assert {case.max_cells for *_, case in scale.waits(tmp_path, 0.01)} == {None}  # whole epochs


def test_the_clock_of_a_pass():
    """It starts after the cells that are skipped; a gap is the time to a minibatch, without that of the consumer."""

    def minibatches():
        for k in range(6):
            time.sleep(0.2 if k == 4 else 0)
            yield None, 10

    figures, _ = time_pass(minibatches(), Case("", skip_cells=20, max_cells=30, sleep_s=0.01))
    assert figures["cells"] == 30
    assert figures["longest_gap_s"] == figures["p999_gap_s"] > 0.2
    assert figures["seconds"] > figures["waited_s"] > 0.2
    figures, _ = time_pass(minibatches(), Case("", skip_cells=50))
    assert (figures["cells"], figures["waited_s"]) == (10, 0)


def test_the_conversion_of_files(tmp_path):
    local_copy.write_files(tmp_path, {"tiny": StoreSpec(n_obs=200, n_vars=50, nnz_per_cell=10, n_expressed=40)})
    plain, packed = (tmp_path / f"tiny.{name}.h5ad" for name in local_copy.COMPRESSIONS)
    assert [h5py.File(file)["X/data"].compression for file in (plain, packed)] == [None, "gzip"]
    assert np.array_equal(anndata.read_h5ad(plain).X.toarray(), anndata.read_h5ad(packed).X.toarray())
    child = "import pathlib, sys, time; x = bytearray(200 << 20); pathlib.Path(sys.argv[2], 'X').mkdir(parents=True); "
    child += "time.sleep(1)"  # its memory is looked up while it lives
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, *sys.argv[1:]], check=True)"
    out = tmp_path / "records.jsonl"
    records = local_copy.convert(plain, {"nothing": [sys.executable, "-c", parent]}, repeat=2, out=out)
    assert [json.loads(line) for line in out.read_text().splitlines()] == records
    assert all(record["peak_bytes"] > 200 << 20 for record in records)  # of a process of the command's process
    assert all(record["cpu_s"] > 0 for record in records)
    assert "nothing" in local_copy.conversions(records)
    with pytest.raises(RuntimeError, match="why it failed"):
        local_copy.measure([sys.executable, "-c", "raise SystemExit('why it failed')"])
