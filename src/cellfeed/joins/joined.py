"""Several datasets as one: the public interface."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cellfeed.joins.arguments import (
    check_alike,
    check_datasets,
    check_length,
    check_orthologs,
    check_shares,
    check_var_column,
    the_transform,
)
from cellfeed.joins.cells import joined_selection
from cellfeed.joins.engine import JoinEngine
from cellfeed.joins.genes import choose_genes, place_genes, read_names
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.loader.minibatch_dataset import MinibatchDataset
from cellfeed.loader.tokenizing import find_tokenizer
from cellfeed.plan.settings import Settings
from cellfeed.tokens import Tokenizer


class JoinedDataset(MinibatchDataset):
    """Several datasets as one: the class of what :func:`join` returns.

    It is iterated, counted, saved and restored as an :class:`ExperimentDataset`, and :func:`experiment_dataloader`
    takes it.

    Examples
    --------
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), batch_size=70, seed=0)
    >>> joined = cellfeed.join(dataset.split_by("phase"), epoch_length=5)
    >>> joined.sources, len(joined), joined.shape
    (('G1', 'G2M', 'S'), 5, (700, 765))
    """

    _engine: JoinEngine

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the datasets, by their code in obs."""
        return tuple(self._engine.parts)

    @property
    def shares(self) -> dict[str, float]:
        """The share of each dataset in every minibatch, by name."""
        return self._engine.shares

    def gene_names(self) -> npt.NDArray[Any]:
        """Return the names of the columns of ``X`` before ``transform``: text, dtype object."""
        return np.array(self._engine.gene_names, object)

    @property
    def has_gene(self) -> torch.Tensor:
        """Whether each dataset has each gene: bool, shape (n_datasets, n_vars), where a zero is an observation.

        ``joined.has_gene[obs[:, -1]]`` is the mask of a minibatch. A dataset with ``measured=`` has a mask of its own.
        """
        has_gene = np.zeros((len(self.sources), len(self._engine.gene_names)), np.bool_)
        for row, columns in zip(has_gene, self._engine.columns.values(), strict=True):
            row[columns.numbers] = True
        return torch.from_numpy(has_gene)


