"""Leaves a loop over a dataset in one of several ways, and prints the resources before and after.

python -m tests.programs.endings URI break 2
"""

import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

# Where tests run in the background SIGINT is ignored, and TileDB would call "ignore" as if it were a function.
signal.signal(signal.SIGINT, signal.default_int_handler)

import cellfeed  # noqa: E402


def held():
    """Threads, open files and pieces of shared memory of this process."""
    files = [os.readlink(f) for f in Path("/proc/self/fd").iterdir() if f.exists()]  # noqa: PTH115 - as it stands there
    return {
        "threads": sorted(t.name for t in threading.enumerate() if t.name.startswith("cellfeed")),
        "files": len([name for name in files if not name.startswith(("pipe:", "anon_inode:", "socket:"))]),
        "shared": sorted(path.name for path in Path("/dev/shm").iterdir() if f"_{os.getpid()}_" in path.name),
    }


def main():
    uri, how, num_workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    dataset = cellfeed.ExperimentDataset(uri, batch_size=2, soma_chunk_size=2, shuffle_chunk_count=5, seed=0)
    loader = cellfeed.experiment_dataloader(dataset, num_workers=num_workers)
    for _ in loader:  # the first epoch imports, compiles, and opens handles that stay open
        pass
    gc.collect()
    before = held()
    workers = []
    if how == "exit":
        globals()["kept"] = iterator = iter(loader)
        next(iterator)
        workers = [worker.pid for worker in multiprocessing.active_children()]
        print(json.dumps({"workers": workers, "before": before, "after": None}))
        return
    try:
        for k, _ in enumerate(loader):
            workers = workers or [worker.pid for worker in multiprocessing.active_children()]
            if k == 3 and how == "break":
                break
            if k == 3 and how == "error":
                raise RuntimeError("the loop's own")
            if k == 3 and how == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10)
    except (RuntimeError, KeyboardInterrupt):
        pass
    gc.collect()
    print(json.dumps({"workers": workers, "before": before, "after": held()}))


if __name__ == "__main__":
    main()
