"""Run one contender for one or more epochs in this process, and print one JSON record.

    python -m benchmarks.harness.contenders cellfeed '{"uri": "census_131k.soma", "sparse": true}'

Each function below yields ``(X, n_cells)`` and is run by the interpreter of its own environment, so it imports what it
measures and nothing else of this repository but its records. ``run.py`` beside it starts them.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.formats import converted
from benchmarks.harness.records import highest_resident_bytes, versions


@dataclass(frozen=True)
class Case:
    """The parameters of one run of a contender."""

    uri: str
    warm_uri: str | None = None  # a small store of the same kind, read first: compilation is not measured
    sparse: bool = True
    batch_size: int = 1024
    n_genes: int | None = None  # number of genes, from the first on; None takes all
    passes: int = 1
    seconds: float = 0.0  # run further epochs until this time has passed
    skip_cells: int = 0  # cells of an epoch that are received before its clock starts
    max_cells: int | None = None  # stop an epoch after these cells: slow contenders need not finish it
    max_seconds: float | None = None  # or here
    sleep_s: float = 0.0  # a consumer that takes its time
    num_workers: int = 0  # of cellfeed's loader
    tiledb_config: dict[str, str] = field(default_factory=dict)  # where the store is no local one
    options: dict[str, Any] = field(default_factory=dict)


Minibatches = Iterator[tuple[Any, int]]

begun: list[Minibatches] = []
"""The iterator of the last epoch: a peer would wait for reads in progress before it is closed."""


def cellfeed(case: Case) -> Callable[[], Minibatches]:
    import tiledbsoma as soma

    import cellfeed

    genes = None if case.n_genes is None else soma.AxisQuery(coords=(slice(0, case.n_genes - 1),))
    context = soma.SOMATileDBContext(tiledb_config=case.tiledb_config) if case.tiledb_config else None
    dataset = cellfeed.ExperimentDataset(
        case.uri,
        var_query=genes,
        obs_column_names=["cell_type"],
        batch_size=case.batch_size,
        seed=0,
        return_sparse_X=case.sparse,
        context=context,
        **case.options,
    )
    cellfeed.contender = dataset  # kept for its plan and stats

    def one_pass() -> Minibatches:
        for X, obs in cellfeed.experiment_dataloader(dataset, num_workers=case.num_workers):
            yield X, len(obs)

    return one_pass


def tiledbsoma_ml(case: Case) -> Callable[[], Minibatches]:
    import tiledbsoma as soma
    import tiledbsoma_ml as ml

    options = dict(case.options)
    config = case.tiledb_config | options.pop("tiledb_config", {})
    if options.pop("malloc", False):  # the allocator's settings that cellfeed uses
        import ctypes

        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in ((-3, 32 << 20), (-1, 2**31 - 1), (-2, 64 << 20), (-8, 1)):
            libc.mallopt(parameter, value)
    experiment = soma.open(case.uri, context=soma.SOMATileDBContext(tiledb_config=config))
    genes = None if case.n_genes is None else soma.AxisQuery(coords=(slice(0, case.n_genes - 1),))
    query = experiment.axis_query("RNA", var_query=genes)
    dataset = ml.ExperimentDataset(
        query,
        layer_name="raw",
        obs_column_names=["cell_type"],
        batch_size=case.batch_size,
        seed=0,
        return_sparse_X=case.sparse,
        **options,
    )

    def one_pass() -> Minibatches:
        for X, _ in ml.experiment_dataloader(dataset):
            yield X, X.shape[0]

    return one_pass


def experiment_datapipe(case: Case) -> Callable[[], Minibatches]:
    import tiledbsoma as soma
    from cellxgene_census.experimental import ml

    experiment = soma.open(case.uri)
    genes = None if case.n_genes is None else soma.AxisQuery(coords=(slice(0, case.n_genes - 1),))
    pipe = ml.ExperimentDataPipe(
        experiment,
        measurement_name="RNA",
        X_name="raw",
        var_query=genes,
        obs_column_names=["cell_type"],
        batch_size=case.batch_size,
        seed=0,
        return_sparse_X=case.sparse,
        **case.options,
    )

    def one_pass() -> Minibatches:
        for X, _ in ml.experiment_dataloader(pipe):
            yield X, X.shape[0]

    return one_pass


def annbatch(case: Case) -> Callable[[], Minibatches]:
    """Minibatches are SciPy's CSR unless the options have ``to="torch"``; dense ones are made of sparse tensors."""
    import zarr
    from annbatch import DatasetCollection, Loader

    options = dict(case.options)
    if options.pop("zarrs", True):  # as its authors advise for local disks
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    loader = Loader(batch_size=case.batch_size, shuffle=True, **{"preload_to_gpu": False, **options})
    loader = loader.use_collection(DatasetCollection(str(converted(case.uri, "annbatch")), mode="r"))

    def one_pass() -> Minibatches:
        for minibatch in loader:
            X = minibatch["X"] if case.sparse else minibatch["X"].to_dense()
            yield X, X.shape[0]

    return one_pass


