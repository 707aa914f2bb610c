"""The ``DataLoader`` of datasets, which make their own minibatches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import methodcaller
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from cellfeed._checks import is_integer
from cellfeed._tabular import Tabular
from cellfeed.errors import CellfeedError, PlanError, ReadError
from cellfeed.loader.datapipe import is_chained, plain
from cellfeed.loader.device_checks import DeviceMemory, check_device, makes_minibatches
from cellfeed.loader.epochs import RankEpoch
from cellfeed.loader.frameworks import EpochSampler, mark_last
from cellfeed.loader.minibatch_dataset import MinibatchDataset
from cellfeed.loader.worker_monitor import TIMEOUT_S, Watchdog, is_lost_worker, leave_signals
from cellfeed.loader.workers import Initializer, WorkerGroup, check_sendable, sending
from cellfeed.plan.epoch import MAX_WORKERS
from cellfeed.rows.minibatch import AnyMinibatch

_REFUSED = {
    "shuffle": "the dataset's shuffle=",
    "batch_size": "the dataset's batch_size=",
    "sampler": "the dataset's obs_query= or random_split()",
    "batch_sampler": "the dataset's batch_size= and shuffle=",
    "collate_fn": "the loop: minibatches arrive collated, as (X, obs)",
    "drop_last": "the dataset's drop_last=",
}

Loader = TypeVar("Loader", bound="ExperimentDataLoader")


class ExperimentDataLoader(Tabular, DataLoader[AnyMinibatch]):
    """The class of the loaders that :func:`experiment_dataloader` makes."""

    made_by = "experiment_dataloader"
    takes: type[MinibatchDataset] = MinibatchDataset

    # Accelerate's ``prepare`` divides the minibatches of a loader among ranks, which the dataset does already. It
    # returns a loader with the first attribute unchanged; ``save_state`` saves the state of one with the second.
    _is_accelerate_prepared = True
    use_stateful_dataloader = True

    # Lightning makes a loader again from its attributes that have the names of these parameters. It then gives a
    # ``batch_sampler``, which :func:`experiment_dataloader` refuses.
    def __init__(self, dataset: MinibatchDataset, num_workers: int = 0, *, device: Any = None, **kwargs: Any) -> None:
        self._engine = dataset._engine
        sparse = self._engine.settings.return_sparse_X
        self.device = None if device is None else check_device(device, self._engine.X_dtype, sparse=sparse)
        self._workers: WorkerGroup | None = None
        self._repeats_epoch = "batch_sampler" in kwargs
        self._repeated_epoch: int | None = None
        if num_workers and kwargs.get("multiprocessing_context") != "fork":
            if kwargs.get("worker_init_fn") is not None:
                kwargs["worker_init_fn"] = Initializer(kwargs["worker_init_fn"])
            parts = {"transform": self._engine.settings.transform, "worker_init_fn": kwargs.get("worker_init_fn")}
            check_sendable({**parts, "dataset": dataset}, num_workers)
        dataset = plain(dataset)
        # Whether minibatches are made without the device, and moved to it in the training loop.
        can_make = num_workers == 0 and self._engine.makes_on_devices
        self._moves = self.device is not None and not (can_make and makes_minibatches(self.device))
        dataset._device = None if self._moves else self.device
        super().__init__(dataset, num_workers=num_workers, **kwargs)
        # PyTorch accepts no sampler for an iterable dataset.
        self.__dict__["sampler"] = EpochSampler(self._engine.epochs)

    def __iter__(self) -> Iterator[AnyMinibatch]:  # type: ignore[override]
        # A generator, so that an epoch begins with its first minibatch: Lightning makes iterators that it does not
        # read, and sets the epoch after it has made one.
        if self._repeats_epoch:
            self._repeat()
        yield from mark_last(self, self._engine.epochs, self._minibatches)

    def _repeat(self) -> None:
        """Yield the first epoch again: ``Trainer(overfit_batches=...)`` needs the same minibatches."""
        epochs = self._engine.epochs
        if self._repeated_epoch is None:
            self._repeated_epoch = epochs.next
        else:
            epochs.set(self._repeated_epoch)

    def _minibatches(self) -> Iterator[AnyMinibatch]:
        """Begin the next epoch."""
        minibatches: Iterator[Any]
        if self.num_workers:
            # The copies of the dataset in the workers cannot turn to the next epoch for this process.
            this = self._engine.epochs.begin(self.num_workers)
            minibatches = self._engine.counted(self._received(*self._begin(this)), this)
        else:
            # PyTorch's iterator would add a quarter of a millisecond to each minibatch, for its profiler.
            minibatches = self._torch_iterator() if self.pin_memory and not self.device else iter(self.dataset)
        return map(methodcaller("to", self.device), minibatches) if self._moves else minibatches

    def _torch_iterator(self) -> Iterator[AnyMinibatch]:
        with torch.device("cpu"):  # PyTorch draws a seed, which the meta device could not return
            return super().__iter__()

    def _begin(self, this: RankEpoch) -> tuple[Iterator[AnyMinibatch], WorkerGroup]:
        """Start workers for an epoch, or make persistent workers begin it."""
        if self._iterator is not None and self._workers is not None:
            self._workers.monitor.forget()
            self._workers.assign(this)
            with self._guarded(self._iterator, self._workers) as watchdog, watchdog.guard():
                return self._torch_iterator(), self._workers
        workers = self._workers = WorkerGroup(self.num_workers)
        workers.assign(this)
        with sending(self.dataset, workers):
            minibatches = self._torch_iterator()
        leave_signals(minibatches)
        workers.processes = minibatches._workers  # type: ignore[attr-defined]
        # With a timeout PyTorch would not check that workers are alive; without one it checks every 5 s.
        minibatches._timeout = 0  # type: ignore[attr-defined]
        return minibatches, workers

    def _received(self, minibatches: Iterator[AnyMinibatch], workers: WorkerGroup) -> Iterator[AnyMinibatch]:
        """Yield the minibatches that workers send; raise if a worker dies or none arrives within the timeout."""
        with self._guarded(minibatches, workers) as watchdog:
            while True:
                with watchdog.guard(), torch.device("cpu"):  # PyTorch rebuilds CSR tensors on the default device
                    minibatch = next(minibatches, None)
                if minibatch is None:
                    return
                yield minibatch
                del minibatch  # a reference here would prevent the reuse of its memory

    @contextlib.contextmanager
    def _guarded(self, minibatches: Any, workers: WorkerGroup) -> Iterator[Watchdog]:
        """If the body fails, end all workers; if a worker died or hung, raise an error with the cells being read."""
        watchdog = Watchdog(self.timeout, workers.end)
        try:
            with watchdog:
                yield watchdog
        except Exception as cause:
            reading = workers.monitor.describe()
            with contextlib.suppress(Exception):  # PyTorch reports each worker that it finds dead
                minibatches._shutdown_workers()
            workers.end()  # a stopped worker would delay the end of this process
            self._iterator = None  # the next epoch starts new workers
            if not (watchdog.timed_out or is_lost_worker(cause)):
                raise
            what = f"no minibatch came for {self.timeout:g} s" if watchdog.timed_out else f"a worker was lost ({cause})"
            advice = "" if watchdog.timed_out else workers.monitor.advice
            raise ReadError(f"{what}: {reading}, of {str(self._engine.selection.source)!r}{advice}") from cause

    @property
    def device_memory(self) -> DeviceMemory:
        """Memory for the minibatches of the next epoch, with ``device=`` and ``num_workers=0``."""
        return self._engine.device_memory(self.device)

    def __len__(self) -> int:
        """Return the number of minibatches of this rank in the next epoch, including those before a restore."""
        return self._engine.epochs.n_minibatches(max(1, self.num_workers))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._engine.describe()}, num_workers={self.num_workers}, device={self.device})"

    def _table(self) -> dict[str, str]:
        return {
            **self._engine.table(),
            "minibatches": f"{len(self):,} per epoch, of {self._engine.settings.batch_size:,} cells",
            "workers": f"{self.num_workers} processes" if self.num_workers else "threads of this process",
            "device": str(self.device or "cpu"),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the training loop, as :meth:`ExperimentDataset.state_dict`, for any number of workers.

        Minibatches that workers have made and the loop has not received are not counted.
        """
        return self._engine.epochs.save()

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Make the next iterator continue from a saved state; see :meth:`ExperimentDataset.load_state_dict`."""
        self._engine.epochs.restore(state)


def experiment_dataloader(
    dataset: MinibatchDataset | None = None,
    num_workers: int = 0,
    *,
    datapipe: Any = None,
    device: Any = None,
    **kwargs: Any,
) -> ExperimentDataLoader:
    """Make a :class:`torch.utils.data.DataLoader` for a dataset.

    With ``num_workers=0`` the dataset reads in threads of this process. This is fastest, as threads share one open
    array and need no copies between processes.

    Parameters
    ----------
    dataset
        An :class:`ExperimentDataset`, :class:`ExperimentDataPipe` or :class:`JoinedDataset`; or a chain of datapipes
        that begins with one, such as ``datapipe.map(function)``. A chain takes no workers, and its loader no state.
    num_workers
        Number of worker processes; each reads an equal part of the cells. They are spawned unless
        ``multiprocessing_context`` is given. A script must start them inside ``if __name__ == "__main__":``. They
        receive a ``transform`` that is defined in a notebook, too.
    datapipe
        The name of ``dataset`` in ``cellxgene_census.experimental.ml``.
    device
        Where minibatches arrive: a :class:`torch.device`, or text such as ``"cuda"``, which is the current device when
        an epoch begins. X crosses to it in compact types and becomes dense or CSR there, and ``transform`` is applied
        there, two minibatches ahead of the training loop. The values are those without a device. Worker processes, and
        this process for ``"mps"``, make minibatches on the CPU; these are moved when the training loop receives them.
    kwargs
        Further arguments of :class:`torch.utils.data.DataLoader`, except for those that the dataset determines.
        ``timeout`` is 600 by default: workers that send no minibatch for 600 seconds count as hung.

    Returns
    -------
    A loader of ``(X, obs)``; its ``len`` is the number of minibatches of this rank. It has ``state_dict()`` and
    ``load_state_dict(state)``, which Lightning calls; and ``device_memory``, the bytes that ``device=`` takes.

    Raises
    ------
    ReadError
        During iteration, if a worker process dies or hangs; the message names the cells that the workers were reading.
        Also in a process that was forked during an epoch, as threads do not survive a fork.
    PlanError
        A ``ValueError``, for an argument that the dataset determines: ``shuffle``, ``batch_size``, ``sampler``,
        ``batch_sampler``, ``collate_fn``, ``drop_last``; for a ``transform`` or ``worker_init_fn`` that cannot be
        sent to workers, such as one that holds a lock; for a ``device`` that does not exist or lacks the type of X;
        and, when an epoch begins, for one with too little free memory.

    Examples
    --------
    >>> uri = cellfeed.datasets.pbmc700()
    >>> dataset = cellfeed.ExperimentDataset(uri, batch_size=100)
    >>> sum(len(X) for X, obs in cellfeed.experiment_dataloader(dataset))
    700

    On a GPU:

    >>> device = "cuda" if torch.cuda.is_available() else "cpu"
    >>> {X.device.type == device for X, obs in cellfeed.experiment_dataloader(dataset, device=device)}
    {True}
    """
    if (dataset is None) == (datapipe is None):
        raise PlanError("experiment_dataloader takes a dataset, or by its published name datapipe=: give one of them")
    source: Any = datapipe if dataset is None else dataset
    if is_chained(source):
        return _chained_dataloader(source, num_workers, device, kwargs)  # type: ignore[no-any-return]
    return make_dataloader(ExperimentDataLoader, source, num_workers, {"device": device, **kwargs})


def make_dataloader(
    kind: type[Loader],
    dataset: MinibatchDataset,
    num_workers: int,
    kwargs: Mapping[str, Any],
    prepare: Callable[[Any], MinibatchDataset] = lambda dataset: dataset,
) -> Loader:
    """Check the arguments of a loader, and make it for ``prepare(dataset)``."""
    if not isinstance(dataset, kind.takes):
        raise PlanError(
            f"dataset is a {type(dataset).__name__}; {kind.made_by} takes an ExperimentDataset or an ExperimentDataPipe"
        )
    _check_names(kind.made_by, kwargs)
    if not is_integer(num_workers) or not 0 <= num_workers <= MAX_WORKERS:
        raise PlanError(f"num_workers={num_workers!r} must be an integer from 0 to {MAX_WORKERS}")
    num_workers = int(num_workers)
    if num_workers > 0:
        kwargs = {"multiprocessing_context": "spawn", "timeout": TIMEOUT_S, **kwargs}
    try:
        return kind(prepare(dataset), num_workers, batch_size=None, collate_fn=_identity, **kwargs)
    except CellfeedError:
        raise
    except Exception as cause:  # arguments of users may raise anything
        arguments = ", ".join([f"num_workers={num_workers}", *(f"{name}=" for name in sorted(kwargs))])
        raise PlanError(f"torch.utils.data.DataLoader refuses its arguments ({arguments}): {cause}") from cause


def _check_names(made_by: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that the dataset determines."""
    for name, instead in _REFUSED.items():
        if name in kwargs:
            raise PlanError(f"{made_by} does not take {name}={kwargs[name]!r}; use {instead}")


def _chained_dataloader(chain: Any, num_workers: int, device: Any, kwargs: Mapping[str, Any]) -> Any:
    """Make PyTorch's loader of a chain of datapipes. Workers are refused: each would read all cells in every epoch."""
    _check_names("experiment_dataloader", kwargs)
    if device is not None:
        raise PlanError(f"device={device!r} with a chain of datapipes: leave it out, and move minibatches in the loop")
    if num_workers:
        raise PlanError(
            f"num_workers={num_workers!r} with a chain of datapipes ({type(chain).__name__}): give num_workers=0, "
            f"which reads in threads, or the function as transform= of the ExperimentDataPipe"
        )
    return DataLoader(chain, batch_size=None, collate_fn=_identity, **kwargs)


def _identity(minibatch: Any) -> Any:
    return minibatch
