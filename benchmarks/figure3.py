"""The article's Figure 3 again: speed against memory, over block sizes and chunks per block.

    python -m benchmarks.figure3 run census_262k.soma --peers peers --out benchmarks/results/figure3.jsonl
    python -m benchmarks.figure3 draw benchmarks/results/figure3.jsonl docs/figure3.png

The published loader and cellfeed's scatter-gather run at the same settings, dense and CSR, and cellfeed once with its
own plan. As in the article (Census team, July 2024) columns are sliced: the first 8,000 genes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness.contenders import Case
from benchmarks.harness.records import append, commit
from benchmarks.harness.run import run_once

BLOCKS = (65_536, 131_072, 262_144)
CHUNKS = (1, 16, 256, 1024, 4096)
N_GENES = 8_000


def run(uri: str, peers: Path, out: Path, cells: int, blocks: list[int], counts: list[int]) -> None:
    for sparse in (False, True):
        base = replace(Case(uri), sparse=sparse, n_genes=N_GENES, max_cells=cells)
        record = run_once("cellfeed, own plan", "cellfeed", replace(base, passes=2), peers)
        _save(out, {"block": None, "chunks": None, "sparse": sparse, **(record or {})})
        for block in blocks:
            for chunks in counts:
                options = {"soma_chunk_size": block // chunks, "shuffle_chunk_count": chunks}
                for label, contender in (("cellfeed", "cellfeed"), ("ExperimentDataPipe", "experiment_datapipe")):
                    parameters = {**options, "memory_budget": "16 GiB"} if contender == "cellfeed" else options
                    try:
                        record = run_once(label, contender, replace(base, options=parameters), peers)
                    except RuntimeError as failure:  # as where a block does not fit in memory
                        print(f"{label} block {block} chunks {chunks} sparse {sparse}: {failure}", flush=True)
                        continue
                    if record is not None:
                        _save(out, {"block": block, "chunks": chunks, "sparse": sparse, **record})


def _save(out: Path, record: dict[str, Any]) -> None:
    append(out, {"commit": commit(), **record})
    done = record["passes"][-1]
    print(
        f"{record['label']:20} block {record['block']} chunks {record['chunks']} sparse {record['sparse']}: "
        f"{done['cells_per_s']:,.0f} cells/s, {record['peak_bytes'] / 1e9:.2f} GB",
        flush=True,
    )


COLOURS = {"ExperimentDataPipe": "#ffa90e", "cellfeed": "#3f90da", "cellfeed, own plan": "#bd1f01"}
NAMES = {"ExperimentDataPipe": "published ExperimentDataPipe", "cellfeed": "cellfeed, same settings"}
MARKERS = {65_536: "o", 131_072: "s", 262_144: "^", None: "*"}


def draw(results: Path, picture: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    records = [json.loads(line) for line in results.read_text().splitlines()]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for axis, sparse in zip(axes, (False, True), strict=True):
        for label in COLOURS:
            for block in MARKERS:
                chosen = [(r["label"], r["block"], r["sparse"]) == (label, block, sparse) for r in records]
                _draw_line(axis, [r for r, is_chosen in zip(records, chosen, strict=True) if is_chosen])
        axis.set(
            title="CSR" if sparse else "dense", xlabel="peak memory of the process, GB", xscale="log", yscale="log"
        )
        axis.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
        axis.set_xlim(0.5, 22)
        axis.grid(True, which="both", alpha=0.2)
    axes[0].set_ylabel("cells per second")
    kinds = [(COLOURS[label], "o", name) for label, name in NAMES.items()]
    kinds += [(COLOURS["cellfeed, own plan"], "*", "cellfeed, its own plan")]
    kinds += [("grey", marker, f"{block:,} cells a block") for block, marker in MARKERS.items() if block]
    handles = [plt.Line2D([], [], color=colour, marker=marker, ls="", label=name) for colour, marker, name in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.suptitle("Speed against memory: 8,000 genes, 2 cores; 1 chunk a block (pale) to 4,096 (dark)", fontsize=11)
    figure.savefig(picture, dpi=130)


def _draw_line(axis: Any, records: list[dict[str, Any]]) -> None:
    """One loader at one block size, from one chunk a block to the most."""
    points = sorted((r["chunks"] or 0, r["peak_bytes"] / 1e9, r["passes"][-1]["cells_per_s"]) for r in records)
    if not points:
        return
    label, block = records[0]["label"], records[0]["block"]
    axis.plot([x for _, x, _ in points], [y for _, _, y in points], color=COLOURS[label], alpha=0.35, lw=1, zorder=1)
    for k, (_, x, y) in enumerate(points):
        shade = 1.0 if block is None else 0.3 + 0.7 * k / max(len(points) - 1, 1)
        size = 220 if block is None else 42
        axis.scatter(x, y, s=size, marker=MARKERS[block], color=COLOURS[label], alpha=shade, linewidths=0, zorder=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("uri")
    running.add_argument("--peers", type=Path, default=Path("peers"))
    running.add_argument("--out", type=Path, default=Path("benchmarks/results/figure3.jsonl"))
    running.add_argument("--cells", type=int, default=262_144, help="cells of each run")
    running.add_argument("--blocks", type=int, nargs="+", default=list(BLOCKS), help="cells of a block")
    running.add_argument("--chunks", type=int, nargs="+", default=list(CHUNKS), help="chunks of a block")
    drawing = commands.add_parser("draw")
    drawing.add_argument("results", type=Path)
    drawing.add_argument("picture", type=Path)
    options = parser.parse_args()
    if options.command == "run":
        run(options.uri, options.peers, options.out, options.cells, options.blocks, options.chunks)
    else:
        draw(options.results, options.picture)


if __name__ == "__main__":
    main()
