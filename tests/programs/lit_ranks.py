"""A Lightning model that writes the cells that it received; processes that Lightning spawns import it."""

import pytorch_lightning as lightning
import torch

from tests.programs.ranks import note


class Model(lightning.LightningModule):
    def __init__(self, n_vars, folder, strategy):
        super().__init__()
        self.layer, self.cells = torch.nn.Linear(n_vars, 1), []
        self.folder, self.strategy_name = folder, strategy

    def training_step(self, batch, batch_idx):
        self.cells.append(batch.obs[:, 0].tolist())
        return self.layer(batch.X).sum()

    def on_train_end(self):
        note(self.folder, self.strategy_name, self.global_rank, self.trainer.num_training_batches, self.cells)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-9)
