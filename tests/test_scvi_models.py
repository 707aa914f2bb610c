"""What works with which model of scvi-tools is what the tables of the tutorial say, and gives what an AnnData gives."""

import importlib
import inspect
from functools import cache
from importlib.metadata import version
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cellfeed import EncodeError, PlanError, SelectionError
from tests.support.stores import write_experiment

pytest.importorskip("scvi", reason="scvi-tools is not installed")

import rich.pretty  # noqa: F401  scvi-tools 1.4 uses it without importing it
import scvi

import cellfeed.scvi
from cellfeed.scvi import SCVIDataModule
from cellfeed.transforms import Compose, Log1p, NormalizeTotal

pytestmark = pytest.mark.filterwarnings("ignore")  # of scvi-tools and of Lightning, on small runs

PAGE = Path(__file__).parents[1] / "docs/tutorials/scvi.md"
N, G, BATCH = 202, 12, 50
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "max_epochs": 1, "early_stopping": False}
NEW = tuple(map(int, version("scvi-tools").split(".")[:2])) >= (1, 5)


def read_table(column):
    """Return the cells of the table that has a column, by model and column."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines() if "|" in line]
    first = next(k for k, row in enumerate(rows) if column in row)
    header, table = rows[first], {}
    for row in rows[first + 2 :]:
        if not row[0].startswith("`scvi."):
            break
        table |= {(row[0].strip("`"), name): cell for name, cell in zip(header[1:], row[1:], strict=True)}
    return table


WORKS, TAKES = read_table("latent"), read_table("sample_key")
MODELS = list(dict.fromkeys(model for model, _ in WORKS))


def find_class(model):
    module, name = model.rsplit(".", 1)
    return getattr(importlib.import_module(module), name, None)


def works(model, what):
    return WORKS[model, what] == "yes" or (WORKS[model, what] == "1.5" and NEW)


@cache
def cells():
    """Counts of three types of cells, each with genes of its own, some without a label."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, N)
    X = rng.poisson(1 + 15 * (np.arange(G) % 3 == kind[:, None])).astype(np.float32)
    obs = {
        "cell_type": np.where(rng.random(N) < 0.3, "unknown", np.array(["T", "B", "NK"])[kind]),
        "donor": [f"d{k}" for k in rng.permutation(N) % 4],
        "site": [f"s{k}" for k in rng.integers(0, 3, N)],
        "age": rng.integers(20, 80, N),
        "depth": X.sum(axis=1) / X.sum(axis=1).mean(),
    }
    return X, pd.DataFrame(obs)


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    X, obs = cells()
    return write_experiment(tmp_path_factory.mktemp("models") / "cells.soma", sp.csr_matrix(X), obs, extent=32)


def keys_of(model):
    """The keys that a model takes, with columns of the cells."""
    keys = {
        "labels_key": "cell_type",
        "sample_key": "site",
        "size_factor_key": "depth",
        "categorical_covariate_keys": ["site"],
        "continuous_covariate_keys": ["age"],
    }
    keys = {"batch_key": "donor", **{name: value for name, value in keys.items() if TAKES[model, name] == "yes"}}
    return {**keys, "unlabeled_category": "unknown"} if model.endswith("SCANVI") else keys


def make(model, uri, **options):
    scale = {"transform": Compose([NormalizeTotal(1e4), Log1p()])} if model.endswith("SysVI") else {}
    options = {"batch_size": BATCH, "seed": 0, **scale, **options}
    return cellfeed.scvi.setup(find_class(model), uri, **keys_of(model), **options)


@pytest.fixture(scope="module")
def trained(uri):
    """Train a model on the first call, and return it with its data module."""

    @cache
    def train(model):
        datamodule, kind = make(model, uri), find_class(model)
        scvi.settings.seed = 0
        options = {"datamodule": datamodule} if "datamodule" in inspect.signature(kind).parameters else {}
        trained = kind(registry=datamodule.registry, **options)
        trained.train(datamodule=datamodule, **QUIET)
        return trained, datamodule

    return train


def in_memory(model, trained, datamodule):
    """The model of the same weights on an AnnData of the same values."""
    kind = find_class(model)
    X = np.concatenate([tensors["X"].numpy() for tensors in datamodule.inference_dataloader()])
    adata = anndata.AnnData(X, obs=cells()[1].set_axis([f"c{k}" for k in range(N)]))
    kind.setup_anndata(adata, **keys_of(model))
    options = {"prior": "standard_normal"} if model.endswith("SysVI") else {}
    twin = kind(adata, **options)
    twin.module.load_state_dict(trained.module.state_dict())
    twin.module.eval()
    twin.is_trained_ = True
    return twin


def seeded(loader):
    """Seed before the first minibatch: loaders of PyTorch draw random numbers when they start."""
    for k, tensors in enumerate(loader):
        if k == 0:
            scvi.settings.seed = 1
        yield tensors


