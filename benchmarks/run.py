"""Compare loaders in one run on one machine: each in its own process, in turn, several times.

    python -m benchmarks.run census_131k.soma --suite sparse --peers peers --out benchmarks/results/sparse.jsonl

Peers run in environments of their own, folders under ``--peers`` (see README.md); a missing one is skipped with a note.
Files are warm: every contender reads the files that the one before it has read. Prints medians, spreads and ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness.contenders import Case
from benchmarks.harness.records import append, commit, processor
from benchmarks.harness.run import PASSES, TUNED, run_once
from benchmarks.harness.stores import StoreSpec, write_store


def suites(uri: str, cells: int | None, warm_uri: str | None = None) -> dict[str, list[tuple[str, str, Case]]]:
    """Each suite: (label, contender, case); ratios are taken against the second."""
    base = Case(uri, warm_uri=warm_uri)

    def slow(n: int) -> int:
        """Cells for a contender that need not finish the epoch; 65,536 are one IO batch of tiledbsoma-ml."""
        return n if cells is None else min(n, cells)

    dense = replace(base, sparse=False)
    tuned = {"tiledb_config": TUNED, "malloc": True}
    return {
        "sparse": [
            ("cellfeed", "cellfeed", replace(base, passes=PASSES, max_cells=cells)),
            ("tiledbsoma-ml", "tiledbsoma_ml", replace(base, max_cells=cells)),
        ],
        "tuned": [
            ("cellfeed", "cellfeed", replace(base, passes=PASSES, max_cells=cells)),
            ("tiledbsoma-ml tuned", "tiledbsoma_ml", replace(base, max_cells=slow(65_536), options=tuned)),
            (
                "tiledbsoma-ml tuned, 16k rows",
                "tiledbsoma_ml",
                replace(base, max_cells=slow(65_536), options={**tuned, "io_batch_size": 16384}),
            ),
            (
                "tiledbsoma-ml tuned, chunks of 2,048",
                "tiledbsoma_ml",
                replace(base, max_cells=slow(65_536), options={**tuned, "shuffle_chunk_size": 2048}),
            ),
        ],
        "amplified": [
            ("cellfeed", "cellfeed", replace(base, passes=PASSES, max_cells=cells)),
            ("tiledbsoma-ml", "tiledbsoma_ml", replace(base, max_cells=slow(20_480), options={"io_batch_size": 4096})),
        ],
        "slow": [
            ("cellfeed, sparse", "cellfeed", replace(base, passes=3, max_cells=cells, sleep_s=0.03)),
            ("cellfeed, dense", "cellfeed", replace(dense, passes=3, max_cells=cells, sleep_s=0.03)),
        ],
        "dense": [
            ("cellfeed", "cellfeed", replace(dense, passes=PASSES, max_cells=cells)),
            ("tiledbsoma-ml", "tiledbsoma_ml", replace(dense, max_cells=cells)),
        ],
        "genes8000": [
            ("cellfeed", "cellfeed", replace(dense, n_genes=8000, passes=PASSES, max_cells=cells)),
            ("tiledbsoma-ml", "tiledbsoma_ml", replace(dense, n_genes=8000, max_cells=slow(65_536))),
        ],
        "formats": [
            ("cellfeed", "cellfeed", replace(base, passes=PASSES, max_cells=cells)),
            ("annbatch, its own zarr", "annbatch", replace(base, passes=2, max_cells=cells)),
            ("cellstream, its own archive", "cellstream", replace(base, passes=2, max_cells=cells)),
        ],
        "published": [
            (
                "cellfeed",
                "cellfeed",
                replace(
                    dense,
                    passes=PASSES,
                    max_cells=cells,
                    options={"soma_chunk_size": 64, "shuffle_chunk_count": 200},
                ),
            ),
            (
                "ExperimentDataPipe",
                "experiment_datapipe",
                replace(
                    dense,
                    max_cells=slow(38_400),
                    options={"soma_chunk_size": 64, "shuffle_chunk_count": 200},
                ),
            ),
        ],
    }


def summary(records: list[dict[str, Any]]) -> str:
    """Medians over the repeats: rates of the last epoch of each run, the first minibatch of its first epoch."""
    labels = list(dict.fromkeys(record["label"] for record in records))
    rates = {x: [r["passes"][-1]["cells_per_s"] for r in records if r["label"] == x] for x in labels}
    heads = f"{'':38} {'cells/s':>9} {'min..max':>17} {'1st epoch':>10} {'first s':>8} {'peak GB':>8} {'cpu us':>7}"
    lines = [f"{heads} {'waits':>6} ratio"]
    for label in labels:
        mine = [r for r in records if r["label"] == label]

        def median(get: Any, mine: list[dict[str, Any]] = mine) -> float:
            return statistics.median(get(r) for r in mine)

        ratio = statistics.median(rates[labels[0]]) / statistics.median(rates[label])
        lines.append(
            f"{label:38} {median(lambda r: r['passes'][-1]['cells_per_s']):9,.0f} "
            f"{min(rates[label]):8,.0f}..{max(rates[label]):<8,.0f}"
            f"{median(lambda r: r['passes'][0]['cells_per_s']):10,.0f} "
            f"{median(lambda r: r['passes'][0]['first_s']):8.2f} "
            f"{median(lambda r: r['peak_bytes']) / 1e9:8.2f} "
            f"{median(lambda r: r['passes'][-1]['cpu_s'] / r['passes'][-1]['cells']) * 1e6:7.0f} "
            f"{median(lambda r: r['passes'][-1]['waited_s'] / r['passes'][-1]['seconds']):6.1%} {ratio:.1f}"
        )
    return "\n".join(lines)


def run_suite(
    uri: str, suite: str, *, repeat: int, peers: Path, cells: int | None, out: Path | None
) -> list[dict[str, Any]]:
    """Run a suite ``repeat`` times, its contenders in turn."""
    with tempfile.TemporaryDirectory() as folder:
        warm_uri = f"{folder}/warm.soma"
        write_store(warm_uri, StoreSpec(n_obs=2048, nnz_per_cell=500))
        return run_in_turn(suite, suites(uri, cells, warm_uri)[suite], repeat=repeat, peers=peers, out=out)


def run_in_turn(
    suite: str, cases: list[tuple[str, str, Case]], *, repeat: int, peers: Path, out: Path | None
) -> list[dict[str, Any]]:
    """Run each case, one after another, ``repeat`` times; append a record each."""
    records: list[dict[str, Any]] = []
    skipped = set()
    for k in range(repeat):
        for label, contender, case in cases:
            record = run_once(label, contender, case, peers)
            if record is None:
                skipped.add(label)
                continue
            about = {"commit": commit(), "cores": os.cpu_count(), "processor": processor()}
            records.append({"suite": suite, "repeat": k, **about, **record})
            append(out, records[-1])
    for label in sorted(skipped):
        print(f"skipped {label}: no environment for it under {peers}, or no store in its format")
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uri")
    parser.add_argument("--suite", action="append", choices=sorted(suites("", None)), help="default: all")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--peers", type=Path, default=Path("peers"), help="folder of the peers' environments")
    parser.add_argument("--cells", type=int, help="stop each epoch after this number of cells")
    parser.add_argument("--out", type=Path, help="append records here, a JSON line each")
    options = parser.parse_args()
    for suite in options.suite or sorted(suites("", None)):
        records = run_suite(
            options.uri, suite, repeat=options.repeat, peers=options.peers, cells=options.cells, out=options.out
        )
        print(f"\n{suite}\n{summary(records)}", flush=True)


if __name__ == "__main__":
    main()
