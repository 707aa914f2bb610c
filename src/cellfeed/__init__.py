"""cellfeed feeds single cells from TileDB-SOMA experiments to PyTorch."""

from cellfeed import datasets as datasets
from cellfeed import tokens as tokens
from cellfeed.errors import (
    CellfeedError,
    EncodeError,
    MissingDependencyError,
    PlanError,
    ReadError,
    SelectionError,
    StateError,
)
from cellfeed.joins.joined import JoinedDataset, join
from cellfeed.loader.cell_sets import CellSets
from cellfeed.loader.dataloader import experiment_dataloader
from cellfeed.loader.datapipe import ExperimentDataPipe
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.loader.gene_medians import gene_medians
from cellfeed.loader.highly_variable import highly_variable_genes
from cellfeed.loader.inference import gather_ordered, inference_dataloader
from cellfeed.plan.set_summary import SetsPlan
from cellfeed.plan.summary import Plan
from cellfeed.rows.minibatch import ExtendedMinibatch, Minibatch, OrderedMinibatch, PaddedMinibatch
from cellfeed.rows.set_minibatch import SetMinibatch
from cellfeed.rows.slabs import keep_freed_memory
from cellfeed.select.batch_encoder import BatchEncoder
from cellfeed.select.encoders import Encoder, LabelEncoder
from cellfeed.select.obs_filter import obs_filter
from cellfeed.sources.obsm import write_obsm
from cellfeed.stats import Stats

keep_freed_memory()  # before any thread gets its own heap; CELLFEED_MALLOC=0 disables it

__version__ = "0.1.0"

__all__ = [
    "BatchEncoder",
    "CellSets",
    "CellfeedError",
    "EncodeError",
    "Encoder",
    "ExperimentDataPipe",
    "ExperimentDataset",
    "ExtendedMinibatch",
    "JoinedDataset",
    "LabelEncoder",
    "Minibatch",
    "MissingDependencyError",
    "OrderedMinibatch",
    "PaddedMinibatch",
    "Plan",
    "PlanError",
    "ReadError",
    "SelectionError",
    "SetMinibatch",
    "SetsPlan",
    "StateError",
    "Stats",
    "experiment_dataloader",
    "gather_ordered",
    "gene_medians",
    "highly_variable_genes",
    "inference_dataloader",
    "join",
    "obs_filter",
    "write_obsm",
]


def __dir__() -> list[str]:
    """List public names only, so that tab completion does not show the modules behind them."""
    return sorted([*__all__, "__version__", "datasets", "errors", "tokens", "transforms"])
