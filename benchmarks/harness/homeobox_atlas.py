"""An atlas of homeobox: the same steps as in its public benchmark (``benchmarks/make_synth_dataset.py`` there).

Its schemas evaluate annotations, so this module does not postpone them.
"""

from pathlib import Path

import anndata
import numpy as np
import obstore
import pandas as pd
from homeobox.atlas import RaggedAtlas
from homeobox.feature_layouts import reindex_registry
from homeobox.ingestion import add_from_anndata
from homeobox.obs_alignment import align_obs_to_schema
from homeobox.pointer_types import SparseZarrPointer
from homeobox.schema import DatasetSchema, FeatureBaseSchema, HoxBaseSchema, PointerField

ROWS = 50_000
"""Rows of each of the datasets that an atlas consists of."""

LAYER = "counts"


class Cell(HoxBaseSchema):
    cell_type: str = ""
    gene_expression: SparseZarrPointer | None = PointerField.declare(feature_space="gene_expression")


class Gene(FeatureBaseSchema):
    gene_name: str = ""


def write_atlas(folder: Path, h5ad: Path) -> None:
    (folder / "zarr_store").mkdir(parents=True)
    atlas = RaggedAtlas.create(
        db_uri=str(folder),
        obs_schemas={"cells": Cell},
        store=_arrays(folder),
        registry_schemas={"gene_expression": Gene},
        dataset_table_name="datasets",
        dataset_schema=DatasetSchema,
    )
    cells = anndata.read_h5ad(h5ad, backed="r")
    var = pd.DataFrame({"uid": cells.var_names, "gene_name": cells.var_names})
    atlas.register_features("gene_expression", [Gene(**gene) for gene in var.to_dict("records")])
    reindex_registry(atlas._registry_tables["gene_expression"])
    for start in range(0, cells.n_obs, ROWS):
        part = cells[start : start + ROWS]
        X = part.X.astype(np.uint32)  # the type of its counts
        obs = pd.DataFrame({"cell_type": part.obs["cell_type"].astype(str)})
        part = anndata.AnnData(X, obs=obs, var=var)
        record = DatasetSchema(
            zarr_group=f"from_{start}/gene_expression", feature_space="gene_expression", n_rows=X.shape[0]
        )
        add_from_anndata(
            atlas,
            align_obs_to_schema(part, Cell),
            field_name="gene_expression",
            zarr_layer=LAYER,
            dataset_record=record,
        )
    atlas.snapshot()


def open_atlas(folder: Path) -> RaggedAtlas:
    return RaggedAtlas.checkout_latest(str(folder), obs_schemas={"cells": Cell}, store=_arrays(folder))


def _arrays(folder: Path) -> obstore.store.LocalStore:
    return obstore.store.LocalStore(prefix=str(folder / "zarr_store"))
