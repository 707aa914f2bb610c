"""Run one contender in a process of its own, in the environment that its dependencies need."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.contenders import Case
from benchmarks.harness.formats import SUFFIXES, converted
from benchmarks.harness.records import environment

TUNED = {
    "sm.mem.malloc_trim": "false",
    "soma.init_buffer_bytes": str(30 << 20),
    "sm.mem.tile_upper_memory_limit": str(16 << 20),
}
PASSES = 4
"""Epochs of cellfeed, of two seconds each; in the first the system still allocates memory. The last one counts."""

MAX_CRASHES = 2
"""Number of further attempts if a peer dies; its records contain the number of crashes."""

ENVIRONMENTS = ("tiledbsoma_ml", "experiment_datapipe", "annbatch", "cellstream", "scdataset", "homeobox")
"""Folders under ``--peers``; cellfeed runs in the environment of the caller."""


def run_once(label: str, contender: str, case: Case, peers: Path) -> dict[str, Any] | None:
    """Run one contender in its own process; ``None`` if its environment, or the store in its format, is not there."""
    python = str(peers / contender / "bin" / "python") if contender in ENVIRONMENTS else sys.executable
    form = "h5ad" if contender == "scdataset" else contender
    foreign = form in SUFFIXES
    if not Path(python).exists() or (foreign and not converted(case.uri, form).exists()):
        return None
    if foreign:
        case = replace(case, warm_uri=None)  # they compile nothing at run time
    alike = environment(PYTHONWARNINGS="ignore")
    command = [python, "-m", "benchmarks.harness.contenders", contender, json.dumps(asdict(case))]
    for crashes in range(MAX_CRASHES + 1):
        done = subprocess.run(command, capture_output=True, text=True, env=alike, check=False)
        if done.returncode == 0:
            break
        if contender not in ENVIRONMENTS or crashes == MAX_CRASHES:
            raise RuntimeError(f"{label} failed:\n{done.stderr[-2000:]}")
        print(f"{label} died and is run again: {done.stderr.strip().splitlines()[-1:]}", flush=True)
    record: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    record["case"]["uri"] = Path(case.uri).name  # records are published: they contain no path of this machine
    del record["case"]["warm_uri"]
    return {"label": label, "crashes": crashes, **record}