def compare(model, trained, compute):
    """Compute from the ordered loader and from the AnnData, with the same random numbers."""
    trained, datamodule = trained(model)
    twin = in_memory(model, trained, datamodule)
    scvi.settings.batch_size = BATCH
    own_loader = twin._make_data_loader
    twin._make_data_loader = lambda *given, **options: seeded(own_loader(*given, **options))
    found = compute(trained, dataloader=seeded(datamodule.inference_dataloader()))
    assert found.shape[0] == N
    np.testing.assert_allclose(np.asarray(found), np.asarray(compute(twin)), rtol=1e-4, atol=1e-4)


def check_train(model, trained, uri, folder):
    assert trained(model)[0].is_trained_


def check_latent(model, trained, uri, folder):
    compare(model, trained, lambda one, **given: one.get_latent_representation(**given))


def check_expression(model, trained, uri, folder):
    options = {"library_size": "latent"} if TAKES[model, "size_factor_key"] == "yes" else {}
    compare(model, trained, lambda one, **given: one.get_normalized_expression(**given, **options))


def check_predictive(model, trained, uri, folder):
    """Without the arrays of ``sparse``, whose compilation takes half a minute."""
    sparse = pytest.importorskip("sparse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse.GCXS, "from_numpy", np.asarray)
        patch.setattr(sparse, "concatenate", np.concatenate)
        compare(model, trained, lambda one, **given: one.posterior_predictive_sample(**given))


def check_differential(model, trained, uri, folder):
    """Genes by name, and means of the cells of each group."""
    trained, datamodule = trained(model)
    frame = trained.differential_expression(
        dataloader=datamodule.inference_dataloader(), groupby="donor", group1="d0", group2="d1"
    )
    assert sorted(frame.index) == sorted(datamodule.genes)
    (column,) = {"raw_mean1", "emp_prob1"} & set(frame)
    X, obs = cells()
    X = X if column == "raw_mean1" else X > 0
    own = X[np.asarray(obs["donor"] == "d0")].mean(axis=0)
    np.testing.assert_allclose(frame.loc[datamodule.genes, column], own, rtol=1e-5)


def check_load(model, trained, uri, folder):
    trained, datamodule = trained(model)
    trained.save(folder / "model", datamodule=datamodule)
    loaded = cellfeed.scvi.load(find_class(model), folder / "model", datamodule)
    latent = [one.get_latent_representation(dataloader=datamodule.inference_dataloader()) for one in (trained, loaded)]
    assert np.array_equal(*latent)


def check_surgery(model, trained, uri, folder):
    """Cells of a new batch: weights of the encoder stay, weights of the batch are added and trained."""
    X, obs = cells()
    obs = obs.assign(donor=np.where(np.arange(N) < 99, "new", obs["donor"]))
    other = write_experiment(folder / "other.soma", sp.csr_matrix(X), obs, extent=32)
    query = SCVIDataModule.from_reference(trained(model)[0], other, extend_categories=True, batch_size=BATCH, seed=0)
    extended = cellfeed.scvi.load_query_data(find_class(model), trained(model)[0], query)
    before = {name: weight.clone() for name, weight in extended.module.state_dict().items()}
    extended.train(datamodule=query, **QUIET)
    changed = [name for name, weight in extended.module.state_dict().items() if not weight.equal(before[name])]
    assert 0 < len(changed) < len(before)
    assert extended.summary_stats.n_batch == 5
    assert np.isfinite(extended.get_latent_representation(dataloader=query.inference_dataloader())).all()


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


def test_the_tables_have_all_models_and_checks():
    assert {what for _, what in WORKS} == set(CHECKS)
    assert {model for model, _ in TAKES} == {model for model in MODELS if WORKS[model, "train"] != "no"}
    assert set(WORKS.values()) == {"yes", "1.5", "no"}


@pytest.mark.parametrize("what", CHECKS)
@pytest.mark.parametrize("model", MODELS)
def test_what_works_with_which_model(model, what, trained, uri, tmp_path):
    """A cell that says no is true as well: scvi-tools refuses."""
    kind = find_class(model)
    if kind is None:
        assert not NEW
        assert not works(model, what)
    elif not works(model, "train"):
        assert not works(model, what)
        with pytest.raises(PlanError, match="takes an AnnData only; scvi.model.SCVI takes a data module"):
            cellfeed.scvi.setup(kind, uri)
    elif works(model, what):
        CHECKS[what](model, trained, uri, tmp_path)
    else:
        with pytest.raises((TypeError, ValueError, AttributeError, NotImplementedError)):
            CHECKS[what](model, trained, uri, tmp_path)


@pytest.mark.parametrize(("model", "key"), TAKES)
def test_keys_are_those_that_a_model_takes(model, key, uri):
    """Others are refused before a cell is read."""
    kind = find_class(model)
    if kind is None:
        pytest.skip("scvi-tools has this model since 1.5")
    assert (TAKES[model, key] == "yes") == (key in inspect.signature(kind.setup_anndata).parameters)
    if TAKES[model, key] == "no" and works(model, "train"):
        with pytest.raises(PlanError, match=f"{key}=.*{kind.__name__} does not take it; it takes batch_key"):
            cellfeed.scvi.setup(kind, "no store", **{key: ["site"]})


def test_samples_and_size_factors_are_those_of_their_cells(uri):
    """Beside covariates of each kind; samples keep the codes of a reference, and their cells are counted."""
    obs = cells()[1]
    keys = {"sample_key": "site", "size_factor_key": "depth", "continuous_covariate_keys": ["age"]}
    datamodule = SCVIDataModule(uri, batch_key="donor", categorical_covariate_keys=["cell_type"], seed=0, **keys)
    batches = list(datamodule.inference_dataloader())
    got = {name: np.concatenate([batch[name].numpy() for batch in batches]) for name in batches[0]}
    fields = datamodule.registry["field_registries"]
    assert np.array(datamodule.sample_labels)[got["sample"][:, 0]].tolist() == list(obs["site"])
    np.testing.assert_allclose(got["size_factor"][:, 0], obs["depth"])
    np.testing.assert_array_equal(got["extra_continuous_covs"][:, 0], obs["age"])
    mapping = fields["extra_categorical_covs"]["state_registry"]["mapping"]["cell_type"]
    assert mapping[got["extra_categorical_covs"][:, 0]].tolist() == list(obs["cell_type"])
    assert fields["sample"]["summary_stats"]["n_sample"] == datamodule.n_samples == 3
    assert (
        fields["sample"]["n_obs_per_sample"]["n_obs_per_sample"].tolist()
        == obs["site"].value_counts()[datamodule.sample_labels].to_list()
    )
    assert (datamodule.n_train, datamodule.n_val) == (182, 20)
    only = SCVIDataModule.from_reference(datamodule, uri, obs_query="site == 's2'")
    assert only.sample_labels == ["s0", "s1", "s2"]
    assert only.n_obs_per_sample.tolist() == [0, 0, (obs["site"] == "s2").sum()]


def test_setup_selects_genes_within_the_batches(uri):
    """Of the selected cells only, as highly_variable_genes does."""
    query = {"obs_query": "cell_type != 'T'", "seed": 0}
    options = {"flavor": "seurat_v3", "batch_key": "donor", "span": 1.0}
    genes = cellfeed.highly_variable_genes(cellfeed.ExperimentDataset(uri, **query), 5, **options)
    datamodule = cellfeed.scvi.setup(scvi.model.SCVI, uri, n_top_genes=5, **options, **query)
    assert datamodule.genes == genes
    assert datamodule.n_obs == (cells()[1]["cell_type"] != "T").sum()
    assert datamodule.batch_labels == ["d0", "d1", "d2", "d3"]
    by_dispersion = cellfeed.scvi.setup(
        scvi.model.SCVI, uri, n_top_genes=5, flavor="seurat", batch_key="donor", **query
    )
    assert by_dispersion.genes == cellfeed.highly_variable_genes(cellfeed.ExperimentDataset(uri, **query), 5)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (scvi.model.SCANVI, {"labels_key": "cell_type"}, "unlabeled_category=None: SCANVI needs it; give setup.SCANVI"),
        (scvi.model.SCANVI, {"unlabeled_category": "unknown"}, "labels_key=None: SCANVI needs it"),
        (scvi.external.MRVI, {}, "sample_key=None: MRVI needs it; give setup.MRVI, ..., sample_key='a column of obs'"),
        (scvi.model.SCVI, {"genes": ["G1"], "n_top_genes": 2}, "n_top_genes=2 and genes= exclude each other"),
        (dict, {}, "model_class=dict is not a model of scvi-tools; give its class, such as scvi.model.SCVI"),
    ],
)
def test_setup_refuses_what_a_model_cannot_take(uri, kind, options, message):
    with pytest.raises(PlanError, match=message):
        cellfeed.scvi.setup(kind, uri, **options)


def test_size_factors_must_be_above_zero(tmp_path):
    X, obs = cells()
    for value, n_bad in ((0.0, 3), (np.nan, 3)):
        obs = obs.assign(depth=np.where(np.arange(N) < 3, value, 1.0))
        bad = write_experiment(tmp_path / f"{value}.soma", sp.csr_matrix(X), obs, extent=32)
        with pytest.raises(
            EncodeError, match=f"column 'depth' is not a finite number above 0 for {n_bad} of 202 cells"
        ):
            SCVIDataModule(bad, batch_key=None, size_factor_key="depth")
    with pytest.raises(SelectionError, match="column 'donor' holds text") as raised:
        SCVIDataModule(bad, batch_key=None, size_factor_key="donor")
    assert raised.value.__notes__ == ["obs_values has the columns of size_factor_key='donor'"]
