"""One epoch of scVI through each way of feeding it: time, memory, and how long training waited. Figure 4 again.

    python -m benchmarks.scvi_epoch run census_131k.soma --peers peers
    python -m benchmarks.scvi_epoch draw

The cells of a store, their first 8,000 genes, scVI as it comes, on the CPU: through cellfeed dense and as CSR, through
scvi-tools' TileDBDataModule (tiledbsoma-ml), and from an AnnData in memory. Each in turn, in a process of its own with
the interpreter of ``peers/scvi`` (see README.md), which first trains on a small store: imports and compilation are not
measured. Waiting is measured alike for all, in two ways: as the time from the end of a training step to the start of
the next, in which Lightning does things of its own; and, of that, the time in which it fetched a minibatch and brought
it to the device, by its own profiler.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.pictures import draw_bars
from benchmarks.harness.records import ROOT, append, commit, environment, versions

RESULTS = ROOT / "benchmarks/results/scvi_epoch.jsonl"
PICTURE = ROOT / "docs/scvi_epoch.png"
BATCH_KEY = "dataset_id"
PACKAGES = ("cellfeed", "scvi-tools", "lightning", "tiledbsoma", "tiledbsoma-ml", "torch", "numpy", "anndata")


def by_cellfeed(uri: str, n_genes: int, batch_size: int, sparse: bool) -> tuple[Any, dict[str, Any]]:
    import scvi
    import tiledbsoma as soma

    from cellfeed.scvi import SCVIDataModule

    datamodule = SCVIDataModule(
        uri,
        batch_key=BATCH_KEY,
        var_query=soma.AxisQuery(coords=(slice(0, n_genes - 1),)),
        batch_size=batch_size,
        split={"train": 1.0},
        seed=0,
        return_sparse_X=sparse,
    )
    return scvi.model.SCVI(adata=None, registry=datamodule.registry), {"datamodule": datamodule}


def by_tiledb(uri: str, n_genes: int, batch_size: int) -> tuple[Any, dict[str, Any]]:
    import scvi
    import tiledbsoma as soma

    query = soma.open(uri).axis_query("RNA", var_query=soma.AxisQuery(coords=(slice(0, n_genes - 1),)))
    datamodule = scvi.dataloaders.TileDBDataModule(
        query,
        layer_name="raw",
        batch_column_names=[BATCH_KEY],
        batch_size=batch_size,
        shuffle=True,
        seed=0,
        dataloader_kwargs={"num_workers": 0},
    )
    datamodule.setup()
    return scvi.model.SCVI(adata=None, registry=datamodule.registry), {"datamodule": datamodule}


def by_anndata(uri: str, n_genes: int, batch_size: int) -> tuple[Any, dict[str, Any]]:
    import scvi
    import tiledbsoma as soma

    with soma.open(uri) as experiment:
        query = experiment.axis_query("RNA", var_query=soma.AxisQuery(coords=(slice(0, n_genes - 1),)))
        cells = query.to_anndata(X_name="raw", column_names={"obs": [BATCH_KEY]})
    scvi.model.SCVI.setup_anndata(cells, batch_key=BATCH_KEY)
    return scvi.model.SCVI(cells), {"train_size": 1.0, "batch_size": batch_size}


CONTENDERS = {
    "cellfeed, dense": partial(by_cellfeed, sparse=False),
    "cellfeed, CSR": partial(by_cellfeed, sparse=True),
    "TileDBDataModule": by_tiledb,
    "AnnData in memory": by_anndata,
}
COLOURS = dict(zip(CONTENDERS, ("#1f77b4", "#17becf", "#d62728", "#7f7f7f"), strict=True))


def stopwatch() -> Any:
    """Make a callback that adds up the time between training steps, and notes when the first began."""
    from lightning.pytorch import Callback

    class Stopwatch(Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.between_s = 0.0
            self.n_steps = 0
            self.started = self.first = self.ended = 0.0

        def on_train_epoch_start(self, *_: Any) -> None:
            self.started = time.perf_counter()

        def on_train_batch_start(self, *_: Any) -> None:
            now = time.perf_counter()
            if self.n_steps:
                self.between_s += now - self.ended
            else:
                self.first = now - self.started

        def on_train_batch_end(self, *_: Any) -> None:
            self.n_steps += 1
            self.ended = time.perf_counter()

    return Stopwatch()


FETCHING = ("train_dataloader_next", "on_before_batch_transfer", "batch_to_device")
"""Actions of Lightning's profiler, by the ends of their names, none of which is part of another."""


def fetched_s(durations: dict[str, list[float]]) -> float:
    """Seconds in which a loop had no minibatch, once it had its first."""
    return sum(sum(taken[1:]) for action, taken in durations.items() if action.endswith(FETCHING))


def measure(contender: str, uri: str, n_genes: int, batch_size: int) -> dict[str, Any]:
    """Train for one epoch; memory is that of the process at its highest, from before the data are opened."""
    from lightning.pytorch.profilers import SimpleProfiler

    from benchmarks.harness.contenders import forget_peak, own_peak_bytes, resident_bytes

    forget_peak()
    idle, began = resident_bytes(), time.perf_counter()
    model, options = CONTENDERS[contender](uri, n_genes, batch_size)
    construct_s = time.perf_counter() - began
    watch, profiler = stopwatch(), SimpleProfiler()
    quiet = {"enable_progress_bar": False, "logger": False, "enable_model_summary": False}
    model.train(max_epochs=1, accelerator="cpu", callbacks=[watch], profiler=profiler, **quiet, **options)
    epoch_s = watch.ended - watch.started
    return {
        "construct_s": construct_s,
        "epoch_s": epoch_s,
        "first_s": watch.first,
        "n_steps": watch.n_steps,
        "between_steps": watch.between_s / (epoch_s - watch.first),
        "waited": fetched_s(profiler.recorded_durations) / (epoch_s - watch.first),
        "idle_bytes": idle,
        "peak_bytes": own_peak_bytes(),
    }


