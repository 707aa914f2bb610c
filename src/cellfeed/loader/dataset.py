"""The dataset: the public interface to the cells of an experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy.typing as npt
import pandas as pd
import torch

from cellfeed._joinids import IntArray
from cellfeed.loader.cell_sets import CellSets, make_sets
from cellfeed.loader.copying import write_copy
from cellfeed.loader.device_checks import parse_device
from cellfeed.loader.engine import Engine
from cellfeed.loader.minibatch_dataset import MinibatchDataset
from cellfeed.loader.parts import folds, leave_one_out, split_by
from cellfeed.loader.provenance import make_record
from cellfeed.loader.resample import resample
from cellfeed.loader.to_anndata import to_anndata
from cellfeed.loader.tokenizing import with_tokens
from cellfeed.plan.epoch import Remainder
from cellfeed.plan.settings import Settings, check_names
from cellfeed.plan.summary import Plan
from cellfeed.rows.minibatch import array_of
from cellfeed.select.class_counts import balanced_weights, count_classes
from cellfeed.select.content import Content
from cellfeed.select.encoders import Encoder
from cellfeed.select.gene_names import identify_columns, name_columns
from cellfeed.select.obs_rows import read_obs_rows
from cellfeed.sources.opening import open_local_copy, select_from_experiment, select_from_query
from cellfeed.sources.retry import RETRY_DEADLINE_S
from cellfeed.stats import Meter
from cellfeed.transforms import Transform

if TYPE_CHECKING:
    from anndata import AnnData


class ExperimentDataset(MinibatchDataset):
    """Minibatches of cells from a SOMA experiment, for PyTorch.

    Cells are read from disk or S3 while the model trains; memory holds a bounded number of them. Every
    epoch yields every selected cell once, in a new random order that depends on ``(seed, epoch)`` only.

    Parameters
    ----------
    experiment
        An open ``tiledbsoma.Experiment`` (in a Census: ``census["census_data"]["homo_sapiens"]``), or the URI of one.
        Its configuration and timestamp are used whenever the data are opened again. Or the path of an AnnData: an
        ``.h5ad`` file, a zarr store (also ``s3://....zarr``), or a collection of annbatch or cellfeed.
    measurement_name
        The measurement of an experiment. An AnnData has one measurement, so leave it out.
    X_name
        The layer to read. By default ``"raw"`` of an experiment, and ``"X"`` of an AnnData, whose other layers are
        ``"layers/counts"`` and so on, and ``"raw/X"``.
    obs_query, var_query
        Which cells and genes: a ``tiledbsoma.AxisQuery`` with a value filter, coordinates, or both; the value filter
        as text; or a dict of values by column, as for :func:`cellfeed.obs_filter`. ``None`` selects all.
    obs_column_names
        Columns of obs to return, each as integer codes of a :class:`LabelEncoder`; ``"soma_joinid"`` is returned
        unchanged. A warning is issued if cells have no label, or if a column holds numbers other than 0, 1, 2 and so
        on, whose codes differ from their values.
    encoders
        Instead of ``obs_column_names``: the encoders that make the columns of ``obs``.
    layers
        Further layers to return, each as X, with the same genes, but without ``transform``.
    obsm
        Embeddings to return, as dense float32. They are read when the dataset is made, and may take half of
        ``memory_budget``. A cell without an embedding has NaN, and a warning counts such cells.
    measurements
        Further measurements to return: for each, its layer, as in ``{"protein": "raw"}``. They have all their genes.
    obs_values
        Numeric columns of obs to return as they are, in float32. A missing value is NaN, and a warning counts them.
    measured
        Return whether each gene was measured in each cell: a zero of another gene is not an observation.
        ``True`` reads the ``feature_dataset_presence_matrix`` of a Census. Or a ``pandas.DataFrame`` of True and
        False: its index has the values of a column of obs and its name, by default ``"dataset_id"``, and its columns
        are names or joinids of genes.
    joinids
        Return the ``soma_joinid`` of each cell. With this or other further content, minibatches are of class
        :class:`ExtendedMinibatch`.
    batch_size
        Cells per minibatch.
    shuffle
        ``False`` yields cells in ascending order of their joinids.
    seed
        Key of all orders; ``None`` draws one. Several ranks need the same seed.
    drop_last
        Leave out the last minibatch of an epoch if it is not full.
    return_sparse_X
        Yield ``X`` as ``torch.sparse_csr`` instead of dense.
    X_dtype
        ``"float32"``, ``"float16"``, ``"bfloat16"`` (values rounded to nearest, half to even), or ``"stored"``: the
        type of the layer, with every value exact.
    soma_chunk_size, shuffle_chunk_count
        The published scatter-gather: chunks of ``soma_chunk_size`` consecutive cells, of which
        ``shuffle_chunk_count`` from random places are shuffled together. ``None`` plans them: a chunk holds the
        selected cells of one row block of the array, and ``memory_budget`` limits the number of chunks in memory.
    memory_budget
        Bytes that reading and shuffling may hold, as a number or text such as ``"2 GiB"``. Other memory of the
        process, for example of a model, is not counted.
    mixing
        Effective over nominal batch size to reach for the worst labels, above 0 and at most 1: chunks are as large as
        it permits within ``memory_budget``, as smaller ones are decoded more often. ``None`` reads whole row blocks and
        mixes as well as the budget permits. See :meth:`plan`.
    use_eager_fetch
        Read the next cells in threads while the current ones are consumed.
    verify
        ``True`` compares each row of X, when it is read, with obs: values must be finite, and their number and, in
        the layer ``raw``, their sum must equal the columns ``nnz`` and ``raw_sum`` if obs has them. A row that differs
        raises a :class:`ReadError` that names it. ``False`` does not compare.
    retry_deadline_s
        Seconds within which a request to an object store must succeed. Until then it is repeated, with growing
        pauses, if it fails for a transient reason: no response, a lost connection, a response of 5xx or "slow down",
        or a truncated one. 0 tries once.
    rank_remainder
        If several ranks share an epoch: ``"drop"`` leaves out fewer cells than there are ranks (with
        ``drop_last``: than a minibatch per rank), different ones in each epoch; ``"pad"`` repeats some and yields
        ``(X, obs, mask)``; ``"uneven"`` lets ranks differ by one cell, for evaluation.
    rank, world_size
        Explicit ranks; otherwise found when iteration begins, from ``torch.distributed`` or the environment
        variables of ``torchrun``.
    transform
        A callable that takes ``X`` of each minibatch, may change it, and returns the ``X`` to yield: see
        :mod:`cellfeed.transforms`. ``memory_budget`` does not count the memory that it uses.
    context
        With a URI: a ``tiledbsoma.SOMATileDBContext`` to open it with.
    local_copy
        A folder on a local disk. If it is new or incomplete, epochs write their cells there. When it has all cells of
        the dataset, shuffled epochs read it, more than twice as fast, in an order of its own. A copy by
        :meth:`write_copy` of the same cells and genes is read, too. See :doc:`/local_copy`.
    allow_empty
        Make an empty dataset if no cells or no genes are selected, instead of raising a :class:`SelectionError`.

    Raises
    ------
    SelectionError
        If the experiment, measurement, layer, column or query does not exist or cannot be read, or nothing is selected.
    ReadError
        If an object store does not respond within ``retry_deadline_s``.
    PlanError
        If a parameter is invalid, ``memory_budget`` is too small for one row block, or for ``mixing``.
    EncodeError
        If an encoder fails, or two have the same name.

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

    _engine: Engine
    """Does the work of the methods below. Other modules of cellfeed use it, :meth:`_of` and :meth:`_with` only."""

    def __init__(
        self,
        experiment: Any,
        *,
        measurement_name: str = "RNA",
        X_name: str | None = None,
        obs_query: Any = None,
        var_query: Any = None,
        obs_column_names: Sequence[str] = (),
        encoders: Sequence[Encoder] | None = None,
        layers: Sequence[str] = (),
        obsm: Sequence[str] = (),
        measurements: Mapping[str, str] | None = None,
        obs_values: Sequence[str] = (),
        measured: bool | pd.DataFrame = False,
        joinids: bool = Settings.joinids,
        batch_size: int = Settings.batch_size,
        shuffle: bool = Settings.shuffle,
        seed: int | None = Settings.seed,
        drop_last: bool = Settings.drop_last,
        return_sparse_X: bool = Settings.return_sparse_X,
        X_dtype: str = Settings.X_dtype,
        soma_chunk_size: int | None = Settings.soma_chunk_size,
        shuffle_chunk_count: int | None = Settings.shuffle_chunk_count,
        memory_budget: int | str = Settings.memory_budget,
        mixing: float | None = Settings.mixing,
        use_eager_fetch: bool = Settings.use_eager_fetch,
        verify: bool = Settings.verify,
        rank_remainder: Remainder = Settings.rank_remainder,
        rank: int | None = Settings.rank,
        world_size: int | None = Settings.world_size,
        retry_deadline_s: float = RETRY_DEADLINE_S,
        transform: Transform | None = Settings.transform,
        context: Any = None,
        local_copy: str | PathLike[str] | None = None,
        allow_empty: bool = False,
    ) -> None:
        settings = Settings.from_mapping(locals())  # the parameters have the names of its fields
        content = Content.from_arguments(layers, obsm, obs_values, measurements, memory_budget=settings.memory_budget)
        meter = Meter()
        selection = select_from_experiment(
            experiment,
            measurement_name=measurement_name,
            X_name=X_name,
            obs_query=obs_query,
            var_query=var_query,
            obs_column_names=obs_column_names,
            encoders=encoders,
            content=content,
            measured=measured,
            retry_deadline_s=retry_deadline_s,
            context=context,
            allow_empty=allow_empty,
            meter=meter,
        )
        selection, settings = with_tokens(selection, settings)
        self._engine = Engine(selection, settings, meter=meter, local_copy=open_local_copy(local_copy, selection))

    @classmethod
    def from_query(
        cls,
        axis_query: Any,
        *,
        X_name: str = "raw",
        obs_column_names: Sequence[str] = (),
        encoders: Sequence[Encoder] | None = None,
        layers: Sequence[str] = (),
        obsm: Sequence[str] = (),
        measurements: Mapping[str, str] | None = None,
        obs_values: Sequence[str] = (),
        measured: bool | pd.DataFrame = False,
        retry_deadline_s: float = RETRY_DEADLINE_S,
        allow_empty: bool = False,
        **parameters: Any,
    ) -> Self:
        """Make a dataset of a ``tiledbsoma.ExperimentAxisQuery``.

        Parameters
        ----------
        axis_query
            ``experiment.axis_query(measurement_name, obs_query=..., var_query=...)``, open.
        X_name, obs_column_names, encoders, layers, obsm, measurements, obs_values, measured
            As for the class.
        retry_deadline_s, allow_empty, parameters
            As for the class.

        Returns
        -------
        A dataset of the cells and genes of the query.

        Examples
        --------
        >>> import tiledbsoma
        >>> with tiledbsoma.open(cellfeed.datasets.pbmc700()) as experiment:
        ...     query = experiment.axis_query("RNA", obs_query=tiledbsoma.AxisQuery(value_filter="phase == 'S'"))
        ...     dataset = cellfeed.ExperimentDataset.from_query(query, seed=0)
        >>> dataset.shape
        (182, 765)
        """
        check_names("from_query", parameters)
        settings = Settings(**parameters)
        content = Content.from_arguments(layers, obsm, obs_values, measurements, memory_budget=settings.memory_budget)
        meter = Meter()
        selection = select_from_query(
            axis_query,
            X_name=X_name,
            obs_column_names=obs_column_names,
            encoders=encoders,
            content=content,
            measured=measured,
            retry_deadline_s=retry_deadline_s,
            allow_empty=allow_empty,
            meter=meter,
        )
        return cls._of(Engine(*with_tokens(selection, settings), meter=meter))

    def _with(self, **parameters: Any) -> Self:
        """Make a dataset of the same cells with other parameters; nothing is read."""
        return self._of(self._engine.derive(**parameters))

    # ------------------------------------------------------------------ attributes

    @property
    def obs_joinids(self) -> IntArray:
        """Selected cells: int64, shape (n_obs,), in the order of their rows; of an experiment, ascending."""
        return self._engine.selection.joinid_column[:].copy()

    @property
    def var_joinids(self) -> IntArray:
        """Selected genes, the columns of ``X``: int64, shape (n_vars,), ascending."""
        return self._engine.selection.var_joinids.copy()

    @property
    def seed(self) -> int:
        """The seed given, or the one drawn; the same seed gives the same orders in another process."""
        return self._engine.settings.seed

    # ------------------------------------------------------------------ parts of it

    def random_split(
        self,
        weights: Mapping[str, float] | Sequence[float],
        seed: int = 0,
        *,
        stratify: str | None = None,
        group: str | None = None,
    ) -> list[Self]:
        """Split the cells into disjoint datasets that together hold all cells.

        The seed alone determines the part of each cell, in every epoch. Each part reads its own cells only,
        has the encoders of the whole, and can be split again.

        Parameters
        ----------
        weights
            Fractions that sum to 1: a sequence, or a dict whose order is the order of the result.
        seed
            Key of the split.
        stratify
            A column of obs; each part receives its fraction of the cells of every value.
        group
            A column of obs; cells with the same value stay together, so sizes follow the weights
            only as closely as whole groups permit. With ``stratify``, sizes have priority over the fractions of values.

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
        return [self._of(part) for part in self._engine.split(weights, seed, stratify=stratify, group=group)]

    def split_by(self, column: str, parts: Mapping[str, Sequence[Any] | None] | None = None) -> dict[Any, Self]:
        """Split the cells by the values of a column of obs into disjoint datasets that together hold all cells.

        Parameters
        ----------
        column
            A column of obs, such as ``"split"`` or ``"perturbation"``.
        parts
            The values of each part, by its name. ``None`` instead of a list stands for all values that no part lists;
            ``None`` in a list, for cells without a value. By default each value has a part of its own.

        Returns
        -------
        The datasets by name: in the order of ``parts``, or of the values, ascending.

        Raises
        ------
        PlanError
            If a value is in two parts, in no part, or no cell has it; or, without ``parts``, if cells have no value.
        SelectionError
            If obs has no such column.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=0)
        >>> parts = dataset.split_by("phase", {"train": None, "test": ["G2M", "S"]})
        >>> parts["train"].shape, parts["test"].shape
        ((501, 765), (199, 765))
        >>> list(dataset.split_by("phase"))
        ['G1', 'G2M', 'S']
        """
        return {name: self._of(part) for name, part in split_by(self._engine, column, parts).items()}

    def folds(
        self, k: int, *, group: str | None = None, stratify: str | None = None, seed: int = 0
    ) -> Iterator[tuple[Self, Self]]:
        """Yield the training part and the test part of each of ``k`` folds, for cross-validation.

        Each cell is in the test part of one fold, and in the training parts of all others. The test parts are those of
        :meth:`random_split` with ``k`` equal weights.

        Parameters
        ----------
        k
            Number of folds, at least 2.
        group, stratify, seed
            As for :meth:`random_split`.

        Yields
        ------
        ``(train, test)``; each pair is made when it is reached.

        Raises
        ------
        PlanError
            If there are fewer cells or groups than folds.
        SelectionError
            If obs has no such column.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=0)
        >>> [(len(train.obs_joinids), len(test.obs_joinids)) for train, test in dataset.folds(3, stratify="phase")]
        [(466, 234), (467, 233), (467, 233)]
        """
        pairs = folds(self._engine, k, seed, stratify=stratify, group=group)
        return ((self._of(train), self._of(test)) for train, test in pairs)

    def leave_one_out(self, group: str) -> Iterator[tuple[Any, Self, Self]]:
        """Yield each value of a column of obs, the cells with other values for training, and its own cells as a test.

        Parameters
        ----------
        group
            A column of obs, such as ``"donor_id"``; cells without a value are a group of their own, ``None``.

        Yields
        ------
        ``(value, train, test)`` in ascending order of the values; each is made when it is reached.

        Raises
        ------
        PlanError
            If the column has a single value.
        SelectionError
            If obs has no such column.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=0)
        >>> for phase, train, test in dataset.leave_one_out("phase"):
        ...     print(phase, len(train.obs_joinids), len(test.obs_joinids))
        G1 199 501
        G2M 683 17
        S 518 182
        """
        triples = leave_one_out(self._engine, group)
        return ((value, self._of(train), self._of(test)) for value, train, test in triples)

    def resample(
        self,
        *,
        balance: str | Sequence[str] | None = None,
        weights: str | npt.ArrayLike | None = None,
        max_per_label: Mapping[str, int] | None = None,
        temperature: float = 0.0,
        n_obs: int | None = None,
    ) -> Self:
        """Make a dataset of the same cells that come several times in an epoch, once, or not at all.

        The number of copies of each cell in an epoch depends on the seed and the epoch only. It differs from the
        expected number by less than 1, and the numbers of all cells have the exact sum ``n_obs``. A cell that is
        expected less than once per epoch comes in some epochs, spread evenly, so that all cells are seen in time.
        Every guarantee of an epoch holds for these copies: each comes once, to one rank, at any point of a resume.

        A minibatch has a cell at most once, if memory holds the cells of an epoch. Otherwise a cell may come twice in
        a minibatch at the beginning and the end of an epoch, where fewer cells are mixed, and in a minibatch that
        continues after a resume on another number of ranks or workers; or with a ``shuffle_chunk_count`` of few cells.

        Split first, and resample the part to train on.

        Parameters
        ----------
        balance
            A column of obs, or several, whose labels get equal shares of the epoch. Cells without a value have a
            label of their own.
        weights
            Relative weight of each cell: a column of obs, or numbers in the order of :attr:`obs_joinids`, at least 0.
            With ``balance``, weights apply among the cells of a label.
        max_per_label
            A column and a number, such as ``{"cell_type": 10_000}``: an epoch has at most this number of cells of
            each label, other cells in each epoch.
        temperature
            With ``balance``: shares are proportional to ``n_cells ** temperature``, so 0 gives equal shares, and 1
            the shares of the cells (Devlin et al., NAACL 2019, use it for languages).
        n_obs
            Cells of an epoch, copies included. By default the number of cells of the dataset, or the number that
            ``max_per_label`` permits.

        Returns
        -------
        The dataset. ``plan(label)`` predicts the share of each label.

        Raises
        ------
        PlanError
            If an argument is invalid, or a cell would have more copies than minibatches in which they can leave: those
            that memory mixes, in an epoch of any size.
        SelectionError
            If obs has no such column, or weights are not numbers of at least 0.

        Examples
        --------
        >>> uri = cellfeed.datasets.pbmc700()
        >>> dataset = cellfeed.ExperimentDataset(uri, obs_column_names=["phase"], batch_size=20, seed=0)
        >>> balanced = dataset.resample(balance="phase", n_obs=600)
        >>> sum(obs.bincount(minlength=3) for X, (obs,) in ((X, obs.T) for X, obs in balanced)).tolist()
        [200, 200, 200]
        """
        return self._of(resample(self._engine, balance, weights, max_per_label, temperature, n_obs))

    def group_batches(
        self, by: str | Sequence[str], *, set_size: int, control: Any, match: str | Sequence[str] | None = None,
        sets_per_batch: int | None = None, remainder: str = "pad", few_controls: str = "error",
    ) -> CellSets:  # fmt: skip
        """Yield whole sets of perturbed cells, with matched controls beside them, for models of perturbations.

        A set has ``set_size`` cells with the same labels in the columns ``by``, and beside each cell a control: a cell
        with the label ``control`` in the last column of ``by``, and the labels of the cell in the columns ``match``.
        Each perturbed cell comes once in an epoch. The controls of a combination of labels are used equally often up
        to one. Sets and their order depend on ``(seed, epoch)`` only.

        The cells are read once, in their order in the store, when iteration first begins. They then stay in memory in
        a compact form, about 3 bytes per count, which must fit in half of ``memory_budget``.

        Parameters
        ----------
        by
            Columns of obs whose labels the cells of a set share, that of the perturbation last. A column with an
            encoder in the dataset has its codes, and cells with ``unknown_value`` are in no set. A missing value is a
            label.
        set_size
            Cells in a set.
        control
            The label of the controls in the last column of ``by``.
        match
            Columns of obs in which a control has the labels of its cell; by default those of ``by`` but the last.
        sets_per_batch
            Sets per minibatch; by default as close to ``batch_size`` cells as possible, and at least 1.
        remainder
            Treatment of the cells of a group that do not fill a set. ``"pad"`` fills the set with cells of the group
            that come again, each with its control; the mask is False there. ``"drop"`` leaves out such cells, others
            in each epoch, and groups smaller than ``set_size`` altogether.
        few_controls
            Treatment of cells for which there are too few controls for the controls of a set to be different:
            ``"error"``; ``"repeat"``, which uses a control several times in a set; or ``"drop"``, which leaves out all
            perturbed cells with these labels in the columns ``match``.

        Returns
        -------
        :class:`CellSets`, to iterate over.

        Raises
        ------
        SelectionError
            If obs lacks a column, or the last column of ``by`` lacks the label.
        PlanError
            If an argument is invalid, no cell is perturbed or a control, controls are too few, or memory is.

        Examples
        --------
        >>> uri = cellfeed.datasets.pbmc700()
        >>> dataset = cellfeed.ExperimentDataset(uri, seed=0)
        >>> sets = dataset.group_batches(by=["phase"], set_size=32, control="G1", sets_per_batch=2)
        >>> for minibatch in sets:
        ...     shift = minibatch.X - minibatch.control_X  # perturbed minus control cells
        >>> shift.shape
        torch.Size([1, 32, 765])
        >>> sets.encoders["phase"].inverse_transform(minibatch.groups[:, 0]).tolist()
        ['S']
        """
        return make_sets(self._engine, by, set_size, control, match, sets_per_batch, remainder, few_controls)

    def gene_names(self, var_column: str | None = None) -> npt.NDArray[Any]:
        """Read the names of the columns of ``X`` before ``transform``.

        Parameters
        ----------
        var_column
            A column of var; ``None`` takes the first of ``feature_id``, ``var_id`` and ``feature_name`` that exists.

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
        return name_columns(self._engine.selection, var_column)

    def select_genes(self, genes: Sequence[str], *, var_column: str | None = None, missing: str = "error") -> Self:
        """Make a dataset of the same cells whose ``X`` has the named genes as columns, in the order given.

        Other genes are not read. A ``transform`` of the dataset receives the selected columns.

        Parameters
        ----------
        genes
            Distinct names.
        var_column
            The column of var that holds them; see :meth:`gene_names`.
        missing
            Treatment of genes that the store does not have: ``"error"``, or ``"zeros"``, which warns once.

        Returns
        -------
        The dataset; its :attr:`var_joinids` are those of the genes that are read, ascending.

        Raises
        ------
        SelectionError
            If genes are missing or a name belongs to several genes; the message names them.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), batch_size=64, seed=0)
        >>> dataset.select_genes(["CD79A", "CD3D"]).shape
        (700, 2)
        """
        return self._of(self._engine.select_genes(genes, var_column, missing))

    def write_copy(
        self,
        path: str | PathLike[str],
        *,
        compression: str = "lz4",
        obs_columns: Sequence[str] | None = None,
        client: Any = None,
        progress: bool = False,
    ) -> Path:
        """Write all cells of the dataset, in random order, to an AnnData in zarr on a local disk.

        The copy has X, and the ``layers``, ``obsm`` and ``obs_values`` of the dataset.

        :class:`ExperimentDataset` reads the copy more than twice as fast as the experiment, by its path or as
        ``local_copy=``. It also opens with ``anndata.read_zarr``, without cellfeed. A call that was interrupted is
        continued by the same call.

        Parameters
        ----------
        path
            The folder to make.
        compression
            ``"lz4"``, which is read faster, or ``"zstd"``, which takes about a fifth less space.
        obs_columns
            Columns of obs to write; ``None`` writes all.
        client
            A ``dask.distributed.Client`` whose workers write parts of the copy: a collection of AnnData.
        progress
            Show a progress bar.

        Returns
        -------
        The path.

        Raises
        ------
        SelectionError
            If something is at the path, the disk is too small for the copy or cannot be written, or the dataset has
            further measurements.
        PlanError
            If ``compression`` is unknown.

        Examples
        --------
        >>> import tempfile
        >>> from pathlib import Path
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=0)
        >>> path = dataset.write_copy(Path(tempfile.mkdtemp()) / "pbmc700.zarr")
        >>> cellfeed.ExperimentDataset(path, obs_column_names=["phase"], seed=0).shape
        (700, 765)
        """
        return write_copy(
            self._engine,
            Path(path),
            compression=compression,
            obs_columns=obs_columns,
            client=client,
            progress=progress,
        )

    def to_anndata(
        self,
        joinids: Any = None,
        *,
        X: bool = True,
        obs_columns: Sequence[str] | None = None,
        obsm: Mapping[str, Any] | None = None,
    ) -> AnnData:
        """Read cells into memory, as an AnnData for scanpy: with the results of a model, for example.

        Parameters
        ----------
        joinids
            int64, shape (n,): the ``soma_joinid`` of the cells, in the order of the rows, each once; an array or a
            tensor. ``None`` takes all cells of the dataset, in the order of :attr:`obs_joinids`, which is that of
            :func:`cellfeed.inference_dataloader`.
        X
            Whether to read X, and the ``layers`` of the dataset: values as stored, without ``transform``.
        obs_columns
            Columns of obs; ``None`` takes all.
        obsm
            Further embeddings by name: arrays or tensors of shape (n, n_dims), a row per cell.

        Returns
        -------
        An :class:`AnnData` of n cells and the genes of the dataset. obs and var have a column ``soma_joinid``, and
        obsm the embeddings of the dataset, too.

        Raises
        ------
        SelectionError
            If a joinid is not in the dataset or comes twice, obs lacks a column, or an embedding has another number of
            rows.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=0)
        >>> means = torch.cat([X[:, :2] for X, obs, joinids in cellfeed.inference_dataloader(dataset)])
        >>> cells = dataset.to_anndata(X=False, obsm={"X_first_genes": means})
        >>> cells.obsm["X_first_genes"].shape, "phase" in cells.obs
        ((700, 2), True)
        """
        return to_anndata(self._engine, joinids, X=X, obs_columns=obs_columns, obsm=obsm)

    # ------------------------------------------------------------------ labels and obs

    def class_counts(self, column: str) -> pd.Series[int]:
        """Count the cells of each label; a cell that ``resample`` repeats or leaves out counts once.

        Parameters
        ----------
        column
            The name of an encoder, or any column of obs.

        Returns
        -------
        The number of cells, int64, by label. Row *k* is the label of code *k*, also if no cell has it, as may happen
        in a part of a split. The last label is ``None`` if cells have no value; cells with ``unknown_value`` are not
        counted.

        Raises
        ------
        SelectionError
            If obs has no such column.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), obs_column_names=["phase"], seed=0)
        >>> dataset.class_counts("phase").to_dict()
        {'G1': 501, 'G2M': 17, 'S': 182}
        """
        return count_classes(self._engine.selection, column)

    def class_weights(self, column: str) -> torch.Tensor:
        """Return the weight of each label for a loss in which rare and frequent labels count the same.

        A label of ``n_label`` cells has the weight ``n / (k * n_label)``, where ``n`` is the number of cells and ``k``
        the number of labels with cells, as ``class_weight="balanced"`` in scikit-learn. A label without cells has the
        weight 0.

        Parameters
        ----------
        column
            As for :meth:`class_counts`.

        Returns
        -------
        float32, shape (n_labels,), in the order of the codes.

        Examples
        --------
        >>> import torch
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), obs_column_names=["phase"], seed=0)
        >>> dataset.class_weights("phase")
        tensor([ 0.4657, 13.7255,  1.2821])
        >>> loss = torch.nn.CrossEntropyLoss(weight=dataset.class_weights("phase"))
        """
        return torch.from_numpy(balanced_weights(self.class_counts(column).to_numpy()))

    def obs_frame(self, joinids: Any, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read rows of obs, for example of the cells of a minibatch.

        Parameters
        ----------
        joinids
            Integers, shape (n,): the ``soma_joinid`` of cells of this dataset, in any order; they may repeat. A list,
            an array, or a tensor on any device.
        columns
            Columns of obs; ``None`` reads all.

        Returns
        -------
        One row per joinid, in their order.

        Raises
        ------
        SelectionError
            If a cell is not in the dataset, or obs has no such column; the message names them.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(
        ...     cellfeed.datasets.pbmc700(), obs_column_names=["soma_joinid"], batch_size=3, seed=0
        ... )
        >>> X, obs = next(iter(dataset))
        >>> dataset.obs_frame(obs[:, 0], ["soma_joinid", "phase"]).shape
        (3, 2)
        """
        return read_obs_rows(self._engine.selection, array_of(joinids), columns)

    # ------------------------------------------------------------------ reports

    def plan(self, label: str | None = None, *, device: Any = None) -> Plan:
        """Predict, without reading X, the work and the memory of the next epoch of this rank.

        Parameters
        ----------
        label
            A column of obs, such as ``"dataset_id"``, for which to predict how well minibatches mix its labels.
            ``None`` assumes the worst case: each chunk has a label of its own.
        device
            As for :func:`~cellfeed.experiment_dataloader`: the plan then has the bytes that minibatches take there. The
            device need not be in this machine.

        Returns
        -------
        :class:`~cellfeed.Plan`, for ``num_workers=0``; ``print`` it.

        Raises
        ------
        SelectionError
            If obs has no such column.
        PlanError
            If ``device`` is not a device of PyTorch.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), batch_size=64, seed=0)
        >>> dataset.plan(label="bulk_labels").effective_batch_size
        64.0
        >>> dataset.plan(device="cuda").device_bytes < 2_000_000
        True
        """
        return self._engine.plan(label, device=None if device is None else parse_device(device))

    def provenance(self, var_column: str | None = None) -> dict[str, Any]:
        """Describe the data in a small record to keep with a model that is trained on them.

        Parameters
        ----------
        var_column
            The column of var that names genes; see :meth:`gene_names`.

        Returns
        -------
        Plain values that ``json.dumps`` accepts: versions, the URI without passwords or signatures, the timestamp, the
        queries, splits, seed and transform, and digests of the cells and of the names of the genes in their order.

        Examples
        --------
        >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=0)
        >>> train, test = dataset.random_split({"train": 0.8, "test": 0.2}, seed=1)
        >>> train.provenance()["splits"]
        [{'weights': [0.8, 0.2], 'seed': 1, 'stratify': None, 'group': None, 'part': 'train'}]
        """
        selection = self._engine.selection
        genes = identify_columns(selection, var_column)
        return make_record(selection, self._engine.settings, genes, self._engine.resampling)
