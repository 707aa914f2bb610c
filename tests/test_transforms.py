"""Transforms follow their formulas, on dense and CSR tensors, in a loader or on a device; genes are found by name."""

import contextlib
import warnings

import anndata
import numpy as np
import pytest
import scanpy
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellfeed import ExperimentDataset, PlanError, SelectionError, experiment_dataloader
from cellfeed.rows.assemble import Assembler, DenseBuffers
from cellfeed.rows.cell_rows import CellRows
from cellfeed.transforms import Compose, Log1p, NormalizeTotal, OfValues, Scaling, SelectGenes, split_scaling, to_device
from tests.support.fakes import place, row_allocator
from tests.support.stores import addressed

N, G = 100, 30
NAMES = [f"G{j}" for j in range(G)]


def normalised(X, target):
    """The same in float64, by the formula."""
    totals = X.sum(axis=1, keepdims=True)
    return X * np.where(totals == 0, 1, target / np.where(totals == 0, 1, totals))


def both(X):
    dense = torch.from_numpy(X)
    return dense, dense.to_sparse_csr()


@st.composite
def matrices(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 40)))
    return (rng.poisson(3, shape) * (rng.random(shape) < draw(st.floats(0, 1)))).astype(np.float32)


@given(matrices(), st.floats(1e-2, 1e5))
def test_normalisation_and_logarithm(X, target):
    """Dense, CSR, float32, float64 and integers: results are those of the formula; fused and one by one; empty rows."""
    wanted = {"total": normalised(X.astype(float), target), "log": np.log1p(X.astype(float))}
    wanted["both"] = np.log1p(wanted["total"])
    total, log = NormalizeTotal(target), Log1p()
    steps = {"total": total, "log": log, "both": Compose(total, log)}
    for dtype in (torch.float32, torch.float64, torch.int32):
        for given_X in both(X):
            given_X = given_X.to(dtype)
            before = given_X.clone()
            for name, step in steps.items():
                result = step(given_X)
                assert result.layout == given_X.layout
                assert result.is_floating_point()
                np.testing.assert_allclose(result.to_dense().numpy(), wanted[name], rtol=1e-5)
            assert torch.equal(given_X.to_dense(), before.to_dense())  # a tensor of the caller's is not changed


def test_halves_hold_totals_that_are_too_large_for_them():
    X = torch.full((1, 200), 1000.0)  # sums to 200,000; the largest half is 65,504
    for given_X in (X.half(), X.half().to_sparse_csr(), X.bfloat16()):
        result = NormalizeTotal(1e4)(given_X)
        assert result.dtype == given_X.dtype
        np.testing.assert_allclose(result.to_dense().float().numpy(), 50, rtol=1e-2)


def assembled(X, dtype, scaling):
    """Dense and CSR minibatches of the rows of X, which lie in the pool as values of a type."""
    space, arenas = row_allocator(np.zeros(len(X)))
    rows = CellRows.from_pointers(place(sp.csr_matrix(X), space, dtype), np.arange(len(X)), np.ones(len(X), bool))
    buffers = DenseBuffers(keep=1)
    with contextlib.closing(Assembler(X.shape[1], "float32", n_threads=2, buffers=buffers, scaling=scaling)) as make:
        yield make.dense_X(rows)
        yield make.sparse_X(rows)
    del arenas


@given(matrices(), st.sampled_from([(np.uint8, 1), (np.uint16, 150), (np.float32, 0.3)]), st.floats(1e-2, 1e5))
def test_values_scaled_while_they_are_copied(X, values, target):
    """Results are those of scanpy, for small counts, large counts and fractions, empty rows, and either step alone."""
    dtype, unit = values
    X = (X * np.float32(unit)).astype(np.float32)
    wanted = anndata.AnnData(X.astype(np.float64))
    scaled = {Scaling(0.0, False): wanted.X.copy(), Scaling(0.0, True): np.log1p(wanted.X)}
    with warnings.catch_warnings(action="ignore"):  # of empty rows
        scanpy.pp.normalize_total(wanted, target_sum=target)
        scaled[Scaling(target, False)] = wanted.X.copy()
        scanpy.pp.log1p(wanted)
        scaled[Scaling(target, True)] = wanted.X
    for scaling, result in scaled.items():
        for minibatch in assembled(X, dtype, scaling):
            assert minibatch.dtype == torch.float32
            np.testing.assert_allclose(minibatch.to_dense().numpy(), result, rtol=3e-7)


