"""The dataset under the name of the loader that the Census team published in July 2024."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import IterDataPipe

from cellfeed.dataset import ExperimentDataset
from cellfeed.encoders import Encoder
from cellfeed.watch import Watch


class ExperimentDataPipe(ExperimentDataset, IterDataPipe[Any]):
    """:class:`ExperimentDataset` with the signature of the published ``ExperimentDataPipe``.

    Positions and defaults of the parameters are those of ``cellxgene_census.experimental.ml`` (``batch_size=1``),
    but for ``soma_chunk_size`` and ``shuffle_chunk_count``, which are planned unless given (there: 64
    and 2,000). It is a ``torch.utils.data.IterDataPipe`` and adds no behaviour of its own.

    Parameters
    ----------
    experiment, measurement_name, X_name, obs_query, var_query, obs_column_names, batch_size, shuffle, seed
        As for :class:`ExperimentDataset`.
    return_sparse_X, soma_chunk_size, use_eager_fetch, shuffle_chunk_count, encoders, parameters
        As for :class:`ExperimentDataset`.

    Examples
    --------
    >>> import cellfeed.demo
    >>> uri = cellfeed.demo.example_experiment()
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
            **parameters,
        )

    def __getstate__(self) -> Any:
        # PyTorch looks for datapipes inside datapipes by a pickle of their state; there are none in here,
        # and the joinids of a Census need not be pickled to find that out.
        if IterDataPipe.getstate_hook is not None:
            return IterDataPipe.getstate_hook({})
        return super().__getstate__()


def plain(dataset: ExperimentDataset, watch: Watch) -> ExperimentDataset:
    """Return a twin of a dataset for one loader: the same passes, under the loader's watch.

    The twin of a datapipe is none: ``DataLoader`` wraps datapipes for a pickle of its own, in which shared memory is
    lost and with it the epoch that the main process sets.
    """
    kind = ExperimentDataset if isinstance(dataset, ExperimentDataPipe) else type(dataset)
    twin = kind.__new__(kind)
    twin.__dict__.update(dataset.__dict__, _watch=watch)
    return twin
