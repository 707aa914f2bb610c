"""The minibatches of one epoch: windows are read, divided and made into tensors ahead of the training loop."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol

import torch

from cellfeed._checks import format_bytes
from cellfeed._joinids import IntArray, read_bounds
from cellfeed.errors import CellfeedError, ReadError
from cellfeed.loader.content import MatrixAssembler, TensorMaker, extended
from cellfeed.loader.device import DeviceFeed, Sent
from cellfeed.loader.feed import load_windows, rebatch
from cellfeed.loader.measured_masks import MeasuredMasks
from cellfeed.loader.prefetch import Prefetch
from cellfeed.plan import budget
from cellfeed.plan.planner import Resources
from cellfeed.plan.settings import Settings
from cellfeed.plan.windows import Window
from cellfeed.rows.assemble import Assembler, DenseBuffers
from cellfeed.rows.cell_rows import CellRows
from cellfeed.rows.half_precision import HALF_DTYPES, round_to_half
from cellfeed.rows.minibatch import AnyMinibatch, Minibatch, OrderedMinibatch, PaddedMinibatch
from cellfeed.rows.row_allocator import Reader, RowAllocator, RowPointers
from cellfeed.rows.slabs import choose_slab_bytes
from cellfeed.select.selection import Selection
from cellfeed.sources.failures import lacks_memory
from cellfeed.sources.retry import Retries
from cellfeed.sources.verify import check_rows
from cellfeed.stats import Meter
from cellfeed.tokens import Tokenizer
from cellfeed.tokens.assembler import TokenAssembler
from cellfeed.transforms import check_result, split_scaling

Yielded = AnyMinibatch | OrderedMinibatch


class Appender(Protocol):
    """Appends the rows of an epoch to a local copy."""

    def append(self, rows: CellRows) -> None:
        """Append the rows of cells that the copy lacks."""

    def finish(self) -> None:
        """Complete the part that was written, at the end of the epoch."""

    def abandon(self) -> None:
        """Close the part that was written; a later epoch continues it."""


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Makes the minibatches of one epoch of one process.

    Attributes
    ----------
    selection, settings, resources
        What to read, how to batch it, and with how many threads and bytes.
    buffers
        Memory for dense minibatches.
    meter
        The counters.
    with_joinids
        Whether minibatches are of class :class:`OrderedMinibatch`.
    monitored
        Wraps the reader, in a worker process.
    appender
        Appends the rows to a local copy.
    reads_copy
        Whether the cells are read in the local copy.
    feed
        Makes the minibatches on a device.
    epoch
        Number of the epoch, for random tokens.
    """

    selection: Selection
    settings: Settings
    resources: Resources
    buffers: DenseBuffers
    meter: Meter
    with_joinids: bool = False
    monitored: Callable[[Reader], Reader] | None = None
    appender: Appender | None = None
    reads_copy: bool = False
    feed: DeviceFeed | None = None
    epoch: int = 0

    @cached_property
    def _pipelines(self) -> list[Pipeline]:
        """A pipeline per matrix of minibatches, X first: further ones read the same windows from other arrays."""
        further = zip(self.selection.further, self.resources.further, strict=True)
        return [
            self,
            *(
                Pipeline(
                    replace(selection, nnz=None),  # of X, with which rows are compared
                    self.settings.replace(transform=None),
                    resources,
                    DenseBuffers(keep=budget.MINIBATCHES_HELD),
                    self.meter,
                    feed=self.feed,
                )
                for selection, resources in further
            ),
        ]

    @cached_property
    def _masks(self) -> MeasuredMasks | None:
        """Makes the masks of measured genes."""
        measured, transforms = self.selection.measured, (self.selection.column_transform, self.settings.transform)
        return None if measured is None else MeasuredMasks(measured, transforms)

    def retries(self) -> list[Retries]:
        """Return what makes the requests of each matrix; the caller closes them after the epoch."""
        return [
            each.selection.source.retries(n_threads=each.resources.n_requests, meter=self.meter)
            for each in self._pipelines
        ]

    def minibatches(self, windows: Iterable[Window]) -> Generator[Yielded | Sent, None, None]:
        """Yield the minibatches of some windows; closing the generator ends all threads and closes all handles."""
        meter = self.meter
        retries = self.retries()

        def close() -> None:
            for each in retries:
                each.close()

        produced = self._produce(windows, retries)
        ahead: Generator[Yielded | Sent, None, None] | Prefetch[Yielded | Sent] = produced
        if self.settings.use_eager_fetch:
            ahead = Prefetch(produced, depth=1, ending=close, waited=lambda seconds: meter.add(producer_wait_s=seconds))
        with contextlib.ExitStack() as stack:
            stack.callback(close)
            stack.enter_context(contextlib.closing(ahead))
            yield from meter.counted(ahead, self._figures)

    def _figures(self, minibatch: Yielded | Sent) -> dict[str, int]:
        """Return what a minibatch adds to the counters."""
        n_obs = minibatch.obs.shape[0]
        return {"n_obs": n_obs, "n_obs_from_copy": n_obs if self.reads_copy else 0}

    def _produce(self, windows: Iterable[Window], retries: Sequence[Retries]) -> Generator[Yielded | Sent, None, None]:
        with contextlib.ExitStack() as stack:
            batches = stack.enter_context(self.reading(windows, retries))
            assemblers = [stack.enter_context(contextlib.closing(each.assembler())) for each in self._pipelines]
            copy = stack.enter_context(self._copying())
            stack.enter_context(self._memory_errors())
            for rows in batches:
                copy(rows[0])
                assemble = partial(self._assemble, rows, assemblers)
                with self.meter.timing("assemble_s"):
                    minibatch = assemble() if self.feed is None else self.feed.send(assemble)
                del rows, assemble  # they keep whole slabs in memory
                yield minibatch
                del minibatch

    @contextlib.contextmanager
    def reading(self, windows: Iterable[Window], retries: Sequence[Retries]) -> Iterator[Iterator[list[CellRows]]]:
        """Yield an iterator over minibatches: their rows of X, and of each further matrix, of the same cells.

        A layer that is X itself has the rows of X. The iterator holds no reference to what it has returned.
        """
        read = [each is self or each.selection.source is not self.selection.source for each in self._pipelines]
        with contextlib.ExitStack() as stack:
            batches = [
                stack.enter_context(contextlib.closing(each.batches(own, requests)))
                for each, own, requests in zip(
                    itertools.compress(self._pipelines, read),
                    itertools.tee(windows, sum(read)),
                    itertools.compress(retries, read),
                    strict=True,
                )
            ]

            def next_rows() -> list[Any]:
                X, *further = (next(each, None) for each in batches)
                others = iter(further)
                return [X, *(next(others) if is_read else X for is_read in read[1:])]

            yield iter(next_rows, [None] * len(read))

    def rows(self, windows: Iterable[Window]) -> Generator[list[CellRows], None, None]:
        """Yield the rows of minibatches as :meth:`reading` does, with requests of their own."""
        with contextlib.ExitStack() as stack:
            retries = [stack.enter_context(contextlib.closing(each)) for each in self.retries()]
            yield from stack.enter_context(self.reading(windows, retries))

    def batches(self, windows: Iterable[Window], retries: Retries) -> Generator[CellRows, None, None]:
        """Yield the cells of each minibatch with their rows; closing the generator closes the reader."""
        selection, settings, resources = self.selection, self.settings, self.resources
        reader, rows_per_read, n_threads = selection.source.open_reader(
            selection, resources, verify=settings.verify, meter=self.meter, retries=retries
        )
        if self.monitored:
            reader = self.monitored(reader)
        loaded = load_windows(
            windows,
            selection.joinids,
            partial(self._read_rows, reader),
            read_bounds=partial(
                read_bounds,
                extent=selection.geometry.row_extent,
                max_row_blocks=budget.MAX_ROW_BLOCKS_PER_READ,
                max_rows=rows_per_read,
            ),
            n_threads=n_threads,
            ahead=resources.windows_ahead,
            slab_bytes=choose_slab_bytes(resources.pool_bytes, resources.n_windows),
            meter=self.meter,
        )
        batches = rebatch(loaded, settings.batch_size)
        with contextlib.closing(reader), contextlib.closing(loaded), contextlib.closing(batches):
            yield from batches

    @contextlib.contextmanager
    def _copying(self) -> Iterator[Callable[[CellRows], None]]:
        """Yield a function that appends rows to the local copy, if this epoch writes one."""
        if self.appender is None:
            yield lambda rows: None
            return
        try:
            yield self.appender.append
        except BaseException:
            self.appender.abandon()
            raise
        self.appender.finish()

    def _read_rows(
        self, reader: Reader, positions: IntArray, joinids: IntArray, allocator: RowAllocator
    ) -> RowPointers:
        """Read rows, verify them, and round their values if X has a 16-bit float type."""
        half = HALF_DTYPES.get(self.settings.X_dtype)
        rows = reader.read(joinids, allocator if half is None else allocator.with_value_bytes(2))
        if self.settings.verify:
            check_rows(rows, positions, joinids, self.selection)
        return rows if half is None else round_to_half(rows, joinids, half)

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
                f"than memory_budget={format_bytes(self.settings.memory_budget)} and minibatches of "
                f"batch_size={self.settings.batch_size} need; reduce memory_budget or batch_size"
            ) from cause

    def assembler(self) -> TensorMaker:
        """Return what makes tensors of rows; the caller closes it."""
        selection, settings = self.selection, self.settings
        if isinstance(settings.transform, Tokenizer):
            key = selection.joinid_column, settings.seed, self.epoch
            return TokenAssembler(settings.transform, *key, n_threads=self.resources.n_threads)
        dtype = settings.type_of_X(selection.geometry.dtype)
        # The kernels that copy values to a minibatch can scale them, but in float32 only.
        scaling, transform = split_scaling(settings.transform) if dtype == "float32" else (None, settings.transform)
        make = partial(Assembler, buffers=self.buffers) if self.feed is None else self.feed.assembler
        assembler = make(selection.n_vars, dtype, n_threads=self.resources.n_threads, scaling=scaling)
        steps = tuple(step for step in (selection.column_transform, transform) if step is not None)
        return MatrixAssembler(assembler, steps, sparse=settings.return_sparse_X)

    def _assemble(self, matrices: Sequence[CellRows], assemblers: Sequence[TensorMaker]) -> Yielded:
        selection, settings, rows = self.selection, self.settings, matrices[0]
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
