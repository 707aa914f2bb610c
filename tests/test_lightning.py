"""Under Lightning's loop, each stage gets the right cells, before and after a restart, on one rank and on two."""

import contextlib
import json
from types import SimpleNamespace

import pytest
import tiledbsoma as soma
import torch

from cellfeed import ExperimentDataset, PlanError, StateError, experiment_dataloader, inference_dataloader
from tests.support.processes import torchrun

pytest.importorskip("lightning_utilities", reason="Lightning is not installed")

from cellfeed.lightning import ExperimentDataModule, lightning

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on small runs


class Probe(lightning.LightningModule):
    """Records the cells of each stage; saves and stops at a given step."""

    def __init__(self, n_vars, stop_at=None, path=None):
        super().__init__()
        self.layer = torch.nn.Linear(n_vars, 1)
        self.cells = {"train": [], "validation": [], "test": []}
        self.stop_at, self.path = stop_at, path

    def training_step(self, batch, batch_idx):
        self.cells["train"].append((self.current_epoch, batch.obs[:, 0].tolist()))
        return self.layer(batch.X).sum()

    def validation_step(self, batch, batch_idx):
        self.cells["validation"].append(batch.obs[:, 0].tolist())

    def test_step(self, batch, batch_idx):
        self.cells["test"].append(batch.obs[:, 0].tolist())

    def predict_step(self, batch, batch_idx):
        return batch.joinids

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if len(self.cells["train"]) == self.stop_at:
            self.trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-9)


def make(experiment, **options):
    parameters = {"obs_column_names": ["soma_joinid"], "batch_size": 9, "seed": 1, "split": (0.7, 0.2, 0.1)}
    return ExperimentDataModule(experiment, **{**parameters, **options})


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "enable_model_summary": False}
    return lightning.Trainer(**{**quiet, **defaults, **options})


def fit(store, *, stop_at=None, path=None, resume=None, **options):
    datamodule = make(store, **options)
    probe = Probe(datamodule.n_vars, stop_at, path)
    with contextlib.suppress(SystemExit):  # how Lightning ends after an interrupt
        trainer().fit(probe, datamodule=datamodule, ckpt_path=resume)
    return probe.cells["train"]


class Estimating(Probe):
    """Asks for the number of steps, for which Lightning makes the training loader before it restores one."""

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()


def epochs(store, n, split=(0.7, 0.2, 0.1), path=None, resume=None, kind=Probe, callbacks=(), bare=False, **options):
    """The minibatches of training up to epoch ``n``, epoch by epoch; ``path`` is where to save at the end of it."""
    datamodule = make(store, split=split)
    probe = kind(datamodule.n_vars)
    run = trainer(max_epochs=n, callbacks=list(callbacks), enable_checkpointing=bool(callbacks), **options)
    data = {"datamodule": datamodule}
    if bare:
        loaders = [experiment_dataloader(part) for part in datamodule.parts.values()]
        data = dict(zip(("train_dataloaders", "val_dataloaders"), loaders, strict=False))
    run.fit(probe, ckpt_path=resume, **data)
    if path is not None:
        run.save_checkpoint(path)
    train = probe.cells["train"]
    return [[cells for epoch, cells in train if epoch == k] for k in sorted({epoch for epoch, _ in train})]


def flat(minibatches):
    return [joinid for minibatch in minibatches for joinid in minibatch]


def test_each_stage_meets_its_own_cells(store):
    """Training shuffles each epoch in another order; other segments come in order; parts are those of the split."""
    datamodule = make(store, stratify="label")
    probe = Probe(datamodule.n_vars)
    run = trainer(num_sanity_val_steps=1)
    run.fit(probe, datamodule=datamodule)
    run.test(probe, datamodule=datamodule, verbose=False)
    predicted = run.predict(probe, datamodule=datamodule)
    parts = {name: part.obs_joinids.tolist() for name, part in datamodule.parts.items()}
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [70, 20, 10]
    epochs = [[joinid for e, cells in probe.cells["train"] if e == epoch for joinid in cells] for epoch in (0, 1)]
    assert [sorted(epoch) for epoch in epochs] == [parts["train"]] * 2
    assert epochs[0] != epochs[1]
    assert flat(probe.cells["validation"]) == parts["validation"][:9] + 2 * parts["validation"]
    assert flat(probe.cells["test"]) == parts["test"]
    assert torch.cat(predicted).tolist() == list(range(100))