def test_what_is_no_number_stays_what_it_was_to_torch():
    """Infinite, negative and missing values: as the transforms themselves have it."""
    X = np.array([[-0.5, 2, 0], [np.nan, 1, 0], [np.inf, 1, 0], [-3, 1, 1], [1e-30, 0, 0]], np.float32)
    for scaling, transform in (
        (Scaling(0.0, True), Log1p()),
        (Scaling(10.0, True), Compose(NormalizeTotal(10), Log1p())),
    ):
        for minibatch in assembled(X, np.float32, scaling):
            filled = minibatch.to_dense()
            at = torch.from_numpy(X != 0)
            torch.testing.assert_close(filled[at], transform(torch.from_numpy(X))[at], equal_nan=True)


def test_what_is_done_in_the_copy():
    """Only a first normalisation, and a logarithm after it, are fused."""
    total, log, other = NormalizeTotal(10), Log1p(), torch.neg
    for transform, scaling, rest in [
        (total, (10, False), ()),
        (log, (0, True), ()),
        (Compose(total, log), (10, True), ()),
        (Compose([total, log]), (10, True), ()),
        (Compose(Compose(total), Compose(log, other)), (10, True), (other,)),
        (Compose(log, total), (0, True), (total,)),
    ]:
        done, left = split_scaling(transform)
        assert done == scaling
        assert (left.transforms if rest else left) == (rest or None)
    for transform in (None, other, Compose(other, log)):
        assert split_scaling(transform) == (None, transform)


@pytest.mark.parametrize("sparse", [False, True])
def test_no_pass_is_made_over_float32(store, sparse, monkeypatch):
    applied = []
    monkeypatch.setattr(OfValues, "apply_", lambda self, X: applied.append(self) or X)
    options = {
        "return_sparse_X": sparse,
        "seed": 0,
        "transform": Compose(NormalizeTotal(100), Log1p(), torch.neg, Log1p()),
    }
    for X_dtype, n in (("float32", 1), ("float16", 3)):
        next(iter(ExperimentDataset(store, X_dtype=X_dtype, batch_size=100, use_eager_fetch=False, **options)))
        assert len(applied) == n
        applied.clear()


@given(st.permutations(range(7)), st.integers(0, 7), st.integers(0, 3), matrices())
def test_named_genes_in_a_given_order(order, n_kept, n_missing, X):
    """Genes kept, dropped, permuted, missing as zeros: each column has its gene's values, also in canonical CSR."""
    var_names = [f"gene {k}" for k in range(7)]
    X = np.resize(X, (5, 7))
    genes = [var_names[k] for k in order[: max(n_kept, 1)]]
    for k in range(n_missing):
        genes.insert(k * 2 % (len(genes) + 1), f"other {k}")
    with warnings.catch_warnings(action="ignore"):
        select = SelectGenes(genes, var_names, missing="zeros")
    wanted = np.stack([X[:, var_names.index(g)] if g in var_names else np.zeros(5) for g in genes], axis=1)
    for given_X in both(X):
        result = select(given_X)
        assert np.array_equal(result.to_dense().numpy(), wanted)
        if result.layout == torch.sparse_csr:
            torch._validate_sparse_csr_tensor_args(
                result.crow_indices(), result.col_indices(), result.values(), result.shape
            )


