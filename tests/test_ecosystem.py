"""Other libraries: Lightning restores a loader, and Accelerate does not shard it a second time."""

import contextlib
import json
import subprocess
import sys

import pytest
import torch

from cellfeed import ExperimentDataset, experiment_dataloader
from tests.support.processes import PATIENCE_S, torchrun

lightning = pytest.importorskip("pytorch_lightning", reason="Lightning is not installed")


class Probe(lightning.LightningModule):
    """Records the cells that it is trained on; saves and stops at a given step."""

    def __init__(self, n_vars, stop_at=None, path=None):
        super().__init__()
        self.layer = torch.nn.Linear(n_vars, 1)
        self.cells = []
        self.stop_at = stop_at
        self.path = path

    def training_step(self, batch, batch_idx):
        self.cells.append((self.current_epoch, batch.obs[:, 0].tolist()))
        return self.layer(batch.X).sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if len(self.cells) == self.stop_at:
            self.trainer.save_checkpoint(self.path)
            self.trainer.should_stop = True
            raise KeyboardInterrupt

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-9)


def fit(store, *, num_workers=0, path=None, stop_at=None, resume=None, max_epochs=2):
    dataset = ExperimentDataset(store, obs_column_names=["soma_joinid"], batch_size=9, seed=1)
    probe = Probe(dataset.shape[1], stop_at, path)
    trainer = lightning.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with contextlib.suppress(SystemExit):  # how Lightning ends after an interrupt
        trainer.fit(probe, experiment_dataloader(dataset, num_workers=num_workers), ckpt_path=resume)
    return probe.cells


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stop_at", [1, 5, 11, 12, 13, 20])
def test_lightning_goes_on_in_the_middle_of_an_epoch(store, tmp_path, stop_at):
    """From a checkpoint at any step, also the last of an epoch, the cells are those of an uninterrupted run."""
    whole = fit(store)
    assert len(whole) == 2 * 12
    path = tmp_path / "last.ckpt"
    before = fit(store, path=path, stop_at=stop_at)
    after = fit(store, resume=path)
    assert before + after == whole


@pytest.mark.filterwarnings("ignore")
def test_lightning_with_other_workers(store, tmp_path):
    """A checkpoint of one process is resumed with two workers: each cell comes once per epoch."""
    path = tmp_path / "last.ckpt"
    before = fit(store, path=path, stop_at=5, max_epochs=1)
    after = fit(store, resume=path, num_workers=2, max_epochs=1)
    assert sorted(j for _, cells in before + after for j in cells) == list(range(100))


def test_accelerate_leaves_the_sharding_to_the_dataset(store, tmp_path):
    """Prepared, a loader still gives each rank its own part, all cells once; its state is saved and restored."""
    pytest.importorskip("accelerate", reason="Accelerate is not installed")
    torchrun(2, "tests.programs.accelerated", store, tmp_path)
    ranks = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2)]
    assert all(rank["same"] for rank in ranks)
    assert sorted(j for rank in ranks for cells in rank["whole"] for j in cells) == list(range(100))
    for rank in ranks:
        assert rank["continued"] == rank["whole"]
        assert "experiment_dataloader" in rank["refused"]


def test_accelerate_makes_a_step_after_the_last_minibatch(store):
    """Of 10 minibatches with a step per 4, also in an epoch that is resumed, with a second loader inside the loop.

    ``gather_for_metrics`` keeps each cell of the inner loader.
    """
    pytest.importorskip("accelerate", reason="Accelerate is not installed")
    program = [sys.executable, "-m", "tests.programs.accumulated", store]
    done = subprocess.run(program, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["steps"] == [[0, 3], [0, 7], [0, 9], [1, 3], [1, 7], [1, 8]]
    assert [sorted(cells) for cells in record["metrics"]] == [record["test"]] * 2
