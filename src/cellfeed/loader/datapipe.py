"""The dataset under the name of the loader that the Census team published in July 2024."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import IterDataPipe
from torch.utils.data.graph import traverse_dps

from cellfeed._checks import ordered, suggest, warn_user
from cellfeed.errors import PlanError
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.select.encoders import Encoder


class ExperimentDataPipe(ExperimentDataset, IterDataPipe[Any]):
    """:class:`ExperimentDataset` with the signature of the published ``ExperimentDataPipe``.

    Positions and defaults of the parameters are those of ``cellxgene_census.experimental.ml`` (``batch_size=1``),
    but for ``soma_chunk_size`` and ``shuffle_chunk_count``, which are planned unless given (there: 64
    and 2,000). It is a ``torch.utils.data.IterDataPipe``, with the public attributes of the published class; these
    cannot be set.

    Parameters
    ----------
    experiment, measurement_name, X_name, obs_query, var_query, obs_column_names, batch_size, shuffle, seed
        As for :class:`ExperimentDataset`.
    return_sparse_X, soma_chunk_size, use_eager_fetch, shuffle_chunk_count, encoders, parameters
        As for :class:`ExperimentDataset`.
    allow_empty
        As for :class:`ExperimentDataset`, but by default a query that selects nothing is a warning only.

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
        shuffle: bool = True,
        seed: int | None = None,
        return_sparse_X: bool = False,
        soma_chunk_size: int | None = None,
        use_eager_fetch: bool = True,
        shuffle_chunk_count: int | None = None,
        encoders: Sequence[Encoder] | None = None,
        *,
        allow_empty: bool = True,
        **parameters: Any,
    ) -> None:
        super().__init__(
            experiment,
            measurement_name=measurement_name,
            X_name=X_name,
            obs_query=obs_query,
            var_query=var_query,
            obs_column_names=obs_column_names,
            encoders=encoders,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            return_sparse_X=return_sparse_X,
            soma_chunk_size=soma_chunk_size,
            shuffle_chunk_count=shuffle_chunk_count,
            use_eager_fetch=use_eager_fetch,
            allow_empty=allow_empty,
            **parameters,
        )
        if not self._selection.n_obs or not self._selection.n_vars:
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
        """Split the cells as :meth:`ExperimentDataset.random_split` does, with weights of any sum.

        Parameters
        ----------
        weights
            The parts' weights: a sequence, or a dict whose order is that of the result.
        seed, stratify, group
            As for :meth:`ExperimentDataset.random_split`.
        total_length
            Not needed: the number of cells is known.
        target
            The key of ``weights`` of the one part to return.

        Returns
        -------
        One datapipe per weight, or that of ``target``.

        Raises
        ------
        PlanError, SelectionError
            As for :meth:`ExperimentDataset.random_split`, or if ``target`` is no part.

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
        parts = super().random_split(_normalised(weights), seed, stratify=stratify, group=group)
        return parts if target is None else parts[names.index(target)]

    @property
    def batch_size(self) -> int:
        """Cells in a minibatch."""
        return self._settings.batch_size

    @property
    def return_sparse_X(self) -> bool:
        """Whether ``X`` is sparse."""
        return self._settings.return_sparse_X

    @property
    def use_eager_fetch(self) -> bool:
        """Whether threads read ahead."""
        return self._settings.use_eager_fetch

    @property
    def soma_chunk_size(self) -> int | None:
        """Cells in a chunk, as given; ``None`` if it is planned."""
        return self._settings.soma_chunk_size

    @property
    def exp_uri(self) -> str:
        """The URI of the experiment, without passwords or signatures."""
        return self._selection.experiment_uri

    @property
    def measurement_name(self) -> str:
        """The measurement."""
        return self._selection.measurement_name

    @property
    def layer_name(self) -> str:
        """The layer of ``X``."""
        return self._selection.X_name

    @property
    def obs_column_names(self) -> list[str]:
        """The columns of obs that were asked for, or that the encoders need."""
        encoders = iter(self._selection.encoders.values())
        columns = (["soma_joinid"] if codes is None else next(encoders).columns for codes in self._selection.codes)
        return list(dict.fromkeys(column for some in columns for column in some))

    def __getstate__(self) -> Any:
        # PyTorch looks for datapipes inside datapipes by a pickle of their state; there are none in here,
        # and the joinids of a Census need not be pickled to find that out.
        if IterDataPipe.getstate_hook is not None:
            return IterDataPipe.getstate_hook({})
        return super().__getstate__()


def _normalised(weights: Any) -> Any:
    """Return weights that sum to 1; what is no weight is left to the check of the split."""
    values = list(weights.values()) if isinstance(weights, Mapping) else list(weights)
    if not all(isinstance(value, (int, float)) for value in values) or not 0 < sum(values) < math.inf:
        return weights
    shares = [value / sum(values) for value in values]
    return dict(zip(weights, shares, strict=True)) if isinstance(weights, Mapping) else shares


def is_chained(datapipe: Any) -> bool:
    """Whether a datapipe ends a chain that begins with an :class:`ExperimentDataPipe`: ``datapipe.map(function)``."""

    def begins_with_cells(graph: Mapping[Any, Any]) -> bool:
        return any(isinstance(node, ExperimentDataPipe) or begins_with_cells(more) for node, more in graph.values())

    if not isinstance(datapipe, IterDataPipe) or isinstance(datapipe, ExperimentDataset):
        return False
    return begins_with_cells(traverse_dps(datapipe))


def plain(dataset: ExperimentDataset) -> ExperimentDataset:
    """Return a twin of a dataset for one loader: the same passes, as a dataset of its own.

    The twin of a datapipe is a plain dataset: ``DataLoader`` wraps datapipes, for a pickle of its own.
    """
    kind = ExperimentDataset if isinstance(dataset, ExperimentDataPipe) else type(dataset)
    twin = kind.__new__(kind)
    twin.__dict__.update(dataset.__dict__)
    return twin
