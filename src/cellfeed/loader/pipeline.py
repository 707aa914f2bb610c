"""The minibatches of one epoch: windows are read, divided and made into tensors ahead of the training loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch

from cellfeed._checks import format_bytes
from cellfeed._joinids import IntArray, read_bounds
from cellfeed.errors import CellfeedError, ReadError
from cellfeed.loader.feed import load_windows, rebatch
from cellfeed.loader.prefetch import Prefetch
from cellfeed.plan import budget
from cellfeed.plan.planner import Resources
from cellfeed.plan.settings import Settings
from cellfeed.plan.windows import Window
from cellfeed.rows.assemble import Assembler, DenseBuffers
from cellfeed.rows.cell_rows import CellRows
from cellfeed.rows.half_precision import HALF_DTYPES, round_to_half
from cellfeed.rows.minibatch import ExtendedMinibatch, Minibatch, PaddedMinibatch, moved
from cellfeed.rows.row_allocator import Reader, RowAllocator, RowPointers
from cellfeed.rows.slabs import choose_slab_bytes
from cellfeed.select.selection import Selection
from cellfeed.sources.failures import lacks_memory
from cellfeed.sources.retry import Retries
from cellfeed.sources.verify import check_rows
from cellfeed.stats import Meter
from cellfeed.transforms import Transform, apply, check_result, split_scaling


class OrderedMinibatch(NamedTuple):
    """The class of the minibatches of an :func:`~cellfeed.inference_dataloader`.

    Attributes
    ----------
    X
        As in :class:`~cellfeed.Minibatch`.
    obs
        int64, shape (B, n_columns): the columns of the dataset.
    joinids
        int64, shape (B,): the ``soma_joinid`` of each row.

    Examples
    --------
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), batch_size=4, seed=0)
    >>> next(iter(cellfeed.inference_dataloader(dataset))).joinids
    tensor([0, 1, 2, 3])
    """

    X: torch.Tensor
    obs: torch.Tensor
    joinids: torch.Tensor

    def to(self, device: Any, *, non_blocking: bool | None = None) -> OrderedMinibatch:
        """Return the minibatch on a device; see :meth:`cellfeed.Minibatch.to`."""
        return OrderedMinibatch(*moved(self, device, non_blocking))

    def as_dict(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name."""
        return self._asdict()


Yielded = Minibatch | PaddedMinibatch | OrderedMinibatch | ExtendedMinibatch


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

    def minibatches(self, windows: Iterable[Window]) -> Generator[Yielded, None, None]:
        """Yield the minibatches of some windows; closing the generator ends all threads and closes all handles."""
        meter = self.meter
        retries = self.selection.source.retries(n_threads=self.resources.n_requests, meter=meter)
        produced = self._produce(windows, retries)
        ahead: Generator[Yielded, None, None] | Prefetch[Yielded] = produced
        if self.settings.use_eager_fetch:
            ahead = Prefetch(
                produced, depth=1, ending=retries.close, waited=lambda seconds: meter.add(producer_wait_s=seconds)
            )
        first = True
        with contextlib.closing(ahead), contextlib.closing(retries):
            while True:
                started = time.perf_counter()
                minibatch = next(ahead, None)
                waited = time.perf_counter() - started
                meter.add(consumer_wait_s=waited, elapsed_s=waited, first_wait_s=waited if first else 0.0)
                if minibatch is None:
                    return
                first = False
                n_obs = len(minibatch.obs)
                meter.add(n_minibatches=1, n_obs=n_obs, n_obs_from_copy=n_obs if self.reads_copy else 0)
                yielded = time.perf_counter()
                yield minibatch
                del minibatch  # a reference here would prevent the reuse of its memory
                meter.add(elapsed_s=time.perf_counter() - yielded)

    def _produce(self, windows: Iterable[Window], retries: Retries) -> Generator[Yielded, None, None]:
        selection, settings = self.selection, self.settings
        dtype = selection.geometry.dtype if settings.X_dtype == "stored" else settings.X_dtype
        # The kernels that copy values to a minibatch can scale them, but in float32 only.
        scaling, transform = split_scaling(settings.transform) if dtype == "float32" else (None, settings.transform)
        transforms = [step for step in (selection.column_transform, transform) if step is not None]
        assembler = Assembler(
            selection.n_vars, dtype, n_threads=self.resources.n_threads, buffers=self.buffers, scaling=scaling
        )
        with (
            contextlib.closing(self.batches(windows, retries)) as batches,
            contextlib.closing(assembler),
            self._copying() as copy,
            self._memory_errors(),
        ):
            for rows in batches:
                copy(rows)
                with self.meter.timing("assemble_s"):
                    minibatch = self._assemble(rows, assembler, transforms)
                del rows  # it keeps whole slabs in memory
                yield minibatch
                del minibatch

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

    def _assemble(self, rows: CellRows, assembler: Assembler, transforms: Iterable[Transform]) -> Yielded:
        selection, settings = self.selection, self.settings
        X = assembler.sparse_X(rows) if settings.return_sparse_X else assembler.dense_X(rows)
        for transform in transforms:
            X = apply(transform, X)
        check_result(settings.transform, X, len(rows))
        obs = torch.from_numpy(selection.obs_rows(rows.positions))
        has_joinids = self.with_joinids or settings.joinids
        joinids = torch.from_numpy(selection.joinid_column[rows.positions]) if has_joinids else None
        mask = torch.from_numpy(rows.is_real.copy()) if settings.rank_remainder == "pad" else None
        if selection.content or settings.joinids:
            return self._extend(X, obs, joinids, mask, rows.positions)
        if joinids is not None:
            return OrderedMinibatch(X, obs, joinids)
        return Minibatch(X, obs) if mask is None else PaddedMinibatch(X, obs, mask)

    def _extend(
        self, X: Any, obs: torch.Tensor, joinids: torch.Tensor | None, mask: torch.Tensor | None, positions: IntArray
    ) -> ExtendedMinibatch:
        values = self.selection.obs_values
        return ExtendedMinibatch(
            X=X,
            obs=obs,
            layers={},
            obsm={},
            obs_values=None if values is None else torch.from_numpy(values[positions]),
            measurements={},
            joinids=joinids,
            mask=mask,
        )
