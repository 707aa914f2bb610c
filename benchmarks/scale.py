"""A million cells: cellfeed beside other loaders, on the data of a public benchmark.

    python -m benchmarks.scale write folder --peers peers  # the cells in each format, one after another: 23 GB
    python -m benchmarks.scale read folder --peers peers --out benchmarks/results/scale.jsonl
    python -m benchmarks.scale wait folder --peers peers --out benchmarks/results/scale.jsonl

The cells are those of ``harness/uniform.py``. A store that is there is not written again. ``read`` measures minibatches
of 64, 512 and 4,096 cells in the middle of an epoch: a whole epoch of slow loaders takes minutes, and they deliver in
bursts of up to 65,536 cells. ``wait`` measures whole epochs of a consumer that sleeps after each minibatch. Each run
has a process of its own, in turn.

Run this with an interpreter that has the versions of PyTorch and zarr that the peers have.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness.contenders import Case
from benchmarks.harness.formats import converted
from benchmarks.harness.records import environment
from benchmarks.harness.uniform import UniformSpec, write_h5ad, write_soma
from benchmarks.run import run_in_turn
from cellfeed import ExperimentDataset

BATCH_SIZES = (64, 512, 4096)
BURST = 65_536
"""Cells that tiledbsoma-ml and homeobox read together, by default."""

FILLED = 5 * BURST
"""Cells after which the pool of cellfeed has its full size: until then it reads more cells than it delivers."""

SLEEPS = (0.005, 0.01, 0.02)
WAITING_BATCH_SIZE = 512

PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiledbsoma-ml": ("tiledbsoma_ml", {}),
    "annbatch": ("annbatch", {"to": "torch"}),
    "annbatch, 128 rows x 64": ("annbatch", {"to": "torch", "chunk_size": 128, "preload_nchunks": 64}),
    "scDataset": ("scdataset", {}),
    "scDataset, blocks of 64 rows x 64": ("scdataset", {"block_size": 64, "fetch_factor": 64}),
    "homeobox": ("homeobox", {}),
    "homeobox, map": ("homeobox", {"mode": "map"}),
}
"""Contenders and their options by label: the defaults of each, then its fastest settings that we know."""

Cases = list[tuple[str, str, Case]]


def stores(folder: Path) -> tuple[str, Path]:
    """Return the places of the SOMA experiment and of the local copy."""
    return str(folder / "cells.soma"), folder / "cells.zarr"


def write(folder: Path, peers: Path, spec: UniformSpec) -> None:
    """Write each store that is not there."""
    uri, copy = stores(folder)
    folder.mkdir(parents=True, exist_ok=True)
    h5ad = converted(uri, "h5ad")
    if not h5ad.exists():
        write_h5ad(h5ad, spec)
    if not Path(uri).exists():
        write_soma(uri, h5ad)
    if not copy.exists():
        ExperimentDataset(uri).write_copy(copy)
    for name in ("annbatch", "homeobox"):
        python = peers / name / "bin/python"
        if python.exists() and not converted(uri, name).exists():
            command = [str(python), "-m", "benchmarks.harness.formats", name, uri]
            subprocess.run(command, env=environment(PYTHONWARNINGS="ignore"), check=True)


def rates(folder: Path, batch_size: int, n_cells: int, only: tuple[str, ...] = ()) -> Cases:
    """Return the cases of ``read``: all labels, or those that begin with one of ``only``."""
    uri, copy = stores(folder)
    part = Case(uri, batch_size=batch_size, skip_cells=BURST, max_cells=n_cells)
    filled = replace(part, skip_cells=FILLED)
    cases = [
        ("cellfeed, local copy", "cellfeed", replace(filled, uri=str(copy))),
        ("cellfeed, SOMA", "cellfeed", filled),
        *((label, name, replace(part, options=options)) for label, (name, options) in PEERS.items()),
    ]
    return [case for case in cases if case[0].startswith(only or "")]


def waits(folder: Path, sleep_s: float, only: tuple[str, ...] = ()) -> Cases:
    """Return the cases of ``wait``: whole epochs, the second of each loader."""
    return [
        (label, name, replace(case, passes=2, skip_cells=0, max_cells=None, sleep_s=sleep_s))
        for label, name, case in rates(folder, WAITING_BATCH_SIZE, 0, only)
    ]


def summary(records: list[dict[str, Any]]) -> str:
    """Medians and ranges over the repeats, of the last epoch of each run."""
    heads = ("cells/s", "min..max", "cells/cpu s", "min..max", "peak GB", "waits", "99.9 % gap ms", "longest ms")
    lines = [f"{'':50} " + " ".join(f"{head:>15}" for head in heads)]
    for suite, label in dict.fromkeys((record["suite"], record["label"]) for record in records):
        mine = [r for r in records if (r["suite"], r["label"]) == (suite, label)]
        last = [record["passes"][-1] for record in mine]
        rate, of_cpu = [one["cells_per_s"] for one in last], [one["cells"] / one["cpu_s"] for one in last]
        columns = [
            *(text for own in (rate, of_cpu) for text in (f"{statistics.median(own):,.0f}", spread(own))),
            f"{statistics.median(record['peak_bytes'] for record in mine) / 1e9:.2f}",
            f"{statistics.median(one['waited_s'] / one['seconds'] for one in last):.1%}",
            f"{statistics.median(one['p999_gap_s'] for one in last) * 1e3:.1f}",
            f"{statistics.median(one['longest_gap_s'] for one in last) * 1e3:.0f}",
        ]
        lines.append(f"{suite:16} {label:33} " + " ".join(f"{column:>15}" for column in columns))
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    return f"{min(values):,.0f}..{max(values):,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("write", "read", "wait"))
    parser.add_argument("folder", type=Path, help="of the stores")
    parser.add_argument("--peers", type=Path, default=Path("peers"), help="folder of the peers' environments")
    parser.add_argument("--out", type=Path, help="append records here, a JSON line each")
    parser.add_argument("--only", action="append", default=[], help="labels that begin so; default: all")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--n-obs", type=int, default=UniformSpec.n_obs, help="cells of the stores that are written")
    parser.add_argument("--n-cells", type=int, default=4 * BURST, help="cells of an epoch that are measured")
    given = parser.parse_args()
    if given.command == "write":
        write(given.folder, given.peers, UniformSpec(n_obs=given.n_obs))
        return
    only = tuple(given.only)
    if given.command == "read":
        suites = {f"batch size {size}": rates(given.folder, size, given.n_cells, only) for size in BATCH_SIZES}
    else:
        suites = {f"sleep {sleep_s * 1e3:g} ms": waits(given.folder, sleep_s, only) for sleep_s in SLEEPS}
    for suite, cases in suites.items():
        records = run_in_turn(suite, cases, repeat=given.repeat, peers=given.peers, out=given.out)
        print(summary(records), flush=True)


if __name__ == "__main__":
    main()
