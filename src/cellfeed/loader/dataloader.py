"""A DataLoader set up for datasets that make their own minibatches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from cellfeed._checks import is_integer
from cellfeed.errors import CellfeedError, PlanError, ReadError
from cellfeed.loader.datapipe import is_chained, plain
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.loader.epochs import RankEpoch
from cellfeed.loader.frameworks import EpochSampler, mark_last
from cellfeed.loader.worker_monitor import Watchdog
from cellfeed.loader.workers import WorkerGroup, check_sendable, sending
from cellfeed.plan.epoch import MAX_WORKERS
from cellfeed.rows.minibatch import Minibatch, PaddedMinibatch

_REFUSED = {
    "shuffle": "the dataset's shuffle=",
    "batch_size": "the dataset's batch_size=",
    "sampler": "the dataset's obs_query= or random_split()",
    "batch_sampler": "the dataset's batch_size= and shuffle=",
    "collate_fn": "the loop: minibatches arrive collated, as (X, obs)",
    "drop_last": "the dataset's drop_last=",
}


Loader = TypeVar("Loader", bound="ExperimentDataLoader")

TIMEOUT_S = 600.0
"""Seconds without a minibatch after which workers count as hung, unless ``timeout=`` says otherwise."""

NOT_BEGUN = (
    ". No worker had begun; their own messages on stderr say why. A script must start workers beneath "
    '`if __name__ == "__main__":`, as each worker imports the script. num_workers=0 starts none, and is faster'
)


class ExperimentDataLoader(DataLoader[Minibatch | PaddedMinibatch]):
    """What :func:`experiment_dataloader` returns."""

    made_by = "experiment_dataloader"

    # Accelerate's ``prepare`` gives each rank a part of what a loader yields, and the dataset has done that. What says
    # that it was prepared already is returned as it is; and ``save_state`` keeps the state of a loader that has one.
    _is_accelerate_prepared = True
    use_stateful_dataloader = True

    # Lightning makes a loader again from its attributes by the names of these parameters, and then gives a
    # ``batch_sampler``, which :func:`experiment_dataloader` refuses.
    def __init__(self, dataset: ExperimentDataset, num_workers: int = 0, **kwargs: Any) -> None:
        self._passes, self._label_counter = dataset._passes, dataset._label_counter
        self._workers: WorkerGroup | None = None
        self._address = dataset._selection.source
        self._repeats = "batch_sampler" in kwargs
        self._first: int | None = None
        if num_workers and kwargs.get("multiprocessing_context") != "fork":
            transform, first = dataset._settings.transform, kwargs.get("worker_init_fn")
            parts = {f"transform={transform!r}": transform, f"worker_init_fn={first!r}": first, "the dataset": dataset}
            check_sendable(parts, num_workers)
        super().__init__(plain(dataset), num_workers=num_workers, **kwargs)
        self.__dict__["sampler"] = EpochSampler(self._passes)  # PyTorch takes none for an iterable dataset

    def __iter__(self) -> Iterator[Minibatch | PaddedMinibatch]:  # type: ignore[override]
        # A generator: a pass begins with its first minibatch. Lightning makes iterators that it does not read, and
        # gives the number of the epoch after it has made one.
        if self._repeats:
            self._repeat()
        yield from mark_last(self, self._passes, self._minibatches)

    def _repeat(self) -> None:
        """Make the next pass the first pass again: ``Trainer(overfit_batches=...)`` wants the same minibatches."""
        if self._first is None:
            self._first = self._passes.next
        else:
            self._passes.set(self._first)

    def _minibatches(self) -> Iterator[Minibatch | PaddedMinibatch]:
        """Begin a pass."""
        if self.num_workers == 0:
            # PyTorch's iterator would add a quarter of a millisecond to each minibatch, for its profiler.
            return self._of_torch() if self.pin_memory else iter(self.dataset)
        this = self._passes.begin(self.num_workers)  # each worker has a copy of the dataset, and cannot do it
        received = self._received(*self._begin(this))
        return self._passes.counted(self._label_counter.counted(received), this)

    def _of_torch(self) -> Iterator[Minibatch | PaddedMinibatch]:
        with torch.device("cpu"):  # PyTorch draws a seed, on a default device that may not have values
            return super().__iter__()

    def _begin(self, this: RankEpoch) -> tuple[Iterator[Minibatch | PaddedMinibatch], WorkerGroup]:
        """Start workers for a pass, or have those that live through several passes begin it."""
        if self._iterator is not None and self._workers is not None:
            self._workers.monitor.forget()
            self._workers.assign(this)
            with self._guarded(self._iterator, self._workers) as alarm, alarm.guard():
                return self._of_torch(), self._workers
        workers = self._workers = WorkerGroup(self.num_workers)
        workers.assign(this)
        with sending(self.dataset, workers):
            minibatches = self._of_torch()
        workers.processes = minibatches._workers  # type: ignore[attr-defined]
        # Within a time-out of its own PyTorch would not look whether workers live; without one it looks every 5 s.
        minibatches._timeout = 0  # type: ignore[attr-defined]
        return minibatches, workers

    def _received(
        self, minibatches: Iterator[Minibatch | PaddedMinibatch], workers: WorkerGroup
    ) -> Iterator[Minibatch | PaddedMinibatch]:
        """Yield what workers send, as long as they live and something comes in time."""
        with self._guarded(minibatches, workers) as alarm:
            while True:
                with alarm.guard(), torch.device("cpu"):  # where PyTorch puts CSR tensors together again
                    minibatch = next(minibatches, None)
                if minibatch is None:
                    return
                yield minibatch
                del minibatch

    @contextlib.contextmanager
    def _guarded(self, minibatches: Any, workers: WorkerGroup) -> Iterator[Watchdog]:
        """When a worker dies or hangs in the body, end all of them and say what they were reading."""
        alarm = Watchdog(self.timeout, workers.end)
        try:
            with alarm:
                yield alarm
        except (RuntimeError, OSError, EOFError) as cause:
            if not (alarm.timed_out or _tells_of_a_lost_worker(cause)):
                raise
            reading = workers.monitor.describe()
            with contextlib.suppress(Exception):  # PyTorch reports each worker that it finds dead
                minibatches._shutdown_workers()
            workers.end()  # one that is stopped would hold up the end of this process
            self._iterator = None  # the next pass starts others
            what = f"no minibatch came for {self.timeout:g} s" if alarm.timed_out else f"a worker was lost ({cause})"
            advice = NOT_BEGUN if workers.monitor.nothing_begun and not alarm.timed_out else ""
            raise ReadError(f"{what}: {reading}, of {str(self._address)!r}{advice}") from cause

    def __len__(self) -> int:
        """Minibatches of this rank in the next pass, those received before a restore included."""
        return self._passes.n_minibatches(max(1, self.num_workers))

    def state_dict(self) -> dict[str, Any]:
        """Say where the training loop is; as :meth:`ExperimentDataset.state_dict`, for any number of workers.

        Minibatches that workers have made ahead and the loop has not received are not counted.
        """
        return self._passes.save()

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Make the next pass go on where a state was saved; see :meth:`ExperimentDataset.load_state_dict`."""
        self._passes.restore(state)