def cellstream(case: Case) -> Callable[[], Minibatches]:
    """Gather random rows: it has no loader of its own, so the next minibatch is gathered in a thread meanwhile."""
    from concurrent.futures import ThreadPoolExecutor

    import cellstream
    import numpy as np
    import torch

    store = cellstream.open(str(converted(case.uri, "cellstream")))

    def gather(rows: Any) -> Any:
        X = store.gather_rows(np.sort(rows), n_threads=2)
        return torch.sparse_csr_tensor(*map(torch.from_numpy, (X.indptr, X.indices, X.data)), size=X.shape)

    def one_pass() -> Minibatches:
        order = np.random.default_rng(0).permutation(store.shape[0])
        pieces = [order[k : k + case.batch_size] for k in range(0, len(order), case.batch_size)]
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(gather, pieces[0])
            for following in [*pieces[1:], None]:
                X = ahead.result()
                if following is not None:
                    ahead = pool.submit(gather, following)
                yield X, X.shape[0]

    return one_pass


def scdataset(case: Case) -> Callable[[], Minibatches]:
    """Read blocks of adjacent rows of an ``.h5ad``."""
    import anndata
    from scdataset import BlockShuffling, scDataset
    from torch.utils.data import DataLoader

    options = dict(case.options)
    cells = anndata.read_h5ad(converted(case.uri, "h5ad"), backed="r")
    blocks = BlockShuffling(block_size=options.pop("block_size", 8))
    fetch = {"fetch_callback": lambda cells, rows: cells[rows].to_memory()}
    dataset = scDataset(cells, blocks, batch_size=case.batch_size, **fetch, **options)

    def one_pass() -> Minibatches:
        for cells in DataLoader(dataset, batch_size=None):
            X = cells.X
            yield X, X.shape[0]

    return one_pass


def homeobox(case: Case) -> Callable[[], Minibatches]:
    """Read blocks of random rows ahead, or with ``mode="map"`` the random rows of one minibatch."""
    from homeobox.dataloader import make_loader

    from benchmarks.harness.homeobox_atlas import LAYER, open_atlas

    cells = open_atlas(converted(case.uri, "homeobox")).query()
    choice: dict[str, Any] = {"metadata_columns": ["cell_type"]}
    if case.options.get("mode") == "map":
        dataset = cells.to_unimodal_dataset("gene_expression", [LAYER], **choice)
        loader = make_loader(dataset, batch_size=case.batch_size, shuffle=True)
    else:
        choice |= {"mode": "iterable", "batch_size": case.batch_size, "io_batch_size": 65_536, "shuffle": True}
        loader = make_loader(cells.to_unimodal_dataset("gene_expression", [LAYER], **choice, **case.options))

    def one_pass() -> Minibatches:
        for minibatch in loader:
            yield minibatch, len(minibatch.offsets) - 1

    return one_pass


