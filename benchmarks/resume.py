"""Size and cost of a state, time from a restore to the first minibatch, and balance of the work of ranks.

python -m benchmarks.resume census_131k.soma
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed import ExperimentDataset
from cellfeed.plan.epoch import World
from cellfeed.plan.windows import ShardWindows


def milliseconds(action: object, repeat: int) -> float:
    taken = []
    for _ in range(repeat):
        started = time.perf_counter()
        action()  # type: ignore[operator]
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1e3


def _nonzeros(shard: ShardWindows, depth: npt.NDArray[Any]) -> int:
    windows = (shard.fetches(k, since=k) for k in range(len(shard)))
    return sum(int(depth[fetch.positions].sum()) for fetches in windows for fetch in fetches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uri")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    dataset = ExperimentDataset(options.uri, batch_size=1024, seed=0, return_sparse_X=True)
    for _ in dataset:  # compiles, and touches memory
        pass
    dataset.set_epoch(0)
    iterator = iter(dataset)
    list(itertools.islice(iterator, len(dataset) // 2))
    started = time.perf_counter()
    state = dataset.state_dict()
    first = time.perf_counter() - started
    print(f"state: {len(json.dumps(state))} bytes as JSON; the first takes {first * 1e3:.1f} ms: it names the cells")
    print(f"later ones: {milliseconds(dataset.state_dict, 200) * 1e3:.0f} us")
    del iterator
    for name, epoch_or_state in (("new epoch", 0), ("restored in the middle", state)):
        taken = []
        for _ in range(options.repeat):
            if isinstance(epoch_or_state, int):
                dataset.set_epoch(epoch_or_state)
            started = time.perf_counter()
            if not isinstance(epoch_or_state, int):
                dataset.load_state_dict(epoch_or_state)
            next(iter(dataset))
            taken.append(time.perf_counter() - started)
        print(f"first minibatch of a {name}: {statistics.median(taken):.2f} s ({min(taken):.2f}..{max(taken):.2f})")
    depth = dataset._engine.selection.nnz
    if depth is None:
        return
    for n_ranks in (2, 4, 8):
        ratios = []
        for epoch in range(20):
            plan = dataset._engine.media.source.planner.epoch_order(epoch)
            sums = [_nonzeros(ShardWindows(plan, *plan.shard(World(rank, n_ranks))), depth) for rank in range(n_ranks)]
            ratios.append(max(sums) / min(sums))
        print(f"{n_ranks} ranks: most over least nonzeros {np.median(ratios):.3f} (of 20 epochs: {max(ratios):.3f})")


if __name__ == "__main__":
    main()