def _tells_of_a_lost_worker(error: BaseException) -> bool:
    """Whether PyTorch misses a worker, or a tensor could not be fetched from one; not what a worker itself raised."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader") and not isinstance(error, CellfeedError)
    return not str(error).startswith("Caught ")


def experiment_dataloader(
    dataset: ExperimentDataset | None = None, num_workers: int = 0, *, datapipe: Any = None, **kwargs: Any
) -> ExperimentDataLoader:
    """Make a :class:`torch.utils.data.DataLoader` for a dataset.

    With ``num_workers=0`` the dataset reads in threads of this process, which is the fast way: they
    share one open array and need no copies between processes.

    Parameters
    ----------
    dataset
        An :class:`ExperimentDataset` or :class:`ExperimentDataPipe`; or a chain of datapipes that begins with one,
        such as ``datapipe.map(function)``. A chain takes no workers, and its loader is PyTorch's, without a state.
    num_workers
        Worker processes; each reads an equal part of the cells. They are spawned, never forked, unless you
        give another ``multiprocessing_context``. A script must start them beneath ``if __name__ == "__main__":``, and
        a ``transform`` must be defined where they can import it.
    datapipe
        The name that ``dataset`` has in ``cellxgene_census.experimental.ml``.
    kwargs
        Further arguments of :class:`torch.utils.data.DataLoader`, but for those that the dataset decides. ``timeout``
        is 600 seconds unless given: workers from which no minibatch comes for so long count as hung.

    Returns
    -------
    A loader of ``(X, obs)``; ``len`` of it is the number of minibatches of this rank. It has ``state_dict()`` and
    ``load_state_dict(state)``, which Lightning calls by itself.

    Raises
    ------
    ReadError
        While it is iterated, if a worker process dies or hangs; the message says what the workers were reading. In a
        process that was forked during a pass, which has no threads to read with.
    PlanError
        A ``ValueError``, for what the dataset decides: ``shuffle``, ``batch_size``, ``sampler``, ``batch_sampler``,
        ``collate_fn``, ``drop_last``; and for a ``transform`` or ``worker_init_fn`` that cannot be sent to workers.

    Examples
    --------
    >>> uri = cellfeed.datasets.pbmc700()
    >>> dataset = cellfeed.ExperimentDataset(uri, batch_size=100)
    >>> sum(len(X) for X, obs in cellfeed.experiment_dataloader(dataset))
    700
    """
    if (dataset is None) == (datapipe is None):
        raise PlanError("experiment_dataloader takes a dataset, or by its published name datapipe=: give one of them")
    given: Any = datapipe if dataset is None else dataset
    if is_chained(given):
        chained: Any = _chained_dataloader(given, num_workers, kwargs)
        return chained  # type: ignore[no-any-return]
    return make_dataloader(ExperimentDataLoader, given, num_workers, kwargs)


def make_dataloader(
    kind: type[Loader],
    dataset: ExperimentDataset,
    num_workers: int,
    kwargs: Mapping[str, Any],
    prepare: Callable[[ExperimentDataset], ExperimentDataset] = lambda dataset: dataset,
) -> Loader:
    """Check what a loader of a kind is asked for, and make it for what ``prepare`` makes of the dataset."""
    if not isinstance(dataset, ExperimentDataset):
        raise PlanError(
            f"dataset is a {type(dataset).__name__}; {kind.made_by} takes an ExperimentDataset or an ExperimentDataPipe"
        )
    _refuse_decided(kind.made_by, kwargs)
    if not is_integer(num_workers) or not 0 <= num_workers <= MAX_WORKERS:
        raise PlanError(f"num_workers={num_workers!r} must be an integer from 0 to {MAX_WORKERS}")
    num_workers = int(num_workers)
    if num_workers > 0:
        kwargs = {"multiprocessing_context": "spawn", "timeout": TIMEOUT_S, **kwargs}
    try:
        return kind(prepare(dataset), num_workers, batch_size=None, collate_fn=_as_it_is, **kwargs)
    except CellfeedError:
        raise
    except Exception as cause:  # of what it was given, which may raise anything
        given = ", ".join([f"num_workers={num_workers}", *(f"{name}=" for name in sorted(kwargs))])
        raise PlanError(f"torch.utils.data.DataLoader refuses its arguments ({given}): {cause}") from cause


def _refuse_decided(made_by: str, kwargs: Mapping[str, Any]) -> None:
    for name, instead in _REFUSED.items():
        if name in kwargs:
            raise PlanError(f"{made_by} does not take {name}={kwargs[name]!r}; use {instead}")


def _chained_dataloader(chain: Any, num_workers: int, kwargs: Mapping[str, Any]) -> Any:
    """Make PyTorch's loader of a chain of datapipes; workers would each read all cells, in one order for ever."""
    _refuse_decided("experiment_dataloader", kwargs)
    if num_workers:
        raise PlanError(
            f"num_workers={num_workers!r} with a chain of datapipes ({type(chain).__name__}): give num_workers=0, "
            f"which reads in threads, or the function as transform= of the ExperimentDataPipe"
        )
    return DataLoader(chain, batch_size=None, collate_fn=_as_it_is, **kwargs)


def _as_it_is(minibatch: Any) -> Any:
    return minibatch
