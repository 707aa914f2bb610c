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

from benchmarks.contenders import Case
from benchmarks.run import commit, run_once

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
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as lines:
        lines.write(json.dumps({"commit": commit(), **record}) + "\n")
    done = record["passes"][-1]
    print(
        f"{record['label']:20} block {record['block']} chunks {record['chunks']} sparse {record['sparse']}: "
        f"{done['cells_per_s']:,.0f} cells/s, {record['peak_bytes'] / 1e9:.2f} GB",
        flush=True,
    )


def draw(results: Path, picture: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    records = [json.loads(line) for line in results.read_text().splitlines()]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    colours = {"ExperimentDataPipe": "tab:orange", "cellfeed": "tab:blue", "cellfeed, own plan": "tab:green"}
    for axis, sparse in zip(axes, (False, True), strict=True):
        for record in records:
            if record["sparse"] != sparse:
                continue
            x, y = record["peak_bytes"] / 1e9, record["passes"][-1]["cells_per_s"]
            marker = {65_536: "o", 131_072: "s", 262_144: "^", None: "*"}[record["block"]]
            size = 220 if record["block"] is None else 45
            axis.scatter(x, y, s=size, marker=marker, color=colours[record["label"]], alpha=0.85, linewidths=0)
            if record["chunks"] is not None:
                axis.annotate(f"{record['chunks']:,}", (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
        axis.set(title="CSR" if sparse else "dense", xlabel="peak memory of the process, GB", yscale="log")
        axis.grid(True, which="both", alpha=0.2)
    axes[0].set_ylabel("cells per second")
    handles = [
        plt.Line2D(
            [], [], color=colours["ExperimentDataPipe"], marker="o", ls="", label="published ExperimentDataPipe"
        ),
        plt.Line2D([], [], color=colours["cellfeed"], marker="o", ls="", label="cellfeed, same settings"),
        plt.Line2D(
            [], [], color=colours["cellfeed, own plan"], marker="*", ms=12, ls="", label="cellfeed, its own plan"
        ),
        plt.Line2D([], [], color="grey", marker="o", ls="", label="65,536 cells a block"),
        plt.Line2D([], [], color="grey", marker="s", ls="", label="131,072 cells a block"),
        plt.Line2D([], [], color="grey", marker="^", ls="", label="262,144 cells a block"),
    ]
    axes[1].legend(handles=handles, fontsize=8, loc="center right")
    figure.suptitle("Speed against memory, 8,000 genes, 2 cores; numbers are chunks per block", fontsize=11)
    figure.savefig(picture, dpi=130)


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
