"""Compare the memory of a process with the memory that its plan predicts.

    python -m benchmarks.bound census_131k.soma --out benchmarks/results/bound.jsonl

Each configuration runs in a process of its own; the peak resident memory above that of the idle process is
compared with ``plan().peak_memory_bytes``. Two configurations run ten epochs, to show whether the peak grows.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.harness.contenders import Case
from benchmarks.harness.records import append
from benchmarks.harness.run import run_once
from benchmarks.harness.stores import StoreSpec, write_store

CONFIGURATIONS = {
    "dense, 2 GiB": (False, {}, 1),
    "dense, 4 GiB": (False, {"memory_budget": "4 GiB"}, 1),
    "dense, 1.5 GiB": (False, {"memory_budget": "1.5 GiB"}, 1),
    "dense float16, 1 GiB": (False, {"memory_budget": "1 GiB", "X_dtype": "float16"}, 1),
    "sparse, 2 GiB": (True, {}, 1),
    "sparse, 4 GiB": (True, {"memory_budget": "4 GiB"}, 1),
    "sparse, 1 GiB": (True, {"memory_budget": "1 GiB"}, 1),
    "sparse, 600 MiB": (True, {"memory_budget": "600 MiB"}, 1),
    "sparse, not eager, 1 GiB": (True, {"memory_budget": "1 GiB", "use_eager_fetch": False}, 1),
    "published, 64 x 200, dense": (False, {"soma_chunk_size": 64, "shuffle_chunk_count": 200}, 1),
    "sparse, 1 GiB, ten epochs": (True, {"memory_budget": "1 GiB"}, 10),
    "dense, 2 GiB, ten epochs": (False, {}, 10),
}
WORKERS = {
    "sparse, 2 GiB, 2 workers": (True, {}),
    "dense, 4 GiB, 2 workers": (False, {"memory_budget": "4 GiB"}),
}
"""The baseline of these is the memory of the process and its workers after an epoch over a small store."""


def cases(uri: str, warm_uri: str) -> dict[str, Case]:
    alone = {
        label: Case(uri, sparse=sparse, passes=passes, options=options)
        for label, (sparse, options, passes) in CONFIGURATIONS.items()
    }
    shared = {
        label: Case(uri, warm_uri=warm_uri, sparse=sparse, passes=2, options=options, num_workers=2)
        for label, (sparse, options) in WORKERS.items()
    }
    return alone | shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uri")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(f"{'':28} {'held GB':>8} {'plan GB':>8} {'held / plan':>11}")
    with tempfile.TemporaryDirectory() as folder:
        write_store(f"{folder}/warm.soma", StoreSpec(n_obs=2048, nnz_per_cell=500))
        for label, case in cases(options.uri, f"{folder}/warm.soma").items():
            measure(label, case, options.out)


def measure(label: str, case: Case, out: Path | None) -> None:
    record = run_once(label, "cellfeed", case, Path())
    assert record is not None
    held, planned = record["peak_bytes"] - record["idle_bytes"], record["plan"]["peak_memory_bytes"]
    print(f"{label:28} {held / 1e9:8.2f} {planned / 1e9:8.2f} {held / planned:11.2f}", flush=True)
    if len(record["passes"]) > 2:
        peaks = [(done["peak_bytes"] - record["idle_bytes"]) / 1e9 for done in record["passes"]]
        print(f"{'':28} epoch by epoch: {', '.join(f'{peak:.2f}' for peak in peaks)} GB", flush=True)
    append(out, record)


if __name__ == "__main__":
    main()