@pytest.mark.parametrize("stop_at", [1, 5, 7, 8, 9, 13])
def test_training_goes_on_in_the_middle_of_an_epoch(store, tmp_path, stop_at):
    """From a checkpoint at any of 2 x 8 steps, in a new data module: the cells of an uninterrupted run."""
    whole = fit(store)
    assert len(whole) == 2 * 8
    before = fit(store, stop_at=stop_at, path=tmp_path / "last.ckpt")
    assert before + fit(store, resume=tmp_path / "last.ckpt") == whole


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("split", [(1.0,), (0.7, 0.3)], ids=["without validation", "with validation"])
@pytest.mark.parametrize("saved", ["default", "last", "after", "limited", "every step"])
def test_training_goes_on_after_the_end_of_an_epoch(store, tmp_path, saved, split, bare):
    """From a checkpoint of the end of epoch 1: epochs 2 and 3, not 0 and 1 again, with a module or a loader alone."""
    options = {"limit_train_batches": 2} if saved in ("limited", "every step") else {}
    whole = epochs(store, 4, split, bare=bare, **options)
    assert len({str(epoch) for epoch in whole}) == 4
    kinds = {"default": {}, "last": {"save_last": True}, "every step": {"every_n_train_steps": 1}}
    callbacks = [lightning.callbacks.ModelCheckpoint(tmp_path, **kinds[saved])] if saved in kinds else []
    path = None if callbacks else tmp_path / "after.ckpt"
    before = epochs(store, 2, split, path, callbacks=callbacks, bare=bare, **options)
    file = tmp_path / "last.ckpt" if saved == "last" else next(tmp_path.glob("*.ckpt"))
    assert before + epochs(store, 4, split, resume=file, bare=bare, **options) == whole


@pytest.mark.parametrize("stop_at", [5, 8])
def test_training_goes_on_where_the_model_asks_for_the_number_of_steps(store, tmp_path, stop_at):
    """Lightning then leaves out to restore the loader; the module restores it."""
    whole = flat(epochs(store, 2, kind=Estimating))
    before = fit(store, stop_at=stop_at, path=tmp_path / "last.ckpt")
    after = flat(epochs(store, 2, resume=tmp_path / "last.ckpt", kind=Estimating))
    assert [cells for _, cells in before] + after == whole


def test_a_checkpoint_that_was_predicted_from_does_not_change_training(store, tmp_path):
    """A fit without a checkpoint begins with epoch 0, also if the module has trained before."""
    fit(store, stop_at=3, path=tmp_path / "last.ckpt")
    datamodule = make(store)
    probe = Probe(datamodule.n_vars)
    trainer().predict(probe, datamodule=datamodule, ckpt_path=tmp_path / "last.ckpt")
    trainer(max_epochs=1).fit(probe, datamodule=datamodule)
    assert [cells for _, cells in probe.cells["train"]] == epochs(store, 1)[0]


def test_a_data_module_prints_and_shows_its_parts(store):
    """Lightning's own text has the numbers of minibatches only, for which it makes all loaders."""
    datamodule = make(store, split={"train": 0.75, "test": 0.25}, predict="test")
    shown = {name: value.strip() for name, value in (line.split("  ", 1) for line in str(datamodule).splitlines())}
    assert {name: shown[name] for name in ("cells x genes", "train", "test", "predict")} == {
        "cells x genes": "100 x 30",
        "train": "75 cells, shuffled, seed=1",
        "test": "25 cells, ascending joinids",
        "predict": "25 cells, ascending joinids",
    }
    html = datamodule._repr_html_()
    assert "<strong>ExperimentDataModule</strong>" in html
    assert all(f">{value}</td>" in html for value in shown.values())
    assert repr(datamodule).endswith("batch_size=9, seed=1, train=75 cells, test=25 cells)")