def measure_here(contender: str, uri: str, warm_uri: str, n_genes: int, batch_size: int) -> None:
    """Be one contender's process: print one record."""
    import scvi

    warnings.simplefilter("ignore")
    scvi.settings.verbosity = 30
    scvi.settings.seed = 0
    measure(contender, warm_uri, min(n_genes, 100), batch_size)
    about = {"contender": contender, "n_genes": n_genes, "batch_size": batch_size, "versions": versions(PACKAGES)}
    print(json.dumps({**about, **measure(contender, uri, n_genes, batch_size)}), flush=True)
    os._exit(0)  # peers may leave threads that hold the exit up


def run(
    uri: str,
    peers: Path,
    out: Path,
    *,
    repeat: int,
    n_genes: int,
    batch_size: int,
    only: tuple[str, ...] = tuple(CONTENDERS),
) -> list[dict[str, Any]]:
    """Run each contender in turn, ``repeat`` times; append a record each."""
    from benchmarks.harness.stores import StoreSpec, write_store

    own = peers / "scvi/bin/python"
    python = str(own) if own.exists() else sys.executable
    alike = environment(PYTHONWARNINGS="ignore")
    contenders = [name for name in only if own.exists() or name != "TileDBDataModule"]
    if len(contenders) < len(only):
        print(f"TileDBDataModule is skipped: {own} is missing, see benchmarks/README.md")
    records = []
    with tempfile.TemporaryDirectory() as folder:
        warm_uri = f"{folder}/warm.soma"
        write_store(warm_uri, StoreSpec(n_obs=1024, n_vars=500, nnz_per_cell=100, n_expressed=400, n_datasets=3))
        for k in range(repeat):
            for contender in contenders:
                asked = [contender, uri, warm_uri, str(n_genes), str(batch_size)]
                command = [python, "-m", "benchmarks.scvi_epoch", "measure", *asked]
                done = subprocess.run(command, capture_output=True, text=True, env=alike, check=False)
                if done.returncode:
                    raise RuntimeError(f"{contender} failed:\n{done.stderr[-2000:]}")
                record = {"repeat": k, "commit": commit(), **json.loads(done.stdout.strip().splitlines()[-1])}
                records.append({**record, "store": Path(uri).name})
                print(summary(records[-1:]), flush=True)
                append(out, records[-1])
    return records


def medians(records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians of each contender, in the order of :data:`CONTENDERS`."""
    of = {name: [record for record in records if record["contender"] == name] for name in CONTENDERS}
    names = ("epoch_s", "construct_s", "first_s", "waited", "between_steps", "peak_bytes", "idle_bytes")
    return {
        name: {key: statistics.median(record[key] for record in own) for key in names}
        for name, own in of.items()
        if own
    }


def summary(records: list[dict[str, Any]]) -> str:
    """One line for each contender."""
    return "\n".join(
        f"{name:18} epoch {of['epoch_s']:7.1f} s, made in {of['construct_s']:5.1f} s, "
        f"first minibatch {of['first_s']:5.2f} s,"
        f" waited {of['waited']:6.2%} ({of['between_steps']:.2%} between steps), peak {of['peak_bytes'] / 1e9:5.2f} GB"
        for name, of in medians(records).items()
    )


def draw(records: list[dict[str, Any]], picture: Path) -> None:
    """Draw time, memory and waiting side by side."""
    found = medians(records)
    panels = {
        "One epoch (s)": {name: of["epoch_s"] for name, of in found.items()},
        "Peak memory (GB)": {name: of["peak_bytes"] / 1e9 for name, of in found.items()},
        "Training waited for data (%)": {name: 100 * of["waited"] for name, of in found.items()},
    }
    draw_bars(panels, [COLOURS[name] for name in found], picture, size=(11, 2.6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="train, and append records")
    running.add_argument("uri")
    running.add_argument("--peers", type=Path, default=Path("peers"), help="folder of the peers' environments")
    running.add_argument("--repeat", type=int, default=3)
    running.add_argument("--genes", type=int, default=8000)
    running.add_argument("--batch-size", type=int, default=128)
    running.add_argument("--out", type=Path, default=RESULTS)
    drawing = commands.add_parser("draw", help="draw the recorded results")
    drawing.add_argument("--out", type=Path, default=RESULTS)
    measuring = commands.add_parser("measure")
    for name, kind in (("contender", str), ("uri", str), ("warm_uri", str), ("genes", int), ("batch_size", int)):
        measuring.add_argument(name, type=kind)
    given = parser.parse_args()
    if given.command == "measure":
        measure_here(given.contender, given.uri, given.warm_uri, given.genes, given.batch_size)
    elif given.command == "run":
        own = {"repeat": given.repeat, "n_genes": given.genes, "batch_size": given.batch_size}
        print(summary(run(given.uri, given.peers, given.out, **own)))
    else:
        records = [json.loads(line) for line in given.out.read_text().splitlines()]
        print(summary(records))
        draw(records, PICTURE)


if __name__ == "__main__":
    main()