def join(
    datasets: Mapping[str, ExperimentDataset],
    *,
    shares: Mapping[str, float] | None = None,
    genes: str | Sequence[str] | None = None,
    orthologs: Mapping[str, Mapping[str, str]] | None = None,
    var_column: str | Mapping[str, str | None] | None = None,
    transform: Any = None,
    epoch_length: str | int = "longest",
    label: str = "source",
) -> JoinedDataset:
    """Make one dataset of several: each minibatch has cells of all of them, in exact shares.

    The datasets may be of several species, of experiments and AnnData, or of a Census and a store of your own. Each
    keeps its order: its seed, its epochs, its chunks, its ``memory_budget`` and its local copy. Each passes through
    its own epochs without a gap, so that at any time its cells have come equally often, give or take one.

    In a minibatch the cells are grouped by dataset, in the order of the datasets. The number of cells of a dataset
    in the first *k* minibatches differs from its share by less than one cell. If a share is less than one cell of a
    minibatch, this holds for two or three datasets; of *n* datasets one then differs by half a cell plus its share of
    *n* / 2 cells at most.

    Parameters
    ----------
    datasets
        Two or more datasets by name, with equal ``batch_size``, type and layout of X, and further content.
    shares
        The share of each dataset in a minibatch, by name; they sum to 1. By default shares are in proportion to the
        numbers of cells, and an epoch has each cell once.
    genes
        The columns of X: ``"intersection"`` has the genes of all datasets, ``"union"`` those of any, and a list its
        own, in this order. A gene that a dataset lacks is a column of zeros there: see :attr:`JoinedDataset.has_gene`.
        The default is the intersection, and for tokens the union.
    orthologs
        For datasets whose genes have other names than in the join: a dict of the name in the join by the name in the
        dataset, as ``{"mouse": {"Cd3d": "CD3D", "Cd8a": "CD8A"}}``. Genes that it lacks keep their names.
    var_column
        The column of var that names genes, of all datasets or in a dict by dataset; see
        :meth:`ExperimentDataset.gene_names`.
    transform
        Of X with the columns of the join, or to tokens: a :class:`cellfeed.tokens.Tokenizer`. By default it is that of
        the datasets, which must be the same in all of them.
    epoch_length
        ``"longest"`` ends an epoch when each dataset has yielded all its cells: shorter ones begin again.
        ``"shortest"`` ends it with the first. Or a number of minibatches.
    label
        The name of the column of obs with the code of the dataset, the last one. The other columns are those that all
        datasets have. Their codes stand for the labels of all datasets: see :attr:`JoinedDataset.obs_encoders`.

    Returns
    -------
    The datasets as one. Their own epochs are not affected.

    Raises
    ------
    PlanError
        If an argument is invalid, or datasets differ in what must be equal.
    SelectionError
        If no gene is left, a dataset lacks all genes, or a name stands for several genes of a dataset.
    EncodeError
        If codes of a column cannot be united.

    Examples
    --------
    >>> uri = cellfeed.datasets.pbmc700()
    >>> dataset = cellfeed.ExperimentDataset(uri, obs_column_names=["bulk_labels"], batch_size=64, seed=0)
    >>> parts = dataset.split_by("phase", {"resting": ["G1"], "cycling": ["S", "G2M"]})
    >>> joined = cellfeed.join(parts, shares={"resting": 0.25, "cycling": 0.75})
    >>> X, obs = next(iter(joined))
    >>> obs[:, -1].bincount().tolist(), joined.sources
    ([16, 48], ('resting', 'cycling'))
    """
    engines = {name: dataset._engine for name, dataset in check_datasets(datasets).items()}
    weights = None if shares is None else check_shares(shares, list(engines))
    check_length(epoch_length)
    orthologs = check_orthologs(orthologs, list(engines))
    transform = the_transform(engines) if transform is None else transform
    check_alike(engines)
    first = next(iter(engines.values()))
    tokenizer = find_tokenizer(transform, first.selection, first.settings)
    if tokenizer and var_column is None:
        var_column = tokenizer.vocabulary.var_column
    var_columns = check_var_column(var_column, list(engines))
    names = read_names({name: engine.selection for name, engine in engines.items()}, orthologs, var_columns)
    chosen = choose_genes(names, ("union" if tokenizer else "intersection") if genes is None else genes)
    if tokenizer:
        before = np.array(chosen, object)
        known = before[tokenizer._find(before)]
        chosen, transform = known.tolist(), tokenizer._of_genes(known, len(before))
    placed = {name: place_genes(name, names[name], chosen) for name in engines}
    columns = {name: own.columns for name, own in placed.items()}
    selections = {name: engine.selection.take_vars(placed[name].positions, None) for name, engine in engines.items()}
    parts = {
        name: engine.derive(
            selection=dataclasses.replace(selections[name], codes={}, encoders={}), drop_last=False, transform=None
        )
        for name, engine in engines.items()
    }
    selection = joined_selection(selections, columns, label)
    settings = _joined_settings([engine.settings for engine in engines.values()], transform)
    return JoinedDataset._of(JoinEngine(parts, columns, selection, settings, weights, epoch_length, chosen))


def _joined_settings(settings: Sequence[Settings], transform: Any) -> Settings:
    """Return the settings of a join: those that are equal in all datasets, and those of all together."""
    return dataclasses.replace(
        settings[0],
        transform=transform,
        return_sparse_X=settings[0].return_sparse_X or isinstance(transform, Tokenizer),
        shuffle=any(own.shuffle for own in settings),
        seed_given=all(own.seed_given or not own.shuffle for own in settings),
        memory_budget=sum(own.memory_budget for own in settings),
        mixing=None,
        soma_chunk_size=None,
        shuffle_chunk_count=None,
    )
