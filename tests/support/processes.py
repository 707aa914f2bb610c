"""Start Python, a script or ranks under torchrun, as processes of their own."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if not k.startswith(("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_"))},
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
    "GLOO_SOCKET_IFNAME": "lo",
}

PATIENCE_S = 280
"""Seconds after which a process counts as hung: far more than it needs on a busy machine, less than pytest's limit."""


def python(*arguments, **options):
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, env=ENVIRONMENT, text=True, **options)


def run(*command, **environment):
    """Run Python to its end, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env={**ENVIRONMENT, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:]
    return done.stdout


def apart(function, *arguments):
    """Call a function in a process of its own, which has no threads, files or memory of other tests."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def on_ranks(n_ranks, *program):
    """Run a script, or a module behind ``-m``, on several ranks."""
    return run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", n_ranks, *program)


def torchrun(n_ranks, module, *arguments):
    return on_ranks(n_ranks, "-m", module, *arguments)
