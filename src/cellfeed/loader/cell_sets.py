"""Iterates over sets of cells and their controls; see :meth:`cellfeed.ExperimentDataset.group_batches`."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from cellfeed._checks import format_bytes
from cellfeed._digests import digest, digest_of_text
from cellfeed._joinids import IntArray
from cellfeed._tabular import Tabular
from cellfeed.errors import PlanError
from cellfeed.loader.content import TensorMaker
from cellfeed.loader.engine import Engine
from cellfeed.loader.epochs import EpochTracker
from cellfeed.loader.held_rows import bytes_of, check_fits, estimated_bytes, read_rows, reading_engine
from cellfeed.loader.pipeline import Assembly
from cellfeed.loader.prefetch import Prefetch
from cellfeed.loader.set_arguments import Groups, SetArguments, find_groups, refuse_content
from cellfeed.loader.set_epochs import SetEpochs, set_numbers
from cellfeed.loader.world import available_threads, refuse_fork
from cellfeed.plan import budget
from cellfeed.plan.set_summary import SetsPlan
from cellfeed.plan.sets import Sets
from cellfeed.plan.state import Fingerprint
from cellfeed.plan.windows import Window
from cellfeed.rows.assemble import DenseBuffers
from cellfeed.rows.cell_rows import CellRows
from cellfeed.rows.set_minibatch import SetMinibatch
from cellfeed.select.encoders import Encoder
from cellfeed.stats import Stats
from cellfeed.transforms import check_result


class CellSets(Tabular):
    """Minibatches of whole sets of cells with matched controls, that :meth:`ExperimentDataset.group_batches` makes.

    Each iterator yields an epoch, as :class:`SetMinibatch`: ``for minibatch in sets``. The cells are read when the
    first one begins, and stay in memory.

    Examples
    --------
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=0)
    >>> sets = dataset.group_batches(by=["phase"], set_size=16, control="G1")
    >>> len(sets), sum(int(minibatch.mask.sum()) for minibatch in sets)
    (2, 199)
    """

    def __init__(self, engine: Engine, arguments: SetArguments, groups: Groups) -> None:
        self._engine = engine.derive(selection=groups.selection)
        self._arguments = arguments
        self._groups = groups
        settings = engine.settings.replace(batch_size=arguments.sets_per_batch)
        epochs = SetEpochs(settings, groups.plan.n_sets, self._fingerprint)
        self._epochs = EpochTracker(settings, epochs)
        self._rows: CellRows | None = None
        self._buffers = DenseBuffers(keep=2 * budget.MINIBATCHES_HELD)
        self._pid = os.getpid()
        self._check_memory()

    @property
    def _fingerprint(self) -> Fingerprint:
        """Everything on which the order of an epoch depends."""
        arguments, plan = self._arguments, self._groups.plan
        of_dataset = self._engine.media.source.fingerprint
        names = (
            "measurement_name", "X_name", "obs_joinids", "var_joinids", "seed", "shuffle", "drop_last", "rank_remainder"
        )  # fmt: skip
        return {
            **{name: of_dataset[name] for name in names},
            "by": ", ".join(arguments.by),
            "control": str(arguments.control),
            "match": ", ".join(arguments.match),
            "set_size": arguments.set_size,
            "sets_per_batch": arguments.sets_per_batch,
            "remainder": arguments.remainder,
            "few_controls": arguments.few_controls,
            "labels": digest_of_text(f"{digest(plan.groups)}{digest(plan.strata)}{digest(plan.is_control)}"),
        }

    def _check_memory(self) -> None:
        """Raise an error if the cells, or the minibatches, are known to be larger than the memory for them."""
        if self._engine.selection.all_genes:
            check_fits(self._engine, estimated_bytes(self._engine))
        reading_engine(self._engine)
        memory_budget = self._engine.settings.memory_budget
        if self._minibatch_bytes > memory_budget // 2:
            raise PlanError(
                f"set_size={self._arguments.set_size} and sets_per_batch={self._arguments.sets_per_batch}: minibatches "
                f"take {format_bytes(self._minibatch_bytes)}, more than half of memory_budget="
                f"{format_bytes(memory_budget)}; give fewer of them, or the dataset fewer genes"
            )

    @property
    def _minibatch_bytes(self) -> int:
        """Bytes of the minibatches in memory at once."""
        arguments, engine = self._arguments, self._engine
        itemsize = 2 if engine.X_dtype in ("float16", "bfloat16") else np.dtype(engine.X_dtype).itemsize
        n_cells = 2 * arguments.sets_per_batch * arguments.set_size
        return n_cells * engine.selection.n_vars * itemsize * budget.MINIBATCHES_HELD

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None, "_buffers": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._buffers = DenseBuffers(keep=2 * budget.MINIBATCHES_HELD)
        self._pid = os.getpid()

    # ------------------------------------------------------------------ epochs and state

    @property
    def encoders(self) -> Mapping[str, Encoder]:
        """The encoders of the columns ``by``: ``groups[:, k]`` of a minibatch has the codes of column *k*.

        A column with an encoder in the dataset has that one, so that parts of a split have the same codes.
        """
        return MappingProxyType(self._groups.encoders)

    @property
    def epoch(self) -> int:
        """The epoch that the next iterator yields."""
        return self._epochs.next

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iterator yields; later iterators yield the epochs after it."""
        self._epochs.set(epoch)

    def __len__(self) -> int:
        """Return the number of minibatches of this rank in the next epoch."""
        return self._epochs.n_minibatches()

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the training loop; see :meth:`ExperimentDataset.state_dict`."""
        return self._epochs.save()

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Make the next iterator continue after the last minibatch that the training loop received.

        See :meth:`ExperimentDataset.load_state_dict`: the number of ranks may differ.
        """
        self._epochs.restore(state)

    # ------------------------------------------------------------------ reports

    def plan(self) -> SetsPlan:
        """Return the sets and the memory of an epoch, without reading X; ``print`` it."""
        plan, engine = self._groups.plan, self._engine
        return SetsPlan(
            n_obs=plan.n_cells,
            n_controls=int(plan.is_control.sum()),
            n_groups=len(np.unique(plan.group_of_set)),
            n_sets=plan.n_sets,
            n_minibatches=len(self),
            set_size=self._arguments.set_size,
            n_padded=plan.n_padded,
            n_left_out=plan.n_left_out,
            held_bytes=estimated_bytes(engine) if self._rows is None else bytes_of(self._rows),
            minibatch_bytes=self._minibatch_bytes,
            memory_budget=engine.settings.memory_budget,
        )

    def stats(self) -> Stats:
        """Return counters of what was read and made in this process."""
        return self._engine.meter.snapshot()

    def __repr__(self) -> str:
        plan, arguments = self._groups.plan, self._arguments
        return (
            f"{type(self).__name__}({plan.n_sets:,} sets of {arguments.set_size} cells x "
            f"{self._engine.selection.n_vars:,} genes, by={arguments.by!r}, control={arguments.control!r})"
        )

    def _table(self) -> Mapping[str, str]:
        return self.plan()._table()

    # ------------------------------------------------------------------ iteration

    def __iter__(self) -> Iterator[SetMinibatch]:
        refuse_fork(self._pid)
        this = self._epochs.begin()
        return self._epochs.counted(self._minibatches(this.epoch, self._epochs.work(this, 0)), this)

    def _minibatches(self, epoch: int, windows: Iterator[Window]) -> Generator[SetMinibatch, None, None]:
        """Yield the minibatches of some windows of sets; closing the generator ends all threads."""
        engine, begun = self._engine, time.perf_counter()
        if self._rows is None:
            self._rows = read_rows(engine)
        made = self._make(self._rows, self._groups.plan.sets(epoch), windows)
        ahead: Generator[SetMinibatch, None, None] | Prefetch[SetMinibatch] = made
        if engine.settings.use_eager_fetch:
            ahead = Prefetch(made, depth=1)
        with contextlib.closing(ahead):
            yield from engine.meter.counted(ahead, lambda sets: {"n_obs": int(sets.mask.sum())}, since=begun)

    def _make(self, rows: CellRows, sets: Sets, windows: Iterator[Window]) -> Generator[SetMinibatch, None, None]:
        engine = self._engine
        assembly = Assembly(engine.selection, engine.settings, available_threads(), self._buffers)
        numbers = set_numbers(windows)
        with contextlib.closing(assembly.assembler()) as assembler:
            while chosen := list(itertools.islice(numbers, self._arguments.sets_per_batch)):
                with engine.meter.timing("assemble_s"):
                    minibatch = self._assemble(assembler, rows, sets, chosen)
                yield minibatch
                del minibatch

    def _assemble(
        self, assembler: TensorMaker, rows: CellRows, sets: Sets, chosen: list[tuple[int, bool]]
    ) -> SetMinibatch:
        numbers, is_real = np.array([k for k, _ in chosen]), np.array([real for _, real in chosen])
        cells, controls, mask = sets.take(numbers)
        selection, settings, groups = self._engine.selection, self._engine.settings, self._groups

        def tensor(positions: IntArray) -> torch.Tensor:
            X = assembler.tensor(rows.take(positions.ravel()))
            check_result(settings.transform, X, positions.size)
            shaped: torch.Tensor = X.reshape(*positions.shape, *X.shape[1:])
            return shaped

        def joinids(positions: IntArray) -> torch.Tensor | None:
            return torch.from_numpy(selection.joinid_column[positions]) if settings.joinids else None

        return SetMinibatch(
            X=tensor(cells),
            control_X=tensor(controls),
            groups=torch.from_numpy(groups.codes[groups.plan.group_of_set[numbers]]),
            mask=torch.from_numpy(mask & is_real[:, None]),
            joinids=joinids(cells),
            control_joinids=joinids(controls),
        )


def make_sets(engine: Engine, *arguments: Any) -> CellSets:
    """Check the arguments of ``group_batches``, and return the sets."""
    checked = SetArguments.check(*arguments, batch_size=engine.settings.batch_size)
    refuse_content(engine)
    return CellSets(engine, checked, find_groups(engine, checked))
