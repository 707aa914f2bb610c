"""The scripts in examples/ as a reader runs them: two ranks, each cell once per epoch, also after a resume."""

import os
import re
import runpy
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cellfeed import ExperimentDataset
from cellfeed.datasets import pbmc700
from tests.support.processes import ROOT, on_ranks, run

N_TRAIN, N_TEST = 560, 140
PER_STEP = 2 * 32


def torchrun(script, *arguments):
    return on_ranks(2, f"examples/{script}", *arguments)


def epochs(output):
    """Return loss and number of cells by epoch; the scripts themselves check that no cell comes twice."""
    found = re.findall(r"^epoch (\d+): loss ([\d.]+) over (\d+) cells$", output, re.MULTILINE)
    return {int(epoch): (float(loss), int(n)) for epoch, loss, n in found}


def accuracy(output):
    """Return the fraction of right predictions, and the number of cells."""
    ((fraction, n),) = re.findall(r"^test: accuracy ([\d.]+) over (\d+) cells$", output, re.MULTILINE)
    return float(fraction), int(n)


def assert_learned(output):
    """All cells in each of three epochs, and a loss that falls."""
    losses, sizes = zip(*(epochs(output)[k] for k in range(3)), strict=True)
    assert sizes == (N_TRAIN,) * 3
    assert losses[0] > losses[1] > losses[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return pbmc700(tmp_path_factory.mktemp("examples") / "demo.soma")


def test_torchrun_goes_on_in_the_middle_of_an_epoch(demo, tmp_path):
    """A run that stopped after the first step of its second epoch ends as an uninterrupted run does."""
    whole = torchrun("train_torchrun.py")
    assert_learned(whole)
    assert accuracy(whole) == (pytest.approx(0.75, abs=0.1), N_TEST)
    first = torchrun("train_torchrun.py", demo, "--checkpoint", tmp_path / "run.pt", "--stop-at", 12)
    assert epochs(first) == {0: epochs(whole)[0]}
    rest = torchrun("train_torchrun.py", demo, "--checkpoint", tmp_path / "run.pt")
    assert epochs(rest)[1][1] == N_TRAIN - PER_STEP
    assert epochs(rest)[2] == epochs(whole)[2]
    assert accuracy(rest) == accuracy(whole)


def test_accelerate_keeps_the_place_in_the_data(demo, tmp_path):
    pytest.importorskip("accelerate", reason="Accelerate is not installed")
    first = torchrun("train_accelerate.py", demo, "--checkpoint", tmp_path / "state", "--epochs", 2)
    rest = torchrun("train_accelerate.py", demo, "--checkpoint", tmp_path / "state")
    assert list(epochs(rest)) == [2]
    assert_learned(first + rest)
    assert accuracy(rest) == (pytest.approx(0.75, abs=0.1), N_TEST)


def test_lightning_goes_on_from_its_last_checkpoint(demo, tmp_path):
    """That of step 15, the sixth of the second epoch."""
    pytest.importorskip("lightning", reason="Lightning is not installed")
    first = run("examples/train_lightning.py", demo, "--checkpoints", tmp_path, "--epochs", 2)
    rest = run("examples/train_lightning.py", demo, "--checkpoints", tmp_path)
    assert epochs(rest)[1][1] == N_TRAIN - 6 * PER_STEP
    assert_learned(rest + first)
    assert accuracy(rest) == (pytest.approx(0.75, abs=0.1), N_TEST // 2)


def test_ray_keeps_a_checkpoint_from_which_a_worker_goes_on(demo, tmp_path, monkeypatch):
    """Ray, which takes half a minute to start, runs two epochs; a call of the worker's function runs the third."""
    pytest.importorskip("ray.train.torch", reason="Ray Train is not installed")
    import ray.train.torch

    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # short: it holds sockets
        alone = {
            "RAY_TMPDIR": folder,
            "RAY_AUTH_MODE": "disabled",  # or it would write a token to the home folder
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less to start
        }
        first = run("examples/train_ray.py", demo, "--storage", tmp_path, "--epochs", 2, **alone)
    assert list(epochs(first)) == [0, 1]

    latest = max(file.parent for file in tmp_path.glob("cellfeed/*/state.pt"))
    reported = []
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: ray.train.Checkpoint.from_directory(latest))
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 1))
    monkeypatch.setattr(ray.train, "report", lambda metrics, checkpoint: reported.append(metrics))
    monkeypatch.setattr(ray.train.torch, "prepare_model", torch.nn.DataParallel)  # names weights as Ray's does
    script = runpy.run_path(str(ROOT / "examples/train_ray.py"))
    script["train_on_a_worker"]({"uri": demo, "label": "bulk_labels", "n_epochs": 3})
    ((k, loss, n),) = (metrics.values() for metrics in reported)
    assert_learned(first + f"epoch {k}: loss {loss} over {n} cells")


