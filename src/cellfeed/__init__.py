"""cellfeed feeds cells to PyTorch from any TileDB-SOMA experiment."""

from cellfeed import datasets as datasets
from cellfeed.allocator import keep_freed_memory
from cellfeed.dataloader import experiment_dataloader
from cellfeed.datapipe import ExperimentDataPipe
from cellfeed.dataset import ExperimentDataset
from cellfeed.encoders import BatchEncoder, Encoder, LabelEncoder
from cellfeed.errors import (
    CellfeedError,
    EncodeError,
    MissingDependencyError,
    PlanError,
    ReadError,
    SelectionError,
    StateError,
)
from cellfeed.inference import OrderedMinibatch, gather_ordered, inference_dataloader
from cellfeed.minibatch import Minibatch, PaddedMinibatch
from cellfeed.obsm import write_obsm
from cellfeed.report import Plan
from cellfeed.stats import Stats
from cellfeed.valuefilter import obs_filter
from cellfeed.variability import highly_variable_genes

keep_freed_memory()  # before a thread has a heap of its own; CELLFEED_MALLOC=0 leaves glibc as it is

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
