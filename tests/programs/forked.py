"""Fork in one of four ways after this process has read a store; each child reads it again. Prints the cells of each.

python -m tests.programs.forked URI WAY
"""

import json
import multiprocessing
import signal
import sys

import tiledbsoma as soma
import torch

from cellfeed import ExperimentDataset


def read(source):
    signal.alarm(200)  # a child that hangs ends; a fork inherits no alarm
    make = ExperimentDataset.from_query if isinstance(source, soma.ExperimentAxisQuery) else ExperimentDataset
    dataset = make(source, obs_column_names=["soma_joinid"], batch_size=16, seed=1)
    return sorted(int(joinid) for batch in dataset for joinid in batch.obs[:, 0])


def send(source, pipe):
    pipe.send(read(source))


N_CHILDREN = 6
"""A child that uses a context of its parent hangs in about one case of six."""


def by_process(source):
    fork = multiprocessing.get_context("fork")
    cells = []
    for _ in range(N_CHILDREN):
        receiver, sender = fork.Pipe(duplex=False)
        child = fork.Process(target=send, args=(source, sender))
        child.start()
        sender.close()
        cells.append(receiver.recv())
        child.join()
    return cells


def by_pool(uri):
    with multiprocessing.get_context("fork").Pool(N_CHILDREN) as pool:
        return pool.map(read, [uri] * N_CHILDREN, chunksize=1)


class Lazy(torch.utils.data.IterableDataset):
    """A user's dataset that opens the store in the process that reads it: in a worker that PyTorch forks."""

    def __init__(self, uri):
        self.uri = uri

    def __iter__(self):
        yield read(self.uri)


def by_dataloader(uri):
    return list(
        torch.utils.data.DataLoader(Lazy(uri), batch_size=None, num_workers=N_CHILDREN, multiprocessing_context="fork")
    )


def by_lightning(uri):
    from cellfeed.lightning import lightning

    class Module(lightning.LightningDataModule):
        def setup(self, stage):
            signal.alarm(200)
            self.dataset = ExperimentDataset(uri, obs_column_names=["soma_joinid"], batch_size=16, seed=1)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(self.dataset, batch_size=None)

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(30, 1)
            self.counts = torch.zeros(100)

        def training_step(self, batch, batch_idx):
            self.counts[batch.obs[:, 0]] += 1
            return self.layer(batch.X).sum()

        def on_train_epoch_end(self):
            counts = self.all_gather(self.counts).sum(0)
            if self.trainer.is_global_zero:
                print(json.dumps([counts.nonzero()[:, 0].tolist()]), flush=True)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-9)

    lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    ).fit(Model(), datamodule=Module())  # fmt: skip


def main():
    uri, way = sys.argv[1:]
    read(uri)
    signal.alarm(250)
    if way in ("open", "query"):
        with soma.open(uri) as experiment:
            every = soma.AxisQuery(value_filter="soma_joinid >= 0")
            source = experiment if way == "open" else experiment.axis_query("RNA", obs_query=every)
            read(source)
            signal.alarm(250)
            cells = by_process(source)
    else:
        under_way = iter(ExperimentDataset(uri, batch_size=8))
        next(under_way)  # its threads are at work while the process forks
        cells = {"process": by_process, "pool": by_pool, "dataloader": by_dataloader, "lightning": by_lightning}[way](
            uri
        )
        under_way.close()
    if cells is not None:
        print(json.dumps(cells))


if __name__ == "__main__":
    main()