def test_a_model_learns_the_shift_of_perturbed_sets():
    """Relative to controls without a shift, whose distance differs between epochs."""
    output = run("examples/train_perturbation.py")
    found = re.findall(r"^epoch \d+: loss ([\d.]+) over 21 sets; no shift ([\d.]+)$", output, re.MULTILINE)
    losses = [float(loss) / float(without) for loss, without in found]
    assert losses[0] > losses[2] > losses[5]
    assert losses[5] < 1


def test_a_transformer_learns_from_tokens():
    losses = [loss for loss, _ in epochs(run("examples/train_masked_genes.py", "--max-length", 64)).values()]
    assert losses[0] > 1.1 * losses[2] > losses[2] > 0


def test_a_classifier_learns_from_two_species():
    losses, sizes = zip(*epochs(run("examples/train_two_species.py")).values(), strict=True)
    assert set(sizes) == {468}  # 234 cells of the longest, and equally many of the other
    assert losses[0] > losses[1] > losses[2] > 0


REAL_COUNTS = Path(os.environ.get("CELLFEED_REAL_COUNTS", "no folder"))
"""A folder with ``pbmc3k_raw.h5ad``, 2,700 cells, and ``zheng_facs_pbmc.h5ad``, 3,774 cells with fewer genes."""


@pytest.mark.skipif(not REAL_COUNTS.is_dir(), reason="CELLFEED_REAL_COUNTS is not set to a folder with counts")
class TestRealCounts:
    zheng, pbmc3k = REAL_COUNTS / "zheng_facs_pbmc.h5ad", REAL_COUNTS / "pbmc3k_raw.h5ad"

    def test_tokens(self):
        found = run("examples/train_masked_genes.py", self.pbmc3k, "--max-length", 64)
        losses, sizes = zip(*epochs(found).values(), strict=True)
        assert set(sizes) == {2700}
        assert losses[0] > losses[1] > losses[2] > 0

    def test_a_join(self, tmp_path):
        table = ["mouse,human", *(f"{gene},{gene}" for gene in ExperimentDataset(self.zheng).gene_names())]
        (tmp_path / "orthologs.csv").write_text("\n".join(table))
        found = run("examples/train_two_species.py", self.zheng, self.pbmc3k, "--orthologs", tmp_path / "orthologs.csv")
        losses, sizes = zip(*epochs(found).values(), strict=True)
        assert set(sizes) == {2 * 3774}
        assert losses[0] > losses[1] > losses[2] > 0

    def test_sets(self):
        columns = ("--perturbation", "cell_type", "--cell-type", "dataset_id", "--control", "CD34+", "--epochs", 3)
        output = run("examples/train_perturbation.py", self.zheng, *columns)
        found = re.findall(r"^epoch \d+: loss ([\d.]+) over \d+ sets; no shift ([\d.]+)$", output, re.MULTILINE)
        losses = [float(loss) / float(without) for loss, without in found]
        assert losses[0] > losses[1]
        assert losses[2] < 1
