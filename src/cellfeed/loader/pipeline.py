"""The minibatches of one epoch: rows are made into tensors ahead of the training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from cellfeed._checks import format_bytes
from cellfeed.errors import CellfeedError, ReadError
from cellfeed.loader.content import MatrixAssembler, TensorMaker, extended
from cellfeed.loader.device import DeviceFeed, Sent
from cellfeed.loader.measured_masks import MeasuredMasks
from cellfeed.loader.prefetch import Prefetch
from cellfeed.loader.reading import ReadsRows
from cellfeed.plan import budget
from cellfeed.plan.settings import Settings
from cellfeed.rows.assemble import Assembler, DenseBuffers
from cellfeed.rows.cell_rows import CellRows
from cellfeed.rows.minibatch import AnyMinibatch, Minibatch, OrderedMinibatch, PaddedMinibatch
from cellfeed.select.selection import Selection
from cellfeed.sources.failures import lacks_memory
from cellfeed.stats import Meter
from cellfeed.tokens import Tokenizer
from cellfeed.tokens.assembler import TokenAssembler
from cellfeed.transforms import check_result, columns_after, split_scaling

Yielded = AnyMinibatch | OrderedMinibatch


@dataclass(frozen=True, eq=False)
class Assembly:
    """Makes tensors of the rows of one matrix.

    Attributes
    ----------
    selection, settings
        Which cells and genes the rows have, with their columns, and what to make of them.
    n_threads
        Number of threads.
    buffers
        Memory for dense minibatches.
    feed
        Makes the minibatches on a device.
    epoch
        Number of the epoch, for random tokens.
    """

    selection: Selection
    settings: Settings
    n_threads: int
    buffers: DenseBuffers
    feed: DeviceFeed | None = None
    epoch: int = 0

    def assembler(self) -> TensorMaker:
        """Return what makes tensors of rows; the caller closes it."""
        selection, settings = self.selection, self.settings
        if isinstance(settings.transform, Tokenizer):
            key = selection.joinid_column, settings.seed, self.epoch
            return TokenAssembler(settings.transform, *key, n_threads=self.n_threads)
        dtype = settings.type_of_X(selection.geometry.dtype)
        # The kernels that copy values to a minibatch can scale them, but in float32 only.
        scaling, transform = split_scaling(settings.transform) if dtype == "float32" else (None, settings.transform)
        make = partial(Assembler, buffers=self.buffers) if self.feed is None else self.feed.assembler
        n_columns = columns_after(selection.column_transform, selection.n_vars)
        assembler = make(n_columns, dtype, n_threads=self.n_threads, scaling=scaling)
        return MatrixAssembler(assembler, transform, sparse=settings.return_sparse_X)


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Makes the minibatches of one epoch of one process.

    Attributes
    ----------
    X
        Makes the tensors of X; its selection and settings are those of minibatches.
    read
        Reads the rows.
    meter
        The counters.
    with_joinids
        Whether minibatches are of class :class:`OrderedMinibatch`.
    count_copied
        Returns how many cells of a minibatch, whose obs it takes, come from a local copy.
    """

    X: Assembly
    read: ReadsRows
    meter: Meter
    with_joinids: bool = False
    count_copied: Callable[[torch.Tensor], int] = lambda obs: 0

    @cached_property
    def _matrices(self) -> list[Assembly]:
        """What makes the tensors of each matrix of minibatches, X first."""
        settings = self.X.settings.replace(transform=None)
        return [
            self.X,
            *(
                replace(self.X, selection=own, settings=settings, buffers=DenseBuffers(keep=budget.MINIBATCHES_HELD))
                for own in self.X.selection.further
            ),
        ]

    @cached_property
    def _masks(self) -> MeasuredMasks | None:
        """Makes the masks of measured genes."""
        selection, transform = self.X.selection, self.X.settings.transform
        if selection.measured is None:
            return None
        return MeasuredMasks(selection.measured, (selection.column_transform, transform))

    def minibatches(self) -> Generator[Yielded | Sent, None, None]:
        """Yield the minibatches; closing the generator ends all threads and closes all handles."""
        meter = self.meter
        retries = self.read.retries

        def close() -> None:
            for each in retries:
                each.close()

        produced = self._produce()
        ahead: Generator[Yielded | Sent, None, None] | Prefetch[Yielded | Sent] = produced
        if self.X.settings.use_eager_fetch:
            ahead = Prefetch(produced, depth=1, ending=close, waited=lambda seconds: meter.add(producer_wait_s=seconds))
        with contextlib.ExitStack() as stack:
            stack.callback(close)
            stack.enter_context(contextlib.closing(ahead))
            yield from meter.counted(ahead, self._figures)

    def _figures(self, minibatch: Yielded | Sent) -> dict[str, int]:
        """Return what a minibatch adds to the counters."""
        return {"n_obs": minibatch.obs.shape[0], "n_obs_from_copy": self.count_copied(minibatch.obs)}

    def _produce(self) -> Generator[Yielded | Sent, None, None]:
        feed = self.X.feed
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._memory_errors())
            assemblers = [stack.enter_context(contextlib.closing(each.assembler())) for each in self._matrices]
            for rows in stack.enter_context(self.read.reading()):
                assemble = partial(self._assemble, rows, assemblers)
                with self.meter.timing("assemble_s"):
                    minibatch = assemble() if feed is None else feed.send(assemble)
                del rows, assemble  # they keep whole slabs in memory
                yield minibatch
                del minibatch

    @contextlib.contextmanager
    def _memory_errors(self) -> Iterator[None]:
        """Re-raise out-of-memory errors as :class:`ReadError`, with the original exception as cause."""
        try:
            yield
        except (MemoryError, RuntimeError) as cause:
            if isinstance(cause, CellfeedError) or not lacks_memory(cause):
                raise
            raise ReadError(
                f"out of memory while making a minibatch ({cause or type(cause).__name__}): less memory is available "
                f"than memory_budget={format_bytes(self.X.settings.memory_budget)} and minibatches of "
                f"batch_size={self.X.settings.batch_size} need; reduce memory_budget or batch_size"
            ) from cause

    def _assemble(self, matrices: Sequence[CellRows], assemblers: Sequence[TensorMaker]) -> Yielded:
        selection, settings, rows = self.X.selection, self.X.settings, matrices[0]
        X, *further = (assembler.tensor(own) for own, assembler in zip(matrices, assemblers, strict=True))
        check_result(settings.transform, X, len(rows))
        obs = torch.from_numpy(selection.obs_rows(rows.positions))
        has_joinids = self.with_joinids or settings.joinids
        joinids = torch.from_numpy(selection.joinid_column[rows.positions]) if has_joinids else None
        mask = torch.from_numpy(rows.is_real.copy()) if settings.rank_remainder == "pad" else None
        if selection.content or settings.joinids or self._masks:
            measured = self._masks.mask(rows.positions) if self._masks else None
            return extended(selection, rows.positions, X, obs, further, joinids, mask, measured)
        if joinids is not None:
            return OrderedMinibatch(X, obs, joinids)
        return Minibatch(X, obs) if mask is None else PaddedMinibatch(X, obs, mask)
