"""The dataset with the interface of the loader that the Census team published in July 2024."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import IterDataPipe
from torch.utils.data.graph import traverse_dps

from cellfeed._checks import ordered, suggest, warn_user
from cellfeed.errors import PlanError
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.loader.minibatch_dataset import MinibatchDataset
from cellfeed.plan.settings import Settings
from cellfeed.rows.minibatch import AnyMinibatch, mapped
from cellfeed.select.encoders import Encoder


class _SingleCells(ExperimentDataset):
    """A dataset that yields single cells with ``batch_size=1``: dense ``X`` and ``obs`` without a first dimension."""

    def __iter__(self) -> Iterator[AnyMinibatch]:
        if self._engine.settings.batch_size > 1:
            return super().__iter__()
        minibatches = self._engine.minibatches(self._workers, may_be_collated=True, device=self._device)
        return _squeezed(minibatches)


def _squeezed(minibatches: Iterator[Any]) -> Iterator[Any]:
    """Yield minibatches of one cell without their first dimension; CSR keeps it."""

    def first(tensor: Any) -> Any:
        return tensor if tensor.layout == torch.sparse_csr else tensor[0]

    def squeeze(minibatch: Any) -> Any:
        parts = minibatch._asdict()
        return minibatch._replace(**{name: mapped(part, first) for name, part in parts.items() if name != "mask"})

    yield from map(squeeze, minibatches)


class ExperimentDataPipe(_SingleCells, IterDataPipe[Any]):
    """:class:`ExperimentDataset` with the signature of the published ``ExperimentDataPipe``.

    Positions and defaults of the parameters are those of ``cellxgene_census.experimental.ml``, except for
    ``soma_chunk_size`` and ``shuffle_chunk_count``, which are planned unless given (there: 64
    and 2,000). With ``batch_size=1``, the default, dense ``X`` and ``obs`` have no first dimension. The class is a
    ``torch.utils.data.IterDataPipe`` and has the public attributes of the published class, which cannot be set.

    Parameters
    ----------
    experiment, measurement_name, X_name, obs_query, var_query, obs_column_names, batch_size, shuffle, seed
        As for :class:`ExperimentDataset`.
    return_sparse_X, soma_chunk_size, use_eager_fetch, shuffle_chunk_count, encoders, parameters
        As for :class:`ExperimentDataset`.
    allow_empty
        As for :class:`ExperimentDataset`, but by default a query that selects nothing only issues a warning.

    Examples
    --------
    >>> uri = cellfeed.datasets.pbmc700()
    >>> datapipe = cellfeed.ExperimentDataPipe(uri, "RNA", "raw", obs_column_names=["phase"])
    >>> X, obs = next(iter(datapipe))
    >>> X.shape, obs.shape
    (torch.Size([765]), torch.Size([1]))
    """

    def __init__(
        self,
        experiment: Any,
        measurement_name: str = "RNA",
        X_name: str = "raw",
        obs_query: Any = None,
        var_query: Any = None,
        obs_column_names: Sequence[str] = (),
        batch_size: int = 1,
        shuffle: bool = Settings.shuffle,
        seed: int | None = Settings.seed,
        return_sparse_X: bool = Settings.return_sparse_X,
        soma_chunk_size: int | None = Settings.soma_chunk_size,
        use_eager_fetch: bool = Settings.use_eager_fetch,
        shuffle_chunk_count: int | None = Settings.shuffle_chunk_count,
        encoders: Sequence[Encoder] | None = None,
        *,
        allow_empty: bool = True,
        **parameters: Any,
    ) -> None:
        named = {name: value for name, value in locals().items() if name not in ("self", "parameters", "__class__")}
        super().__init__(**named, **parameters)  # the names are those of a dataset; only positions and defaults differ
        if not self._engine.selection.n_obs or not self._engine.selection.n_vars:
            warn_user("obs_query or var_query selects nothing; the datapipe is empty")

    def random_split(
        self,
        weights: Mapping[Any, float] | Sequence[float],
        seed: int = 0,
        total_length: int | None = None,
        target: Any = None,
        *,
        stratify: str | None = None,
        group: str | None = None,
    ) -> Any:
        """Split the cells like :meth:`ExperimentDataset.random_split`, with weights of any sum.

        Parameters
        ----------
        weights
            Weights of the parts: a sequence, or a dict whose order is the order of the result.
        seed, stratify, group
            As for :meth:`ExperimentDataset.random_split`.
        total_length
            Ignored, as the number of cells is known.
        target
            The key in ``weights`` of the only part to return.

        Returns
        -------
        One datapipe per weight, or the datapipe of ``target``.

        Raises
        ------
        PlanError, SelectionError
            As for :meth:`ExperimentDataset.random_split`, or if ``target`` is not a part.

        Examples
        --------
        >>> datapipe = cellfeed.ExperimentDataPipe(cellfeed.datasets.pbmc700(), seed=0)
        >>> train, test = datapipe.random_split(weights={"train": 4, "test": 1}, seed=1, total_length=len(datapipe))
        >>> train.shape, test.shape
        ((560, 765), (140, 765))
        """
        weights = weights if isinstance(weights, Mapping) else ordered("weights", weights, PlanError)
        names = list(weights) if isinstance(weights, Mapping) else list(range(len(weights)))
        if target is not None and target not in names:
            raise PlanError(f"target={target!r} must be a part: {suggest(str(target), map(str, names))}")
        parts = super().random_split(_normalized(weights), seed, stratify=stratify, group=group)
        return parts if target is None else parts[names.index(target)]

    @property
    def batch_size(self) -> int:
        """Cells per minibatch."""
        return self._engine.settings.batch_size

    @property
    def return_sparse_X(self) -> bool:
        """Whether ``X`` is sparse."""
        return self._engine.settings.return_sparse_X

    @property
    def use_eager_fetch(self) -> bool:
        """Whether threads read ahead."""
        return self._engine.settings.use_eager_fetch

    @property
    def soma_chunk_size(self) -> int | None:
        """Cells per chunk, as given; ``None`` if it is planned."""
        return self._engine.settings.soma_chunk_size

    @property
    def exp_uri(self) -> str:
        """The URI of the experiment, without passwords or signatures."""
        return self._engine.selection.experiment_uri

    @property
    def measurement_name(self) -> str:
        """The measurement."""
        return self._engine.selection.measurement_name

    @property
    def layer_name(self) -> str:
        """The layer of ``X``."""
        return self._engine.selection.X_name

    @property
    def obs_column_names(self) -> list[str]:
        """The columns of obs that the user named, or that the encoders need."""
        selection = self._engine.selection
        encoders = selection.encoders
        columns = (encoders[name].columns if name in encoders else [name] for name in selection.codes)
        return list(dict.fromkeys(itertools.chain.from_iterable(columns)))

    def __getstate__(self) -> Any:
        # PyTorch pickles the state of a datapipe to find other datapipes in it. It holds none, and pickling the
        # joinids of a Census would take long.
        if IterDataPipe.getstate_hook is not None:
            return IterDataPipe.getstate_hook({})
        return self.__dict__


def _normalized(weights: Any) -> Any:
    """Return weights that sum to 1; invalid ones are returned unchanged, and the split refuses them."""
    values = list(weights.values()) if isinstance(weights, Mapping) else list(weights)
    if not all(isinstance(value, (int, float)) for value in values) or not 0 < sum(values) < math.inf:
        return weights
    fractions = [value / sum(values) for value in values]
    return dict(zip(weights, fractions, strict=True)) if isinstance(weights, Mapping) else fractions


def is_chained(datapipe: Any) -> bool:
    """Whether a datapipe, such as ``datapipe.map(function)``, ends a chain from an :class:`ExperimentDataPipe`."""

    def begins_with_cells(graph: Mapping[Any, Any]) -> bool:
        return any(
            isinstance(node, ExperimentDataPipe) or begins_with_cells(sources) for node, sources in graph.values()
        )

    if not isinstance(datapipe, IterDataPipe) or isinstance(datapipe, ExperimentDataset):
        return False
    return begins_with_cells(traverse_dps(datapipe))


def plain(dataset: MinibatchDataset) -> MinibatchDataset:
    """Return another dataset with the same engine, for one loader.

    A datapipe is replaced by a dataset that is not a datapipe, as ``DataLoader`` pickles datapipes in its own way.
    """
    if isinstance(dataset, ExperimentDataPipe):
        return _SingleCells._of(dataset._engine)
    return copy.copy(dataset)
