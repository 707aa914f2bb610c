"""cellfeed feeds cells to PyTorch from any TileDB-SOMA experiment."""

from cellfeed import datasets as datasets
from cellfeed.errors import (
    CellfeedError,
    EncodeError,
    MissingDependencyError,
    PlanError,
    ReadError,
    SelectionError,
    StateError,
)
from cellfeed.loader.dataloader import experiment_dataloader
from cellfeed.loader.datapipe import ExperimentDataPipe
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.loader.highly_variable import highly_variable_genes
from cellfeed.loader.inference import OrderedMinibatch, gather_ordered, inference_dataloader
from cellfeed.plan.summary import Plan
from cellfeed.rows.minibatch import Minibatch, PaddedMinibatch
from cellfeed.select.encoders import BatchEncoder, Encoder, LabelEncoder
from cellfeed.select.obs_filter import obs_filter
from cellfeed.sources.soma.obsm import write_obsm
from cellfeed.stats import Stats

__version__ = "0.1.0"

__all__ = [
    "BatchEncoder",
    "CellfeedError",
    "EncodeError",
    "Encoder",
    "ExperimentDataPipe",
    "ExperimentDataset",
    "LabelEncoder",
    "Minibatch",
    "MissingDependencyError",
    "OrderedMinibatch",
    "PaddedMinibatch",
    "Plan",
    "PlanError",
    "ReadError",
    "SelectionError",
    "StateError",
    "Stats",
    "experiment_dataloader",
    "gather_ordered",
    "highly_variable_genes",
    "inference_dataloader",
    "obs_filter",
    "write_obsm",
]


def __dir__() -> list[str]:
    """List public names only, so that tab completion does not show the modules behind them."""
    return sorted([*__all__, "__version__", "datasets", "errors", "transforms"])