def test_genes_that_are_not_there_are_named():
    with pytest.raises(SelectionError, match="2 of 3 genes are not in the store: 'X', 'Y'; .*missing=\"zeros\""):
        SelectGenes(["X", "A", "Y"], ["A", "B"])
    with pytest.warns(UserWarning, match="1 of 2 genes are not in the store: 'X'; their columns are zeros"):
        SelectGenes(["X", "A"], ["A", "B"], missing="zeros")
    with pytest.raises(SelectionError, match="'A' stand for several columns"):
        SelectGenes(["A"], ["A", "B", "A"])
    with pytest.raises(SelectionError, match="none of them twice"):
        SelectGenes(["A", "A"], ["A"])


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_applies_it(store, sparse, num_workers):
    """To every minibatch, over several epochs in used buffers, in worker processes too."""
    dataset = ExperimentDataset(
        store, obs_column_names=["soma_joinid"], batch_size=32, seed=0, return_sparse_X=sparse,
        transform=Compose(NormalizeTotal(100), Log1p()),
    )  # fmt: skip
    wanted = np.log1p(normalised(addressed(N, G).toarray().astype(float), 100))
    loader = experiment_dataloader(dataset, num_workers=num_workers)
    for _ in range(1 if num_workers else 3):
        for X, obs in loader:
            assert X.is_sparse_csr == sparse
            np.testing.assert_allclose(X.to_dense().numpy(), wanted[obs[:, 0]], rtol=1e-5)


def test_any_callable_of_yours(store):
    """A transform may change the type and the columns; splits and minibatches of one cell have it as well."""
    dataset = ExperimentDataset(store, batch_size=1, seed=0, shuffle=False, transform=lambda X: X[:, :2] > 0)
    wanted = torch.from_numpy(addressed(N, G).toarray()[:, :2] > 0)
    assert torch.equal(torch.cat([X for X, obs in dataset]), wanted)
    part = dataset.random_split([0.5, 0.5], seed=0)[1]
    assert torch.equal(torch.cat([X for X, obs in part]), wanted[part.obs_joinids])
    with pytest.raises(PlanError, match="transform=3 must be a callable"):
        ExperimentDataset(store, transform=3)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_dataset_reads_the_selected_genes(store, sparse, reading_path):
    """Any order; missing genes are zeros, with one warning; the dataset's transform follows; the shape is X's."""
    whole = ExperimentDataset(store, batch_size=40, seed=0, shuffle=False, return_sparse_X=sparse, transform=Log1p())
    assert whole.gene_names().tolist() == NAMES
    genes = ["G7", "none", "G3", "G20"]
    with pytest.warns(UserWarning, match="1 of 4 genes") as warned:
        dataset = whole.select_genes(genes, missing="zeros")
    assert len(warned) == 1
    assert dataset.shape == (N, 4)
    assert dataset.var_joinids.tolist() == [3, 7, 20]
    X = torch.cat([X.to_dense() for X, obs in dataset]).numpy()
    counts = addressed(N, G).toarray()
    assert not X[:, 1].any()
    np.testing.assert_allclose(X[:, [0, 2, 3]], np.log1p(counts[:, [7, 3, 20]]), rtol=1e-6)
    assert dataset.gene_names().tolist() == dataset.gene_names("feature_name").tolist() == genes
    again = dataset.select_genes(["G20", "G7"])
    assert again.shape == (N, 2)
    X = torch.cat([X.to_dense() for X, obs in again]).numpy()
    np.testing.assert_allclose(X, np.log1p(counts[:, [20, 7]]), rtol=1e-6)
    with pytest.raises(SelectionError, match="var has no column 'symbol'"):
        whole.select_genes(["G1"], var_column="symbol")


def test_on_a_device():
    """CSR and dense give the same result there, and the input is unchanged."""
    X = np.random.default_rng(0).poisson(0.5, (8, 20)).astype(np.float32)
    wanted = np.log1p(normalised(X.astype(float), 10))
    for given_X in both(X):
        result = to_device(given_X, "cpu", Compose(NormalizeTotal(10), Log1p()))
        assert result.layout == torch.strided
        np.testing.assert_allclose(result.numpy(), wanted, rtol=1e-5)
        assert np.array_equal(given_X.to_dense().numpy(), X)
    assert to_device(both(X)[1], "cpu", dense=False).layout == torch.sparse_csr
