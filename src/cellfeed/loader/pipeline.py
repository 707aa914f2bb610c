"""One pass: windows are read, cut and made into tensors ahead of the training loop, and all of it is metered."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial

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
from cellfeed.rows.cell_rows import CellRows
from cellfeed.rows.minibatch import (
    HALF_DTYPES,
    Assembler,
    DenseBuffers,
    Minibatch,
    PaddedMinibatch,
    round_to_half,
)
from cellfeed.rows.row_allocator import Reader, RowAllocator, RowPointers
from cellfeed.rows.slabs import choose_slab_bytes
from cellfeed.select.selection import Selection
from cellfeed.sources.failures import lacks_memory
from cellfeed.sources.retry import Retries
from cellfeed.sources.verify import check_rows
from cellfeed.stats import Meter
from cellfeed.transforms import Transform, apply, check_result, split_scaling

Yielded = Minibatch | PaddedMinibatch


def stream(
    selection: Selection,
    settings: Settings,
    windows: Iterable[Window],
    resources: Resources,
    *,
    buffers: DenseBuffers,
    meter: Meter,
    watched: Callable[[Reader], Reader] = lambda reader: reader,
) -> Generator[Yielded, None, None]:
    """Yield the minibatches of some windows; closing it ends all threads and handles.

    ``watched`` may wrap the reader.
    """
    retries = selection.source.retries(n_threads=resources.n_requests, meter=meter)
    source = _produce(
        selection, settings, windows, resources, buffers=buffers, meter=meter, retries=retries, watched=watched
    )
    ahead: Generator[Yielded, None, None] | Prefetch[Yielded] = source
    if settings.use_eager_fetch:
        ahead = Prefetch(
            source, depth=1, ending=retries.close, waited=lambda seconds: meter.add(producer_wait_s=seconds)
        )
    first = True
    with contextlib.closing(ahead), contextlib.closing(retries):
        while True:
            asked = time.perf_counter()
            minibatch = next(ahead, None)
            waited = time.perf_counter() - asked
            meter.add(consumer_wait_s=waited, elapsed_s=waited, first_wait_s=waited if first else 0.0)
            if minibatch is None:
                return
            first = False
            meter.add(n_minibatches=1, n_obs=_n_cells(minibatch))
            given = time.perf_counter()
            yield minibatch
            del minibatch  # held here, its memory could not be used again for the next one
            meter.add(elapsed_s=time.perf_counter() - given)


def _n_cells(minibatch: Yielded) -> int:
    return minibatch.obs.shape[0] if minibatch.obs.ndim == 2 else 1


@contextlib.contextmanager
def _told(settings: Settings) -> Iterator[None]:
    """Tell of memory that is not there, and of what else goes wrong, as errors of ours; causes are kept."""
    try:
        yield
    except (MemoryError, RuntimeError) as cause:
        if isinstance(cause, CellfeedError) or not lacks_memory(cause):
            raise
        raise ReadError(
            f"there is no memory for the next minibatch ({cause or type(cause).__name__}): this machine or a limit has "
            f"less than memory_budget={format_bytes(settings.memory_budget)} and minibatches of "
            f"batch_size={settings.batch_size} take; give less of either"
        ) from cause


def _produce(
    selection: Selection,
    settings: Settings,
    windows: Iterable[Window],
    resources: Resources,
    *,
    buffers: DenseBuffers,
    meter: Meter,
    retries: Retries,
    watched: Callable[[Reader], Reader],
) -> Generator[Yielded, None, None]:
    geometry = selection.geometry
    reader, rows_per_read, n_threads = selection.source.open_reader(
        selection, resources, verify=settings.verify, meter=meter, retries=retries
    )
    reader = watched(reader)
    loaded = load_windows(
        windows,
        selection.joinids,
        partial(_read_rows, reader, selection, settings),
        read_bounds=partial(
            read_bounds,
            extent=geometry.row_extent,
            max_row_blocks=budget.MAX_ROW_BLOCKS_PER_READ,
            max_rows=rows_per_read,
        ),
        n_threads=n_threads,
        ahead=resources.windows_ahead,
        slab_bytes=choose_slab_bytes(resources.pool_bytes, resources.n_windows),
        meter=meter,
    )
    cuts = rebatch(loaded, settings.batch_size)
    dtype = geometry.dtype if settings.X_dtype == "stored" else settings.X_dtype
    scaling, transform = split_scaling(settings.transform) if dtype == "float32" else (None, settings.transform)
    transforms = [step for step in (selection.column_transform, transform) if step is not None]
    assembler = Assembler(selection.n_vars, dtype, n_threads=resources.n_threads, buffers=buffers, scaling=scaling)
    with contextlib.ExitStack() as stack:
        for open_ in (reader, assembler, loaded, cuts):
            stack.enter_context(contextlib.closing(open_))
        stack.enter_context(_told(settings))
        for rows in cuts:
            with meter.timing("assemble_s"):
                minibatch = _assemble(rows, selection, settings, assembler, transforms)
            del rows  # it holds whole blocks
            yield minibatch
            del minibatch


def _read_rows(
    reader: Reader,
    selection: Selection,
    settings: Settings,
    positions: IntArray,
    joinids: IntArray,
    space: RowAllocator,
) -> RowPointers:
    """Read rows, verify them, and round their values if X has a 16-bit float type."""
    half = HALF_DTYPES.get(settings.X_dtype)
    rows = reader.read(joinids, space if half is None else space.at_least(2))
    if settings.verify:
        check_rows(rows, positions, joinids, selection)
    return rows if half is None else round_to_half(rows, joinids, half)


def _assemble(
    rows: CellRows, selection: Selection, settings: Settings, assembler: Assembler, transforms: Sequence[Transform]
) -> Yielded:
    sparse = settings.return_sparse_X
    X = assembler.sparse_X(rows) if sparse else assembler.dense_X(rows)
    for transform in transforms:
        X = apply(transform, X)
    check_result(settings.transform, X, len(rows))
    obs = torch.from_numpy(selection.obs_rows(rows.positions))
    if settings.batch_size == 1:
        X, obs = X if sparse else X[0], obs[0]
    if settings.rank_remainder == "pad":
        return PaddedMinibatch(X, obs, torch.from_numpy(rows.is_real.copy()))
    return Minibatch(X, obs)
