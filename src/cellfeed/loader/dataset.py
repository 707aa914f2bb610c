"""The dataset: a selection, a plan, and iterators over it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch.utils.data import IterableDataset

from cellfeed._joinids import IntArray
from cellfeed._tabular import Tabular
from cellfeed.loader.label_counts import LabelCounter
from cellfeed.loader.passes import Passes
from cellfeed.loader.pipeline import stream
from cellfeed.loader.provenance import make_record, summarize
from cellfeed.loader.workers import Sendable
from cellfeed.loader.world import available_threads, find_ranks, find_worker, refuse_fork, refuse_loader
from cellfeed.plan import budget, splits
from cellfeed.plan.epoch import Remainder, World
from cellfeed.plan.permutation import check_seed
from cellfeed.plan.planner import Planner
from cellfeed.plan.settings import Settings, with_defaults
from cellfeed.plan.summary import Plan
from cellfeed.rows.minibatch import DenseBuffers, Minibatch, PaddedMinibatch, quiet_beta_warning
from cellfeed.select.encoders import Encoder
from cellfeed.select.gene_names import find_selected, gene_list, identify_columns, name_columns
from cellfeed.select.labels import read_obs_column
from cellfeed.select.selection import Selection
from cellfeed.sources.opening import select_from_experiment, select_from_query
from cellfeed.sources.retry import RETRY_DEADLINE_S
from cellfeed.stats import Meter, Stats
from cellfeed.transforms import SelectGenes, Transform, columns_after


class ExperimentDataset(Tabular, Sendable, IterableDataset[Minibatch | PaddedMinibatch]):
    """Minibatches of cells from a SOMA experiment, for PyTorch.

    Cells are read from disk or S3 while the model trains; memory holds a bounded number of them. Every
    pass yields every selected cell once, in a new random order that depends on ``(seed, epoch)`` alone.

    Parameters
    ----------
    experiment
        An open ``tiledbsoma.Experiment`` (in a Census: ``census["census_data"]["homo_sapiens"]``), or the
        URI of one. Its configuration and timestamp are used wherever the data are opened again.
    measurement_name, X_name
        The measurement and the sparse layer of its ``X`` to read.
    obs_query, var_query
        Which cells and genes: a ``tiledbsoma.AxisQuery`` with a value filter, coordinates, or both; the value filter
        as text; or a dict of values by column, as :func:`cellfeed.obs_filter` takes it. ``None`` takes all.
    obs_column_names
        Columns of obs to return, each as integer codes of a :class:`LabelEncoder`; ``"soma_joinid"`` is returned
        as it is. A warning says so if cells have no label, or if a column holds numbers other than 0, 1, 2 and so on,
        whose codes are not their values.
    encoders
        Instead of ``obs_column_names``: encoders of your choice.
    batch_size
        Cells in a minibatch. With 1, ``X`` and ``obs`` lose their first dimension (sparse ``X`` keeps it).
    shuffle
        ``False`` yields cells in the order of their joinids.
    seed
        Key of all orders; ``None`` draws one. Several ranks need one and the same.
    drop_last
        Leave out a last minibatch that is not full.
    return_sparse_X
        Yield ``X`` as ``torch.sparse_csr`` rather than dense.
    X_dtype
        ``"float32"``, ``"float16"``, ``"bfloat16"`` (values rounded to nearest, half to even), or ``"stored"``: the
        type of the layer, with every value exact.
    soma_chunk_size, shuffle_chunk_count
        The published scatter-gather: chunks of so many consecutive cells; so many of them, from random
        places, are shuffled together. ``None`` plans them: a chunk is what was selected of one row-block of the array,
        as many are held as ``memory_budget`` permits.
    memory_budget
        Bytes that reading and shuffling may hold, as a number or text such as ``"2 GiB"``. What the process holds
        otherwise, a model for one, is not counted.
    mixing
        Effective over nominal batch size to reach for the worst labels, above 0 and at most 1: chunks are as large as
        it permits within ``memory_budget``, as smaller ones are decoded more often. ``None`` reads whole row-blocks and
        mixes as well as the budget permits. See :meth:`plan`.
    use_eager_fetch
        Read the next cells in threads while these are consumed.
    verify
        ``True`` compares each row of X, when it is read, with what obs tells of it: finite values, as many as its
        column ``nnz`` says and, in the layer ``raw``, of the sum in ``raw_sum``, where obs has these columns. A row
        that differs is a :class:`ReadError` that names it. ``False`` takes X as it is.
    retry_deadline_s
        Seconds within which a request to an object store must succeed; until then it is tried again, with growing
        pauses, if it fails for a reason that may pass: no answer, a lost connection, a response of 5xx or "slow down",
        or one cut short. 0 tries once.
    rank_remainder
        Where several ranks share an epoch: ``"drop"`` leaves out fewer cells than there are ranks (with
        ``drop_last``: than make a minibatch a rank), others each epoch; ``"pad"`` repeats some and yields
        ``(X, obs, mask)``; ``"uneven"`` lets ranks differ by one cell, for evaluation.
    rank, world_size
        Explicit ranks; otherwise found when iteration begins, from ``torch.distributed`` or the environment
        variables of ``torchrun``.
    transform
        A callable that takes ``X`` of each minibatch, which it may change, and returns what is yielded for it: see
        :mod:`cellfeed.transforms`. Worker processes need one that they can import. What it holds is not counted in
        ``memory_budget``.
    context
        With a URI: a ``tiledbsoma.SOMATileDBContext`` to open it with.
    allow_empty
        Make an empty dataset if no cells or no genes are selected, rather than raise a :class:`SelectionError`.

    Raises
    ------
    SelectionError
        If the experiment, measurement, layer, column or query does not exist or cannot be read, or nothing is selected.
    ReadError
        If an object store does not answer until ``retry_deadline_s``.
    PlanError
        If a number makes no plan, the budget holds not one row-block, or ``mixing`` is not possible within it.
    EncodeError
        If an encoder fails, or two have one name.

    Examples
    --------
    >>> uri = cellfeed.datasets.pbmc700()
    >>> dataset = cellfeed.ExperimentDataset(uri, obs_column_names=["bulk_labels"], batch_size=64, seed=0)
    >>> X, obs = next(iter(dataset))
    >>> X.shape, obs.shape
    (torch.Size([64, 765]), torch.Size([64, 1]))
    >>> dataset.obs_encoders["bulk_labels"].inverse_transform(obs[:2, 0]).shape
    (2,)
    """

    def __init__(
        self,
        experiment: Any,
        *,
        measurement_name: str = "RNA",
        X_name: str = "raw",
        obs_query: Any = None,
        var_query: Any = None,
        obs_column_names: Sequence[str] = (),
        encoders: Sequence[Encoder] | None = None,
        batch_size: int = 128,
        shuffle: bool = True,
        seed: int | None = None,
        drop_last: bool = False,
        return_sparse_X: bool = False,
        X_dtype: str = "float32",
        soma_chunk_size: int | None = None,
        shuffle_chunk_count: int | None = None,
        memory_budget: int | str = "2 GiB",
        mixing: float | None = None,
        use_eager_fetch: bool = True,
        verify: bool = True,
        rank_remainder: Remainder = "drop",
        rank: int | None = None,
        world_size: int | None = None,
        retry_deadline_s: float = RETRY_DEADLINE_S,
        transform: Transform | None = None,
        context: Any = None,
        allow_empty: bool = False,
    ) -> None:
        settings = Settings.check(
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
            return_sparse_X=return_sparse_X,
            X_dtype=X_dtype,
            soma_chunk_size=soma_chunk_size,
            shuffle_chunk_count=shuffle_chunk_count,
            memory_budget=memory_budget,
            mixing=mixing,
            use_eager_fetch=use_eager_fetch,
            verify=verify,
            rank_remainder=rank_remainder,
            rank=rank,
            world_size=world_size,
            transform=transform,
        )
        meter = Meter()
        selection = select_from_experiment(
            experiment,
            measurement_name=measurement_name,
            X_name=X_name,
            obs_query=obs_query,
            var_query=var_query,
            obs_column_names=obs_column_names,
            encoders=encoders,
            retry_deadline_s=retry_deadline_s,
            context=context,
            allow_empty=allow_empty,
            meter=meter,
        )
        self._set_up(selection, settings, meter)

    @classmethod
    def from_query(
        cls,
        axis_query: Any,
        *,
        X_name: str = "raw",
        obs_column_names: Sequence[str] = (),
        encoders: Sequence[Encoder] | None = None,
        retry_deadline_s: float = RETRY_DEADLINE_S,
        allow_empty: bool = False,
        **parameters: Any,
    ) -> Self:
        """Make a dataset of a ``tiledbsoma.ExperimentAxisQuery``.

        Parameters
        ----------
        axis_query
            ``experiment.axis_query(measurement_name, obs_query=..., var_query=...)``, open.
        X_name, obs_column_names, encoders, retry_deadline_s, allow_empty, parameters
            As for the class.

        Returns
        -------
        A dataset over the cells and genes of the query.

        Examples
        --------
        >>> import tiledbsoma
        >>> with tiledbsoma.open(cellfeed.datasets.pbmc700()) as experiment:
        ...     query = experiment.axis_query("RNA", obs_query=tiledbsoma.AxisQuery(value_filter="phase == 'S'"))
        ...     dataset = cellfeed.ExperimentDataset.from_query(query, seed=0)
        >>> dataset.shape
        (182, 765)
        """
        settings = Settings.check(**with_defaults(ExperimentDataset.__init__, parameters))
        meter = Meter()
        selection = select_from_query(
            axis_query,
            X_name=X_name,
            obs_column_names=obs_column_names,
            encoders=encoders,
            retry_deadline_s=retry_deadline_s,
            allow_empty=allow_empty,
            meter=meter,
        )
        return cls._from_parts(selection, settings, meter)

    @classmethod
    def _from_parts(cls, selection: Selection, settings: Settings, meter: Meter | None = None) -> Self:
        """Make a dataset of cells that have been selected; nothing is read for it."""
        self = cls.__new__(cls)
        self._set_up(selection, settings, meter or Meter())
        return self

    def _set_up(self, selection: Selection, settings: Settings, meter: Meter) -> None:
        self._selection = selection
        self._settings = settings
        self._meter = meter
        self._label_counter = LabelCounter(selection.label_names, selection.codes, settings.batch_size)
        self._init_process_state()
        self._planner = Planner(selection, settings)
        self._planner.epoch_order(0)  # a budget that is too small is said now, not at the first read
        self._passes = Passes(selection, settings, self._planner)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_buffers"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._init_process_state()

    def _init_process_state(self) -> None:
        """Make what belongs to this process."""
        self._buffers = DenseBuffers(keep=budget.MINIBATCHES_HELD)
        self._pid = os.getpid()
        if self._settings.return_sparse_X:
            quiet_beta_warning()

    # ------------------------------------------------------------------ what it is

    @property
    def shape(self) -> tuple[int, int]:
        """Selected cells, and columns of ``X``: the selected genes, unless a transform that tells chooses others."""
        n_vars = self._selection.n_vars
        for transform in (self._selection.column_transform, self._settings.transform):
            n_vars = columns_after(transform, n_vars)
        return self._selection.n_obs, n_vars

    @property
    def obs_encoders(self) -> Mapping[str, Encoder]:
        """The fitted encoders by name, in the order of the columns of ``obs``; joinids have none."""
        return MappingProxyType(dict(self._selection.encoders))

    @property
    def obs_joinids(self) -> IntArray:
        """Selected cells: int64, shape (n_obs,), ascending."""
        return self._selection.joinids[:]

    @property
    def var_joinids(self) -> IntArray:
        """Selected genes, the columns of ``X``: int64, shape (n_vars,), ascending."""
        return self._selection.var_joinids.copy()

    @property
    def seed(self) -> int:
        """The seed given, or the one drawn; the same seed gives the same orders in another process."""
        return self._settings.seed

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return self._passes.epochs.next

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; later passes count on from it.

        A pass over epoch ``k`` has the same order whenever it is made. Without this call the first pass is
        epoch 0 and each further one takes the next.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=0)
        >>> first = next(iter(dataset)).X
        >>> dataset.set_epoch(0)
        >>> bool((next(iter(dataset)).X == first).all())
        True
        """
        self._passes.epochs.set(epoch)

    def __len__(self) -> int:
        """Minibatches of this rank in the next pass, over all its workers.

        Where a state was loaded, those received before it was saved count as well.
        """
        return self._passes.n_minibatches()

    def state_dict(self) -> dict[str, Any]:
        """Say where the training loop is: small, and of plain values only.

        It counts the minibatches that iterators of this dataset, or of a :func:`cellfeed.experiment_dataloader` of
        it, have yielded in this process.

        Returns
        -------
        A dict that ``json.dumps`` and ``torch.save`` take, for :meth:`load_state_dict`.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), batch_size=100, seed=0)
        >>> iterator = iter(dataset)
        >>> _ = next(iterator), next(iterator)
        >>> dataset.load_state_dict(dataset.state_dict())
        >>> sum(len(X) for X, obs in dataset)  # of 700
        500
        """
        return self._passes.save()

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Make the next pass go on with the cell after the last one that the training loop received.

        Cells that were read ahead when the state was saved are read again: at most what was held. On the same ranks
        and workers the order goes on as it would have. Another number of workers or ranks is allowed, and another
        ``memory_budget``: each remaining cell comes once.

        Parameters
        ----------
        state
            What :meth:`state_dict` returned. Where ranks had received different numbers of minibatches and another
            number of them is to go on: a list of the states of all ranks. All ranks must be given the same, or, on as
            many ranks as before, each its own.

        Raises
        ------
        StateError
            If the state belongs to other cells, genes or parameters; the message names the field.
        """
        self._passes.restore(state)

    def __repr__(self) -> str:
        s = self._selection
        return (
            f"{type(self).__name__}({s.n_obs:,} cells x {s.n_vars:,} genes of {s.measurement_name}/{s.X_name}, "
            f"batch_size={self._settings.batch_size}, seed={self._settings.seed})"
        )

    def _table(self) -> dict[str, str]:
        return summarize(self._selection, self._settings)

    # ------------------------------------------------------------------ splitting

    def random_split(
        self,
        weights: Mapping[str, float] | Sequence[float],
        seed: int = 0,
        *,
        stratify: str | None = None,
        group: str | None = None,
    ) -> list[Self]:
        """Split the cells into disjoint, complete datasets.

        A cell's part is fixed by the seed: it never changes between passes. Each part reads its own cells only,
        has the encoders of the whole, and can be split again.

        Parameters
        ----------
        weights
            The parts' shares, which sum to 1: a sequence, or a dict whose order is that of the result.
        seed
            Key of the split.
        stratify
            A column of obs; each part gets its share of every value.
        group
            A column of obs; cells with the same value stay together, so sizes follow the weights
            only as nearly as whole groups permit; with ``stratify``, sizes come before the shares of values.

        Returns
        -------
        One dataset per weight.

        Raises
        ------
        PlanError
            If weights are negative or do not sum to 1, or there are fewer groups than parts.
        SelectionError
            If obs has no such column.

        Examples
        --------
        >>> uri = cellfeed.datasets.pbmc700()
        >>> dataset = cellfeed.ExperimentDataset(uri, seed=0)
        >>> train, test = dataset.random_split({"train": 0.8, "test": 0.2}, seed=1, stratify="bulk_labels")
        >>> train.shape, test.shape
        ((560, 765), (140, 765))
        """
        shares = splits.check_weights(weights)
        parts = splits.split(
            self._selection.n_obs,
            shares,
            check_seed(seed),
            strata=None if stratify is None else self._labels(stratify),
            groups=None if group is None else self._labels(group),
        )
        names = list(weights) if isinstance(weights, Mapping) else list(range(len(parts)))
        told = {"weights": shares.tolist(), "seed": int(seed), "stratify": stratify, "group": group}
        return [
            self._from_parts(self._selection.take(part, {**told, "part": name}), self._settings)
            for name, part in zip(names, parts, strict=True)
        ]

    def _labels(self, column: str) -> npt.NDArray[np.int64]:
        """One code per cell for the values of a column of obs."""
        values = read_obs_column(self._selection, column)
        return np.asarray(pd.factorize(values, use_na_sentinel=False)[0], dtype=np.int64)

    def gene_names(self, var_column: str | None = None) -> npt.NDArray[Any]:
        """Read the names of the columns of ``X``, as they are before a ``transform``.

        Parameters
        ----------
        var_column
            A column of var; ``None`` takes ``feature_id``, ``var_id`` or ``feature_name``, the first that is there.

        Returns
        -------
        Text, dtype object, ``None`` for a gene without a name: in the order of :attr:`var_joinids`, or of
        :meth:`select_genes`.

        Raises
        ------
        SelectionError
            If var has no such column.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=0)
        >>> dataset.gene_names()[:3].tolist()
        ['HES4', 'TNFRSF4', 'SSU72']
        """
        return name_columns(self._selection, var_column)

    def select_genes(self, genes: Sequence[str], *, var_column: str | None = None, missing: str = "error") -> Self:
        """Make a dataset of the same cells whose ``X`` has the named genes as columns, in the order given.

        Others are not read. A ``transform`` of the dataset comes after the selection.

        Parameters
        ----------
        genes
            Names, none twice.
        var_column
            The column of var that holds them; see :meth:`gene_names`.
        missing
            What to do about genes that the store lacks: ``"error"``, or ``"zeros"``, which warns once.

        Returns
        -------
        The dataset; its :attr:`var_joinids` are those of the genes that are read, ascending.

        Raises
        ------
        SelectionError
            If genes are missing or a name stands for several; the message names them.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), batch_size=64, seed=0)
        >>> dataset.select_genes(["CD79A", "CD3D"]).shape
        (700, 2)
        """
        genes = gene_list(genes)
        places, names = find_selected(self._selection, genes, var_column, missing)
        present = np.sort(places[places >= 0])
        with warnings.catch_warnings(action="ignore"):  # of what is missing was told
            chosen = SelectGenes(genes, names[present], missing)
        return self._from_parts(self._selection.take_vars(present, chosen), self._settings)

    def _with(self, **parameters: Any) -> Self:
        """Make a dataset of the same cells with other settings."""
        return self._from_parts(self._selection, self._settings.replace(**parameters))

    # ------------------------------------------------------------------ telling

    def plan(self, label: str | None = None) -> Plan:
        """Say, before any of X is read, what a pass of this rank will do and cost.

        Parameters
        ----------
        label
            A column of obs, such as ``"dataset_id"``: how well minibatches mix its labels. ``None`` supposes the worst:
            that each chunk has a label of its own.

        Returns
        -------
        :class:`~cellfeed.Plan`, for ``num_workers=0``; ``print`` it.

        Raises
        ------
        SelectionError
            If obs has no such column.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), batch_size=64, seed=0)
        >>> dataset.plan(label="bulk_labels").effective_batch_size
        64.0
        """
        return self._plan(label, None if label is None else self._labels(label))

    def _plan(self, label: str | None, codes: npt.NDArray[np.int64] | None) -> Plan:
        """Say the same for a label whose codes have been read."""
        return self._planner.report(self.epoch, self._rank_world(), label, codes)

    def _rank_world(self) -> World:
        return World(*find_ranks(self._settings.rank, self._settings.world_size))

    def provenance(self, var_column: str | None = None) -> dict[str, Any]:
        """Say what these data are, in a small record to keep with a model that is trained on them.

        Parameters
        ----------
        var_column
            The column of var that names genes; see :meth:`gene_names`.

        Returns
        -------
        Plain values that ``json.dumps`` takes: versions, the URI without passwords or signatures, the timestamp, the
        queries, splits, seed and transform, and digests of the cells and of the names of the genes in their order.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=0)
        >>> train, test = dataset.random_split({"train": 0.8, "test": 0.2}, seed=1)
        >>> train.provenance()["splits"]
        [{'weights': [0.8, 0.2], 'seed': 1, 'stratify': None, 'group': None, 'part': 'train'}]
        """
        return make_record(self._selection, self._settings, identify_columns(self._selection, var_column))

    def stats(self) -> Stats:
        """Return what iterators of this dataset have done in this process so far.

        ``effective_batch_sizes`` also tells of the minibatches of worker processes; the rest does not.
        """
        return replace(self._meter.snapshot(), effective_batch_sizes=self._label_counter.effective_batch_sizes())

    # ------------------------------------------------------------------ iterating

    def __iter__(self) -> Iterator[Minibatch | PaddedMinibatch]:
        refuse_fork(self._pid)
        refuse_loader(self._settings.rank, self._settings.world_size, self._settings.batch_size)
        if self._workers is None:
            worker, num_workers = find_worker(self._passes.home)
            this = self._passes.begin(num_workers, apart=True)
        else:
            worker, this = self._workers.assigned
        minibatches = stream(
            self._selection,
            self._settings,
            self._passes.windows(this, worker),
            self._planner.resources(this.world_layout.num_workers, available_threads()),
            buffers=self._buffers,
            meter=self._meter,
            watched=lambda reader: self._workers.watch.watched(reader, worker) if self._workers else reader,
        )
        return (
            minibatches
            if self._workers
            else self._passes.epochs.counted(self._label_counter.counted(minibatches), this)
        )
