"""scvi-tools through SOMA: tensors are right, embeddings belong to their cells, saved models can be loaded."""

import contextlib
import inspect
import json
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from cellfeed import EncodeError, SelectionError, StateError
from tests.support.processes import torchrun
from tests.support.stores import write_experiment

pytest.importorskip("scvi", reason="scvi-tools is not installed")

import rich.pretty  # noqa: F401  scvi-tools 1.4 uses it without importing it
import scvi

import cellfeed.scvi
from cellfeed.scvi import SCVIDataModule
from cellfeed.transforms import Log1p
from tests.programs.embedding import SPLIT

pytestmark = pytest.mark.filterwarnings("ignore")  # of scvi-tools and of Lightning, on small runs

N, G = 302, 12
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "max_epochs": 1}
COVARIATES = {"categorical_covariate_keys": ["site", "flag"], "continuous_covariate_keys": ["age", "depth"]}


@pytest.fixture(scope="module")
def cells():
    """Counts of 302 cells of three types, each with genes of its own, some without a label."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, N)
    X = rng.poisson(1 + 15 * (np.arange(G) % 3 == kind[:, None])).astype(np.float32)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.where(rng.random(N) < 0.3, "unknown", np.array(["T", "B", "NK"])[kind])),
            "kind": [f"k{k}" for k in kind],
            "donor": pd.Categorical([f"d{k}" for k in rng.permutation(N) % 4]),
            "site": pd.Categorical([f"s{k}" for k in rng.integers(0, 3, N)]),
            "flag": rng.random(N) < 0.5,
            "age": rng.integers(20, 80, N),
            "depth": rng.random(N).astype(np.float32),
        }
    )
    return X, obs


@pytest.fixture(scope="module")
def var():
    return pd.DataFrame({"feature_id": [f"ENSG{j:04}" for j in range(G)], "feature_name": [f"G{j}" for j in range(G)]})


@pytest.fixture(scope="module")
def uri(tmp_path_factory, cells, var):
    X, obs = cells
    return write_experiment(tmp_path_factory.mktemp("scvi") / "cells.soma", sp.csr_matrix(X), obs, var=var, extent=32)


def make(experiment, **options):
    return SCVIDataModule(experiment, **{"batch_key": "donor", "batch_size": 50, "seed": 0, **options})


def train(datamodule, kind=scvi.model.SCVI, **options):
    scvi.settings.seed = 0
    model = kind(adata=None, registry=datamodule.registry, n_latent=4, n_hidden=16, **options)
    model.train(datamodule=datamodule, **QUIET)
    return model


def embed(model, datamodule, part="all"):
    return model.get_latent_representation(dataloader=datamodule.inference_dataloader(part))


def tensors(datamodule, part="all"):
    loader = datamodule.inference_dataloader(part)
    batches = list(loader)
    own = datamodule.dataset if part == "all" else datamodule.parts[part]
    assert np.concatenate(loader.joinids).tolist() == own.obs_joinids.tolist()
    return {name: np.concatenate([batch[name].numpy() for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("sparse", [False, True])
def test_tensors_are_those_of_their_cells_and_codes_decode(uri, cells, var, sparse):
    """In the order of the joinids: counts, combined batches, labels, each covariate as itself."""
    X, obs = cells
    datamodule = make(
        uri, batch_key=["donor", "site"], labels_key="cell_type", unlabeled_category="unknown", return_sparse_X=sparse,
        **COVARIATES,
    )  # fmt: skip
    fields = datamodule.registry["field_registries"]
    assert fields["X"]["state_registry"]["column_names"] == list(var["feature_id"])
    assert fields["labels"]["state_registry"]["categorical_mapping"].tolist() == ["B", "NK", "T", "unknown"]
    for part in ("all", "validation"):
        at = datamodule.dataset.obs_joinids if part == "all" else datamodule.parts[part].obs_joinids
        got, rows = tensors(datamodule, part), obs.iloc[at]
        assert np.array_equal(got["X"], X[at])
        batches = fields["batch"]["state_registry"]["categorical_mapping"][got["batch"][:, 0]]
        assert batches.tolist() == [f"{d}//{s}" for d, s in zip(rows["donor"], rows["site"], strict=True)]
        labels = fields["labels"]["state_registry"]["categorical_mapping"][got["labels"][:, 0]]
        assert labels.tolist() == list(rows["cell_type"])
        for k, key in enumerate(["site", "flag"]):
            mapping = fields["extra_categorical_covs"]["state_registry"]["mapping"][key]
            assert mapping[got["extra_categorical_covs"][:, k]].tolist() == list(rows[key].astype(str))
        assert np.array_equal(got["extra_continuous_covs"], rows[["age", "depth"]].to_numpy(np.float32))


class Keeping(SCVIDataModule):
    """Keeps the tensors that the model gets."""

    def __init__(self, *arguments, **parameters):
        super().__init__(*arguments, **parameters)
        self.kept = []

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.kept.append(super().on_after_batch_transfer(batch, dataloader_idx))
        return self.kept[-1]


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU")
GPU = pytest.param("gpu", marks=NO_GPU)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("accelerator", ["cpu", GPU])
def test_tensors_made_on_the_device_of_the_trainer(uri, monkeypatch, accelerator, sparse):
    """The model gets the tensors of a module without a device, to the bit, in training, validation and inference."""

    def run():
        datamodule = Keeping(
            uri, batch_key="donor", batch_size=50, seed=0, labels_key="cell_type", return_sparse_X=sparse,
            obs_values=["depth"], **COVARIATES,
        )  # fmt: skip
        train(datamodule)
        loader = datamodule.inference_dataloader()
        return [*datamodule.kept, *loader], loader._loader.device

    monkeypatch.setitem(QUIET, "check_val_every_n_epoch", 1)
    expected, no_device = run()
    if accelerator == "cpu":
        monkeypatch.setattr(SCVIDataModule, "_device", torch.device("cpu"))
    monkeypatch.setitem(QUIET, "accelerator", accelerator)
    found, device = run()
    assert (no_device, device.type) == (None, "cpu" if accelerator == "cpu" else "cuda")
    assert len(found) == len(expected) == 6 + 1 + 7
    for one, other in zip(found, expected, strict=True):
        assert (one["X"].dtype, one["X"].layout) == (torch.float32, torch.strided)
        assert list(one) == list(other)
        pairs = zip(one.values(), other.values(), strict=True)
        assert all(a.device.type == device.type and a.dtype == b.dtype and torch.equal(a.cpu(), b) for a, b in pairs)


def test_tensors_are_made_of_a_minibatch_without_waiting_for_its_device(uri):
    """Tensors of the device "meta" have no values, so that an operation that reads one would raise an error."""
    for sparse in (False, True):
        options = {"return_sparse_X": sparse, "counts": False, "dataloader_kwargs": {"device": "meta"}}
        datamodule = make(uri, labels_key="cell_type", **COVARIATES, **options)
        batch = datamodule.on_before_batch_transfer(next(iter(datamodule.train_dataloader())), 0)
        shapes = {name: tuple(tensor.shape) for name, tensor in datamodule.on_after_batch_transfer(batch, 0).items()}
        covariates = {"extra_continuous_covs": (50, 2), "extra_categorical_covs": (50, 2)}
        assert shapes == {"X": (50, G), "batch": (50, 1), "labels": (50, 1), **covariates}


def test_training_leaves_out_what_cannot_be_normalised(uri):
    """271 cells in minibatches of 54 leave one, which batch normalisation refuses: not the same in every epoch."""
    datamodule = make(uri, batch_size=54, split=(271 / N, 31 / N))
    loader = datamodule.train_dataloader()
    left_out = set()
    for _ in range(4):
        epoch = [joinids.tolist() for X, obs, joinids in loader]
        assert [len(minibatch) for minibatch in epoch] == [54] * 5
        received = {joinid for minibatch in epoch for joinid in minibatch}
        (one,) = set(datamodule.parts["train"].obs_joinids.tolist()) - received
        left_out.add(one)
    assert len(left_out) > 1


def test_a_model_comes_back_in_a_fresh_process(uri, cells, var, tmp_path):
    """Trained, saved, loaded elsewhere, by scvi-tools and by cellfeed: the test split is embedded as before.

    A store with the genes in another order gives the same. A store without some genes is refused, with their names, or
    these genes count as zeros if the user asks for it.
    """
    X, obs = cells
    order = np.random.default_rng(1).permutation(G)
    permuted, fewer = (
        write_experiment(tmp_path / f"{len(genes)}.soma", sp.csr_matrix(X[:, genes]), obs, var=var.iloc[genes])
        for genes in (order, np.arange(2, G))
    )
    plain = make(uri, split=SPLIT, labels_key="cell_type", continuous_covariate_keys=["age"])
    full = make(uri, split=SPLIT, **COVARIATES)
    models = {"plain": train(plain), "full": train(full, encode_covariates=True)}
    without = write_experiment(tmp_path / "zeros.soma", sp.csr_matrix(X * (np.arange(G) >= 2)), obs, var=var)
    for name, datamodule in (("plain", plain), ("full", full)):
        models[name].save(tmp_path / name, datamodule=datamodule)
        np.save(tmp_path / f"{name}.joinids.npy", datamodule.parts["test"].obs_joinids)
        np.save(tmp_path / f"{name}.before.npy", embed(models[name], datamodule, "test"))
        zeroed = SCVIDataModule.from_reference(models[name], without, split=SPLIT, batch_size=50)
        np.save(tmp_path / f"{name}.zeroed.npy", embed(models[name], zeroed, "test"))
    subprocess.run([sys.executable, "-m", "tests.programs.embedding", uri, tmp_path, permuted, fewer], check=True)
    for name in ("plain", "full"):
        before = np.load(tmp_path / f"{name}.before.npy")
        assert before.shape == (plain.parts["test"].shape[0], 4)
        for path in ("own", "permuted", "scvi") if name == "plain" else ("own", "permuted"):
            assert np.array_equal(np.load(tmp_path / f"{name}.{path}.npy"), before), (name, path)
        refused = (tmp_path / f"{name}.refused").read_text()
        assert "2 of 12 genes are not in the store: 'ENSG0000', 'ENSG0001'" in refused
        zeros, zeroed = np.load(tmp_path / f"{name}.zeros.npy"), np.load(tmp_path / f"{name}.zeroed.npy")
        assert np.array_equal(zeros, zeroed)
        assert not np.allclose(zeros, before, atol=1e-3)


def test_another_store_is_read_by_the_names_of_its_genes(uri, cells, var, tmp_path):
    """Permuted or additional genes give the same embeddings, labelled or not; missing genes are named, or zeros."""
    X, obs = cells
    model = train(datamodule := make(uri))
    order = np.random.default_rng(1).permutation(G)
    new = pd.DataFrame({"feature_id": ["other", *var["feature_id"].iloc[order]], "feature_name": "x"})
    shuffled = np.column_stack([np.full(N, 7, np.float32), X[:, order]])
    other = write_experiment(tmp_path / "other.soma", sp.csr_matrix(shuffled), obs, var=new)
    again = SCVIDataModule.from_reference(model, other, batch_size=64)
    assert np.array_equal(tensors(again)["X"], X)
    np.testing.assert_allclose(embed(model, again), embed(model, datamodule), atol=1e-5)

    bare = write_experiment(tmp_path / "bare.soma", sp.csr_matrix(shuffled), obs[["donor"]], var=new)
    labelled = train(of_labels := make(uri, labels_key="cell_type"))
    without = SCVIDataModule.from_reference(labelled, bare, labels_key=None)
    np.testing.assert_allclose(embed(labelled, without), embed(labelled, of_labels), atol=1e-5)

    few = write_experiment(tmp_path / "few.soma", sp.csr_matrix(X[:, 2:]), obs, var=var.iloc[2:])
    with pytest.raises(SelectionError, match="2 of 12 genes are not in the store: 'ENSG0000', 'ENSG0001'"):
        SCVIDataModule.from_reference(model, few)
    zeros = SCVIDataModule.from_reference(model, few, missing_genes="zeros")
    assert np.array_equal(tensors(zeros)["X"], np.where(np.arange(G) < 2, 0, X))
    with pytest.raises(StateError, match="genes of the data are not those of the model: the data lack 'ENSG0000'"):
        make(few).check(model)
    with pytest.raises(StateError, match="genes .*the model lacks 'other'"):
        model.train(datamodule=make(other), **QUIET)


def test_categories_that_a_model_has_not_seen(uri, cells, var, tmp_path):
    """They are an error that names them, or get new codes, for which the model gets weights that are then trained."""
    X, obs = cells
    model = train(datamodule := make(uri, categorical_covariate_keys=["site"]))
    model.save(tmp_path / "model", datamodule=datamodule)
    obs = obs.assign(donor=pd.Categorical(np.where(np.arange(N) < 99, "a new one", obs["donor"].astype(str))))
    other = write_experiment(tmp_path / "other.soma", sp.csr_matrix(X), obs, var=var)
    with pytest.raises(EncodeError, match="1 categories are not among the 4 of the reference: 'a new one'"):
        SCVIDataModule.from_reference(tmp_path / "model", other)
    query = SCVIDataModule.from_reference(tmp_path / "model", other, extend_categories=True, batch_size=50, seed=0)
    assert query.batch_labels == ["d0", "d1", "d2", "d3", "a new one"]
    for reference in (tmp_path / "model", model):
        extended = cellfeed.scvi.load_query_data(scvi.model.SCVI, reference, query)
        assert extended.module.n_batch == 5
        before = {name: weight.clone() for name, weight in extended.module.state_dict().items()}
        extended.train(datamodule=query, **QUIET)
        after = extended.module.state_dict()
        assert any(not before[name].equal(after[name]) for name in after if "decoder" in name)
        assert before["z_encoder.mean_encoder.weight"].equal(after["z_encoder.mean_encoder.weight"])  # frozen
        assert np.isfinite(embed(extended, query)).all()
    extended.save(tmp_path / "extended", datamodule=query)
    loaded = cellfeed.scvi.load(scvi.model.SCVI, tmp_path / "extended", query)
    assert np.array_equal(embed(loaded, query), embed(extended, query))


def test_scanvi_learns_labels_and_predicts_them(uri, cells, tmp_path):
    """The model is trained on labelled cells and predicts the others better than chance, also after it is loaded."""
    _, obs = cells
    datamodule = make(uri, labels_key="cell_type", unlabeled_category="unknown", split={"train": 1.0})
    scvi.settings.seed = 0
    options = {"n_latent": 4, "n_hidden": 16, "datamodule": datamodule}
    model = scvi.model.SCANVI(adata=None, registry=datamodule.registry, **options)
    model.train(datamodule=datamodule, **{**QUIET, "max_epochs": 15})
    unlabelled = np.asarray(obs["cell_type"] == "unknown")
    true = obs["kind"].map({"k0": "T", "k1": "B", "k2": "NK"}).to_numpy()

    def predict(one):
        return one.predict(dataloader=datamodule.inference_dataloader())

    predicted = predict(model)
    assert set(predicted) <= {"T", "B", "NK"}
    assert (predicted == true)[unlabelled].mean() > 0.8
    model.save(tmp_path / "model", datamodule=datamodule)
    for loaded in (
        cellfeed.scvi.load(scvi.model.SCANVI, tmp_path / "model", datamodule),
        scvi.model.SCANVI.load(tmp_path / "model", adata=False, datamodule=datamodule),
    ):
        assert predict(loaded).tolist() == predicted.tolist()

    first = train(datamodule)
    second = scvi.model.SCANVI.from_scvi_model(
        first, unlabeled_category="unknown", labels_key="cell_type", registry=datamodule.registry, datamodule=datamodule
    )
    second.train(datamodule=datamodule, **QUIET)
    assert set(predict(second)) <= {"T", "B", "NK"}


@pytest.mark.parametrize("kind", [scvi.model.SCVI, scvi.model.SCANVI])
def test_a_saved_model_can_be_described_and_published(uri, tmp_path, capsys, kind):
    """Its registry names its class: for the views of scvi-tools, for scvi-hub, and to refuse another class."""
    pytest.importorskip("huggingface_hub", reason="scvi-hub needs it")
    hub = pytest.importorskip("scvi.hub", reason="scvi-hub is not installed")
    datamodule = make(uri, batch_key=["donor", "site"], labels_key="cell_type", unlabeled_category="unknown")
    options = {"datamodule": datamodule} if kind is scvi.model.SCANVI else {}
    model = kind(adata=None, registry=datamodule.registry, n_latent=4, n_hidden=16, **options)
    model.train(datamodule=datamodule, **QUIET)
    model.save(folder := str(tmp_path / "model"), datamodule=datamodule)
    kind.view_setup_args(folder)
    assert f"{kind.__name__}.setup_anndata" in capsys.readouterr().out.replace("\n", "")
    assert hub.HubMetadata.from_dir(folder, anndata_version="0.12").model_cls_name == kind.__name__
    card = hub.HubModelCardHelper.from_dir(folder, license_info="cc-by-4.0", anndata_version="0.12").model_card
    assert '"batch_key": "donor//site"' in card.content
    other = scvi.model.SCANVI if kind is scvi.model.SCVI else scvi.model.SCVI
    with pytest.raises(StateError, match=f"holds a model of the class {kind.__name__}, not {other.__name__}"):
        cellfeed.scvi.load(other, folder, datamodule)
    with pytest.raises(ValueError, match="a model from a different class"):
        other.load(folder, adata=False)
    assert "model_name" not in datamodule.registry  # it may serve another class next


def test_batches_of_several_columns_have_one_key(uri):
    """scvi-tools uses the key as the name of a column, in ``differential_expression`` for one: it is text."""
    datamodule = make(uri, batch_key=["donor", "site"])
    state = datamodule.registry["field_registries"]["batch"]["state_registry"]
    assert state["original_key"] == datamodule.registry["setup_args"]["batch_key"] == "donor//site"
    if "dataloader" not in inspect.signature(scvi.model.SCVI.differential_expression).parameters:
        pytest.skip("scvi-tools takes no dataloader in differential_expression")
    groups = {"groupby": "donor//site", "group1": "d0//s0", "group2": "d1//s1"}
    frame = train(datamodule).differential_expression(dataloader=datamodule.inference_dataloader(), **groups)
    assert sorted(frame.index) == sorted(datamodule.genes)


def test_a_model_of_an_anndata_embeds_a_store(uri, cells, var):
    """Genes, batches and covariates by name: the embeddings are those that the model gives of the AnnData."""
    X, obs = cells
    names = var["feature_id"].to_numpy()
    order = np.random.default_rng(2).permutation(G)
    adata = anndata.AnnData(sp.csr_matrix(X[:, order]), obs=obs.copy(), var=pd.DataFrame(index=names[order]))
    adata.obs_names = [f"c{k}" for k in range(N)]
    scvi.model.SCVI.setup_anndata(adata, batch_key="donor", categorical_covariate_keys=["site"])
    model = scvi.model.SCVI(adata, n_latent=4, n_hidden=16)
    model.train(**QUIET)
    datamodule = SCVIDataModule.from_reference(model, uri)
    np.testing.assert_allclose(embed(model, datamodule), model.get_latent_representation(), atol=1e-5)


def test_what_a_model_was_trained_on_is_saved_with_it(uri, tmp_path):
    """In plain values: cells, genes, split, seed, versions."""
    datamodule = make(uri, split_seed=5)
    model = train(datamodule)
    model.save(tmp_path / "model", datamodule=datamodule)
    record = cellfeed.scvi.load(scvi.model.SCVI, tmp_path / "model").registry["cellfeed"]["provenance"]
    assert record == datamodule.provenance() == json.loads(json.dumps(record))
    assert record["experiment_uri"] == uri
    assert (record["n_genes"], record["seed"], record["splits"][0]["seed"]) == (G, 0, 5)


@pytest.mark.parametrize("sparse", [False, True])
def test_what_is_no_count_is_refused(uri, cells, var, tmp_path, sparse):
    """Scaled or log-normalised values, in training and inference: an error that names the layer."""
    scaled = write_experiment(tmp_path / "scaled.soma", sp.csr_matrix(cells[0] * -1), cells[1], var=var)
    for source, options in ((scaled, {}), (uri, {"transform": Log1p()})):
        for counts in (True, False):
            datamodule = make(source, return_sparse_X=sparse, counts=counts, **options)
            refused = pytest.raises(SelectionError, match="X_name='raw' holds values that are not counts, such as")
            with refused if counts else contextlib.nullcontext():
                datamodule.on_before_batch_transfer(next(iter(datamodule.train_dataloader())), 0)
            with refused if counts else contextlib.nullcontext():
                next(iter(datamodule.inference_dataloader()))
    with pytest.raises(SelectionError, match="holds values that are not counts, such as -"):
        train(make(scaled))


def test_numbers_that_are_none_are_refused(uri, cells, var, tmp_path):
    X, obs = cells
    bad = write_experiment(tmp_path / "bad.soma", sp.csr_matrix(X), obs.assign(age=np.nan), var=var)
    with pytest.raises(EncodeError, match="column 'age' is not a finite number for 302 of 302 cells"):
        make(bad, continuous_covariate_keys=["age"])
    with pytest.raises(SelectionError, match="column 'donor' holds text") as raised:
        make(bad, continuous_covariate_keys=["depth", "donor"])
    assert raised.value.__notes__ == ["obs_values has the columns of continuous_covariate_keys=['depth', 'donor']"]
    with pytest.raises(StateError, match="has no model.pt"):
        SCVIDataModule.from_reference(tmp_path, uri)


def test_two_ranks_train_one_model_and_embed_all_cells(uri, tmp_path):
    """DDP ends: each cell once an epoch over the ranks, fewer than two left out; all ranks hold one model, which
    embeds the cells of all, in the order of their joinids, as it does in one process.
    """
    torchrun(2, "tests.programs.scvi_ranks", uri, tmp_path)
    ranks = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2)]
    whole = make(uri, split={"train": 0.8, "validation": 0.2})
    for segment, part in (("train", "train"), ("validate", "validation")):
        own = set(whole.parts[part].obs_joinids.tolist())
        for epoch in range(2):
            one, other = (rank[segment][epoch] for rank in ranks)
            assert len(one) == len(other)
            assert len({*one, *other}) == len(one) + len(other) > len(own) - 2
            assert {*one, *other} <= own
    assert set(ranks[0]["train"][0]) != set(ranks[0]["train"][1])
    assert sum(rank["own"] for rank in ranks) == N
    model = cellfeed.scvi.load(scvi.model.SCVI, tmp_path / "model", whole)
    for rank in range(2):
        assert ranks[rank]["joinids"] == whole.dataset.obs_joinids.tolist()
        np.testing.assert_allclose(np.load(tmp_path / f"rank{rank}.npy"), embed(model, whole), atol=1e-6)
    np.testing.assert_allclose(np.load(tmp_path / "alone.npy"), embed(model, whole), atol=1e-6)