CONTENDERS = {
    f.__name__: f for f in (cellfeed, tiledbsoma_ml, experiment_datapipe, annbatch, cellstream, scdataset, homeobox)
}
PACKAGES = (
    "cellfeed",
    "tiledbsoma",
    "tiledbsoma-ml",
    "cellxgene-census",
    "annbatch",
    "anndata",
    "zarr",
    "zarrs",
    "cellstream",
    "scdataset",
    "homeobox",
    "torch",
    "numpy",
    "numba",
    "pyarrow",
)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def own_peak_bytes() -> int:
    """Largest resident memory since :func:`forget_peak`."""
    return highest_resident_bytes("self")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def workers_peak_bytes() -> int:
    """Largest resident memory of each worker so far, summed."""
    return sum(highest_resident_bytes(worker.pid) for worker in multiprocessing.active_children())


def time_pass(minibatches: Minibatches, case: Case) -> tuple[dict[str, Any], int]:
    """Return the figures of an epoch, or of its part, and the largest memory of its workers."""
    forget_peak()
    received, n, workers, first = 0, 0, 0, None
    seconds, cpu_s = 0.0, 0.0
    gaps: list[float] = []
    begun = last = started = time.perf_counter()
    cpu = time.process_time()
    for _, n_cells in minibatches:
        now = time.perf_counter()
        first = now - begun if first is None else first
        workers = max(workers, workers_peak_bytes())
        received += n_cells
        if received <= case.skip_cells:
            started = last = time.perf_counter()
            cpu = time.process_time()
            continue
        gaps.append(now - last)
        n += n_cells
        # Measured here: closing an iterator early may wait for a read in progress.
        seconds, cpu_s = now - started, time.process_time() - cpu
        if n >= (case.max_cells or float("inf")) or seconds >= (case.max_seconds or float("inf")):
            break
        if case.sleep_s:
            time.sleep(case.sleep_s)
        last = time.perf_counter()
    later = sorted(gaps[1:]) or [0.0]
    figures = {
        "cells": n,
        "seconds": seconds,
        "cells_per_s": n / max(seconds, 1e-9),
        "first_s": first,
        "cpu_s": cpu_s,
        "waited_s": sum(later),
        "p999_gap_s": later[math.ceil(0.999 * len(later)) - 1],
        "longest_gap_s": later[-1],
        "peak_bytes": own_peak_bytes(),
    }
    return figures, workers


def measure(name: str, case: Case) -> dict[str, Any]:
    """Run one contender; times are of iteration, construction apart."""
    idle_workers = workers = 0
    if case.warm_uri is not None:
        for _ in CONTENDERS[name](replace(case, uri=case.warm_uri))():
            idle_workers = max(idle_workers, workers_peak_bytes())
    started = time.perf_counter()
    one_pass = CONTENDERS[name](case)
    record: dict[str, Any] = {
        "construct_s": time.perf_counter() - started,
        "idle_bytes": resident_bytes(),
        "passes": [],
    }
    while len(record["passes"]) < case.passes or sum(one["seconds"] for one in record["passes"]) < case.seconds:
        begun[:] = [one_pass()]
        done, of_workers = time_pass(begun[0], case)
        record["passes"].append(done)
        workers = max(workers, of_workers)
    record["peak_bytes"] = max(done["peak_bytes"] for done in record["passes"]) + workers
    record["idle_bytes"] += idle_workers
    if name == "cellfeed":
        import cellfeed

        record["plan"] = cellfeed.contender.plan().as_dict()
        record["stats"] = asdict(cellfeed.contender.stats())
    return record


def main() -> None:
    name, case = sys.argv[1], Case(**json.loads(sys.argv[2]))
    record = measure(name, case)
    print(json.dumps({"contender": name, "case": asdict(case), "versions": versions(PACKAGES), **record}), flush=True)
    if name != "cellfeed":  # peers may leave threads that hold the exit up
        import os

        os._exit(0)


if __name__ == "__main__":
    main()
