"""Write the same cells in the formats of loaders that do not read SOMA: first an h5ad, then the others from it.

python -m benchmarks.harness.formats h5ad census_131k.soma                             # in .venv: census_131k.soma.h5ad
peers/cellstream/bin/python -m benchmarks.harness.formats cellstream census_131k.soma  # then each in its environment
peers/annbatch/bin/python -m benchmarks.harness.formats annbatch census_131k.soma
peers/homeobox/bin/python -m benchmarks.harness.formats homeobox census_131k.soma
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

SUFFIXES = {"h5ad": ".h5ad", "cellstream": ".csad", "annbatch": ".annbatch.zarr", "homeobox": ".homeobox"}
"""The suffix of a store's name in each format."""

MEMORY = "2GB"
"""Cells that annbatch shuffles in memory at once; its default, 20 GB, is more than a small machine has."""


def converted(uri: str, name: str) -> Path:
    return Path(uri.rstrip("/") + SUFFIXES[name])


def write_h5ad(uri: str) -> None:
    import cellfeed

    cells = cellfeed.ExperimentDataset(uri).to_anndata(obs_columns=["cell_type"])
    cells.write_h5ad(converted(uri, "h5ad"))


def write_cellstream(uri: str) -> None:
    import cellstream

    source, target = converted(uri, "h5ad"), converted(uri, "cellstream")
    cellstream.write_sharded(str(source), str(target), layout="cell", overwrite=True)


def write_annbatch(uri: str) -> None:
    from annbatch import DatasetCollection

    collection = DatasetCollection(str(converted(uri, "annbatch")))
    collection.add_adatas([str(converted(uri, "h5ad"))], shuffle=True, dataset_size=MEMORY)


def write_homeobox(uri: str) -> None:
    from benchmarks.harness.homeobox_atlas import write_atlas

    write_atlas(converted(uri, "homeobox"), converted(uri, "h5ad"))


def main() -> None:
    writers = {
        "h5ad": write_h5ad,
        "cellstream": write_cellstream,
        "annbatch": write_annbatch,
        "homeobox": write_homeobox,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("format", choices=sorted(writers))
    parser.add_argument("uri")
    options = parser.parse_args()
    started = time.perf_counter()
    writers[options.format](options.uri)
    print(f"{converted(options.uri, options.format)} in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
