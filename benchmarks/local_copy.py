"""Compare a local copy with the store that it was made from, and with the formats of other loaders.

    python -m benchmarks.local_copy read census_65k.soma --copy census_65k.zarr --peers peers
    python -m benchmarks.local_copy draw docs/local_copy.png --out benchmarks/results/local_copy.jsonl
    python -m benchmarks.local_copy files folder                  # four .h5ad files of 50,000 cells
    python -m benchmarks.local_copy convert folder --peers peers

``read`` measures minibatches of 1,024 cells. Peers read their own formats of the same cells, which
``harness/formats.py`` writes. ``convert`` measures the conversion of an ``.h5ad`` by ``cellfeed copy`` and by annbatch.

Each contender runs in its own process, alternating. Nothing is warmed up with another store: a contender makes several
passes over all cells, and the last is quoted. To compare like with like, run this with an interpreter that has the
versions of PyTorch and zarr that the peers have.
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
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness.contenders import PACKAGES, Case
from benchmarks.harness.formats import converted
from benchmarks.harness.pictures import draw_bars
from benchmarks.harness.records import append, commit, environment, highest_resident_bytes, processor
from benchmarks.harness.run import PASSES
from benchmarks.harness.stores import StoreSpec, write_store
from benchmarks.run import run_in_turn, summary

ANNBATCH = {
    "annbatch, 128 rows x 64": {"chunk_size": 128, "preload_nchunks": 64},
    "annbatch, 512 rows x 8": {"chunk_size": 512, "preload_nchunks": 8},
    "annbatch, 512 rows x 32": {},  # its defaults
    "annbatch, 512 rows x 32, no zarrs": {"zarrs": False},
}
"""The adjacent rows that annbatch reads, and the chunks of them that it shuffles at once; fastest settings first."""


SOME_GENES = 8000
"""Genes of a selection: the first ones."""


def suites(uri: str, copy: str | None) -> dict[str, list[tuple[str, str, Case]]]:
    """Each suite: (label, contender, case); ratios are taken against the first."""
    base, twice = Case(uri, passes=PASSES), Case(uri, passes=2)
    dense = replace(base, sparse=False)
    genes = replace(dense, n_genes=SOME_GENES)

    def cellfeed(case: Case) -> list[tuple[str, str, Case]]:
        copied = [] if copy is None else [("cellfeed, local copy", "cellfeed", replace(case, uri=copy))]
        return [*copied, ("cellfeed, SOMA", "cellfeed", case)]

    def annbatch(case: Case) -> list[tuple[str, str, Case]]:
        return [(label, "annbatch", replace(case, options={"to": "torch", **own})) for label, own in ANNBATCH.items()]

    theirs = replace(base, uri=str(converted(uri, "annbatch")))
    of_these = None if copy is None else replace(dense, uri=str(of_some_genes(copy)))
    selected = [] if of_these is None else [("cellfeed, local copy of these genes", "cellfeed", of_these)]
    return {
        "sparse": [*cellfeed(base), *annbatch(twice), ("cellstream, random rows", "cellstream", twice)],
        "dense": [*cellfeed(dense), *annbatch(replace(twice, sparse=False))],
        "genes8000": [*selected, *cellfeed(genes)],
        "collection": [("cellfeed, annbatch's collection", "cellfeed", theirs), *annbatch(twice)],
    }


def of_some_genes(copy: str) -> Path:
    """Return the path of the copy of the first genes, beside the copy of all."""
    return Path(copy).with_suffix(f".{SOME_GENES}.zarr")


def write_copy_of_some_genes(uri: str, copy: str) -> None:
    """Write the copy of the first genes, unless it is there."""
    import tiledbsoma as soma

    from cellfeed import ExperimentDataset

    if not of_some_genes(copy).exists():
        genes = soma.AxisQuery(coords=(slice(0, SOME_GENES - 1),))
        ExperimentDataset(uri, var_query=genes, seed=0).write_copy(of_some_genes(copy))


def bytes_per_nonzero(uri: str, copy: str | None) -> dict[str, float]:
    """Bytes on disk of X in each format that is there, over the nonzeros of the SOMA store."""
    import tiledbsoma as soma

    with soma.open(f"{uri}/ms/RNA/X/raw") as X:
        nnz = X.nnz
    formats = {name: converted(uri, name) for name in ("annbatch", "cellstream", "h5ad")}
    paths = {"SOMA": Path(uri), **formats} | ({} if copy is None else {"local copy": Path(copy)})
    return {name: X_bytes(path) / nnz for name, path in paths.items() if path.exists()}


def X_bytes(path: Path) -> int:
    """Bytes of the files below the folders named X; a format of one file counts whole."""
    if path.is_file():
        return path.stat().st_size
    return sum(
        file.stat().st_size for file in path.rglob("*") if file.is_file() and "X" in file.relative_to(path).parts
    )


SHOWN = {"cellfeed, local copy": "local copy", "cellfeed, SOMA": "SOMA", "annbatch": "annbatch"}
"""Contenders of the picture, and their formats; annbatch with the fastest of its settings."""


def medians(records: list[dict[str, Any]], suite: str) -> dict[str, float]:
    """Cells per second of processor time of each contender of the picture, in its final epoch: medians of the runs."""
    rates: dict[str, list[float]] = {}
    for record in records:
        if record["suite"] == suite:
            final = record["passes"][-1]
            rates.setdefault(record["label"], []).append(final["cells"] / final["cpu_s"])
    middle = {label: statistics.median(own) for label, own in rates.items()}
    return {name: max(rate for label, rate in middle.items() if label.startswith(name)) for name in SHOWN}


def draw(records: list[dict[str, Any]], picture: Path) -> None:
    """Draw rates and bytes per nonzero side by side."""
    sizes = next(record["formats"] for record in records if record["suite"] == "bytes")
    panels = {
        "1,000 cells per second of processor time": {n: r / 1e3 for n, r in medians(records, "sparse").items()},
        "Bytes per nonzero on disk": {name: sizes[kind] for name, kind in SHOWN.items()},
    }
    draw_bars(panels, ["tab:blue", "tab:cyan", "tab:gray"], picture, size=(9, 2))


FILES = {
    "36M": StoreSpec(n_obs=50_000, n_vars=33_538, nnz_per_cell=720, n_expressed=20_000),
    "135M": StoreSpec(n_obs=50_000, nnz_per_cell=2_700),
}
"""Files of 50,000 cells by their nonzeros: a usual experiment, and cells as deep as those of a Census."""

COMPRESSIONS = {"uncompressed": {}, "gzip": {"compression": "gzip", "compression_opts": 4}}
OBS = (
    *("dataset_id", "assay", "cell_type", "development_stage", "disease", "donor_id", "is_primary_data"),
    *("sex", "suspension_type", "tissue", "nnz", "raw_sum"),
)


def write_files(folder: Path, files: dict[str, StoreSpec] = FILES) -> None:
    """Write each file with each compression, if it is not there."""
    import tiledbsoma as soma
    import tiledbsoma.io

    folder.mkdir(parents=True, exist_ok=True)
    for name, spec in files.items():
        missing = {c: path for c in COMPRESSIONS if not (path := folder / f"{name}.{c}.h5ad").exists()}
        if not missing:
            continue
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            write_store(f"{scratch}/cells.soma", spec)
            with soma.open(f"{scratch}/cells.soma") as experiment:
                names = {"obs_id_name": "observation_joinid", "var_id_name": "feature_id"}
                cells = soma.io.to_anndata(experiment, "RNA", X_layer_name="raw", **names)
        cells.obs = cells.obs[list(OBS)]
        for compression, path in missing.items():
            cells.write_h5ad(path, **COMPRESSIONS[compression])


BY_ANNBATCH = """
import sys
import zarr
from annbatch import DatasetCollection

zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
DatasetCollection(sys.argv[2]).add_adatas([sys.argv[1]])
"""


def converters(peers: Path) -> dict[str, list[str]]:
    """Commands that take an ``.h5ad`` and the path of what they write."""
    theirs = peers / "annbatch/bin/python"
    found = {"cellfeed copy": [sys.executable, "-m", "cellfeed", "copy"]}
    return found | ({"annbatch add_adatas": [str(theirs), "-c", BY_ANNBATCH]} if theirs.exists() else {})


def measure(command: list[str]) -> dict[str, float]:
    """Run a command: its seconds, its processor time, and the largest memory of its processes, summed."""
    highest: dict[int, int] = {}
    before = os.times()
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, env=environment(PYTHONWARNINGS="ignore")
        )
        while process.poll() is None:
            for pid in family(process.pid):
                highest[pid] = max(highest.get(pid, 0), highest_resident_bytes(pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command[:4])} failed:\n{errors.read()[-2000:]}")
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": seconds, "cpu_s": cpu_s, "peak_bytes": sum(highest.values())}


def family(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in found:
            yield from family(int(child))


def convert(
    source: Path, commands: dict[str, list[str]], *, repeat: int, out: Path | None = None
) -> list[dict[str, Any]]:
    """Convert a file by each command, one after another, ``repeat`` times; append a record each."""
    records = []
    about = {"suite": "convert", "commit": commit(), "cores": os.cpu_count(), "processor": processor()}
    about |= {"source": source.name, "source_bytes": source.stat().st_size}
    of = {label: versions_of(command[0]) for label, command in commands.items()}
    with source.open("rb") as file:  # the file is warm
        while file.read(1 << 24):
            pass
    for k in range(repeat):
        for label, command in commands.items():
            with tempfile.TemporaryDirectory(dir=source.parent) as scratch:
                target = Path(scratch) / "cells.zarr"
                figures = measure([*command, str(source), str(target)]) | {"X_bytes": X_bytes(target)}
            records.append({**about, "repeat": k, "label": label, "versions": of[label], **figures})
            append(out, records[-1])
    return records


def versions_of(python: str) -> dict[str, str]:
    """Return the versions that another interpreter has."""
    code = (
        "import json, sys; from benchmarks.harness.records import versions; print(json.dumps(versions(sys.argv[1:])))"
    )
    done = subprocess.run(
        [python, "-c", code, *PACKAGES], capture_output=True, text=True, env=environment(), check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def conversions(records: list[dict[str, Any]]) -> str:
    """Medians and ranges of each command, for one file."""
    lines = [f"{records[0]['source']:24} {'s':>6} {'min..max':>13} {'cpu s':>6} {'peak GB':>8} {'X MB':>7}"]
    for label in dict.fromkeys(record["label"] for record in records):
        mine = [record for record in records if record["label"] == label]
        names = ("seconds", "cpu_s", "peak_bytes", "X_bytes")
        seconds, cpu_s, peak, size = (statistics.median(record[name] for record in mine) for name in names)
        least, most = min(record["seconds"] for record in mine), max(record["seconds"] for record in mine)
        spread = f"{least:5.1f}..{most:<6.1f}"
        lines.append(f"{label:24} {seconds:6.1f} {spread} {cpu_s:6.1f} {peak / 1e9:8.2f} {size / 1e6:7.0f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    reading = commands.add_parser("read", help="minibatches from each format")
    reading.add_argument("uri")
    reading.add_argument("--copy", help="a local copy of the same cells, as Dataset.write_copy writes it")
    reading.add_argument("--suite", action="append", choices=sorted(suites("", None)), help="default: all")
    drawing = commands.add_parser("draw", help="draw recorded results of read")
    drawing.add_argument("picture", type=Path)
    drawing.add_argument("--out", type=Path, required=True, help="the records")
    commands.add_parser("files", help="write the .h5ad files").add_argument("folder", type=Path)
    converting = commands.add_parser("convert", help="from .h5ad to what each loader reads")
    converting.add_argument("folder", type=Path)
    for command in (reading, converting):
        command.add_argument("--peers", type=Path, default=Path("peers"), help="folder of the peers' environments")
        command.add_argument("--repeat", type=int, default=5)
        command.add_argument("--out", type=Path, help="append records here, a JSON line each")
    given = parser.parse_args()
    if given.command == "draw":
        draw([json.loads(line) for line in given.out.read_text().splitlines()], given.picture)
    elif given.command == "files":
        write_files(given.folder)
    elif given.command == "convert":
        for source in sorted(given.folder.glob("*.h5ad")):
            records = convert(source, converters(given.peers), repeat=given.repeat, out=given.out)
            print(f"\n{conversions(records)}", flush=True)
    else:
        formats = bytes_per_nonzero(given.uri, given.copy)
        append(given.out, {"suite": "bytes", "formats": formats})
        for name, size in formats.items():
            print(f"{name:12} {size:5.2f} bytes per nonzero")
        if given.copy is not None:
            write_copy_of_some_genes(given.uri, given.copy)
        found = suites(given.uri, given.copy)
        for suite in given.suite or found:
            records = run_in_turn(suite, found[suite], repeat=given.repeat, peers=given.peers, out=given.out)
            print(f"\n{suite}\n{summary(records)}", flush=True)


if __name__ == "__main__":
    main()