def test_predictions_of_a_loader_alone_are_in_order(store):
    """Lightning makes a new loader for ``predict``; the rows are those of the joinids."""
    dataset = ExperimentDataset(store, batch_size=9, seed=1)
    predicted = trainer().predict(Probe(30), inference_dataloader(dataset))
    assert torch.cat(predicted).tolist() == list(range(100))


@pytest.mark.parametrize(
    ("root", "options", "expected"),
    [
        ("cuda:1", {}, "cuda:1"),
        ("cuda:1", {"num_workers": 2, "dataloader_kwargs": {"pin_memory": True}}, "cuda:1"),
        ("cuda:1", {"dataloader_kwargs": {"device": None}}, "None"),
        ("cuda:1", {"dataloader_kwargs": {"device": "cpu"}}, "cpu"),
        ("cpu", {}, "None"),  # faster without a device
        ("mps", {}, "None"),  # Lightning moves minibatches to it
        (None, {}, "None"),
    ],
)
def test_each_rank_makes_minibatches_on_its_gpu(store, monkeypatch, root, options, expected):
    """The loaders of all stages have the CUDA device of the trainer, unless the user chooses another one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    datamodule = make(store, **options)
    if root is not None:
        datamodule.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(root)))
    stages = ("train", "val", "test", "predict")
    devices = [str(getattr(datamodule, f"{stage}_dataloader")().device) for stage in stages]
    assert devices == [expected] * 4


class Keeping(Probe):
    """Keeps the minibatches of all stages."""

    def __init__(self, n_vars):
        super().__init__(n_vars)
        self.kept = []

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        there = super().transfer_batch_to_device(batch, device, dataloader_idx)
        assert there.X is batch.X
        self.kept.append(there)
        return there


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU")
GPU = pytest.param("gpu", marks=NO_GPU)


@pytest.mark.parametrize("content", [{}, {"joinids": True, "obs_values": ["number"], "rank_remainder": "pad"}])
@pytest.mark.parametrize("accelerator", ["cpu", GPU])
def test_minibatches_made_on_the_device_of_the_trainer(store, monkeypatch, accelerator, content):
    """All stages get the minibatches of a module without a device, to the bit, and Lightning does not copy them."""

    def run(accelerator):
        datamodule = make(store, **content)
        probe = Keeping(datamodule.n_vars)
        each = trainer(num_sanity_val_steps=1, accelerator=accelerator)
        each.fit(probe, datamodule=datamodule)
        each.test(probe, datamodule=datamodule, verbose=False)
        each.predict(probe, datamodule=datamodule)
        return probe.kept, each.predict_dataloaders.device

    expected, no_device = run("cpu")
    if accelerator == "cpu":
        monkeypatch.setattr(ExperimentDataModule, "_device", torch.device("cpu"))
    found, device = run(accelerator)
    assert (no_device, device.type) == (None, "cpu" if accelerator == "cpu" else "cuda")
    assert len(found) == len(expected) > 30
    for one, other in zip(found, expected, strict=True):
        assert type(one) is type(other)
        pairs = zip(one.as_dict().values(), other.as_dict().values(), strict=True)
        assert all(a.device.type == device.type and a.dtype == b.dtype and torch.equal(a.cpu(), b) for a, b in pairs)


def test_a_loader_alone_has_a_device(store):
    """Its epochs are those without one, under the same trainer; predictions are in order."""

    def run(device):
        datasets = make(store).parts
        probe = Probe(30)
        loaders = [experiment_dataloader(datasets[name], device=device) for name in ("train", "validation")]
        each = trainer()
        each.fit(probe, *loaders)
        predicted = each.predict(probe, inference_dataloader(datasets["test"], device=device))
        assert str(each.predict_dataloaders.device) == str(device)
        return probe.cells, torch.cat(predicted).tolist()

    assert run("cpu") == run(None)


@pytest.mark.parametrize("bare", [False, True])
def test_overfitting_meets_the_same_minibatches_each_epoch(store, bare):
    """``Trainer(overfit_batches=2)`` trains on two minibatches: the first ones of an epoch without it."""
    received = epochs(store, 3, (0.7, 0.3), bare=bare, overfit_batches=2)
    assert received == [epochs(store, 1, (0.7, 0.3), bare=bare)[0][:2]] * 3


def test_a_checkpoint_is_not_taken_for_other_data(store, tmp_path):
    """Predicting from it with other genes or shifted labels is an error that names them; with other cells it is not."""
    options = {"obs_column_names": ["label"]}
    datamodule = make(store, **options)
    run = trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    run.fit(Probe(datamodule.n_vars), datamodule=datamodule)
    run.save_checkpoint(path := tmp_path / "last.ckpt")

    def predict(**changes):
        other = make(store, **{**options, **changes})
        return trainer().predict(Probe(30), datamodule=other, ckpt_path=path)

    cells = soma.AxisQuery(coords=(slice(0, 19),))
    assert torch.cat(predict(obs_query=cells)).tolist() == list(range(20))
    with pytest.raises(StateError, match="'G0'"):
        predict(var_query=soma.AxisQuery(coords=(slice(1, 29),)))
    with pytest.raises(StateError, match="codes of 'label'.*'type 0'"):
        predict(obs_query=soma.AxisQuery(value_filter="label != 'type 0'"))


def test_fast_dev_run(store):
    datamodule = make(store)
    probe = Probe(datamodule.n_vars)
    trainer(fast_dev_run=True).fit(probe, datamodule=datamodule)
    assert {name: len(steps) for name, steps in probe.cells.items()} == {"train": 1, "validation": 1, "test": 0}


def test_two_ranks_meet_each_cell_once(make_store, tmp_path):
    """DDP ends, with a model that synchronises buffers: no cell twice, fewer than two left out, predictions of all."""
    torchrun(2, "tests.programs.lit", make_store(101), tmp_path)
    ranks = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2)]
    train = flat(cells for rank in ranks for _, cells in rank["train"])
    assert len(set(train)) == len(train) > 60 - 2
    for segment, n in (("validation", 21), ("test", 20)):
        received = flat(cells for rank in ranks for cells in rank[segment])
        assert len(set(received)) == len(received) > n - 2
        assert len(ranks[0][segment]) == len(ranks[1][segment])
    assert ranks[0]["predicted"] == ranks[1]["predicted"] == list(range(101))


def test_a_query_fractions_by_name_and_parts_of_your_own(store):
    with soma.open(store) as experiment:
        query = experiment.axis_query("RNA", obs_query=soma.AxisQuery(value_filter="label == 'type 1'"))
        datamodule = make(query, split={"train": 0.5, "test": 0.5}, group="donor", predict="test")
    assert (datamodule.n_obs, datamodule.n_vars) == (33, 30)
    assert datamodule.val_dataloader() == []
    predicted = torch.cat([joinids for X, obs, joinids in datamodule.predict_dataloader()])
    assert predicted.tolist() == datamodule.parts["test"].obs_joinids.tolist()

    whole = ExperimentDataset(store, obs_column_names=["soma_joinid"], seed=0)
    one, other = whole.random_split([0.9, 0.1])
    own = ExperimentDataModule(whole, split={"train": one, "validation": other})
    assert own.parts == {"train": one, "validation": other}


def test_what_is_no_split_is_refused(store):
    with pytest.raises(PlanError, match="did you mean 'validation'"):
        make(store, split={"train": 0.5, "validate": 0.5})
    with pytest.raises(PlanError, match="at most 3 parts"):
        make(store, split=(0.25, 0.25, 0.25, 0.25))
    with pytest.raises(PlanError, match="predict='test' must be 'all' or a part"):
        make(store, split=(0.5, 0.5), predict="test")
    whole = ExperimentDataset(store, seed=0)
    with pytest.raises(PlanError, match="batch_size= is decided by the dataset"):
        ExperimentDataModule(whole, batch_size=3)
    with pytest.raises(PlanError, match="train=0.5 must be an ExperimentDataset"):
        ExperimentDataModule(whole, split={"train": 0.5, "test": whole})
    with pytest.raises(PlanError, match="no effect on parts that are given"):
        ExperimentDataModule(whole, split={"train": whole}, stratify="label")
