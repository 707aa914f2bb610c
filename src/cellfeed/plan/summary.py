"""What a dataset is going to do, before it reads X."""

from __future__ import annotations

from dataclasses import dataclass, fields

from cellfeed._checks import format_bytes
from cellfeed._tabular import Tabular


@dataclass(frozen=True)
class Plan(Tabular):
    """The answer of :meth:`cellfeed.ExperimentDataset.plan`; it prints as a table, and a notebook shows it as one.

    Attributes
    ----------
    n_obs, n_vars
        Selected cells and genes.
    chunk_rows
        Cells of a chunk, on average: consecutive cells that are read together.
    n_chunks
        Chunks in an epoch.
    chunks_per_block
        Chunks of which a minibatch is drawn: those that are shuffled together.
    chunks_held
        Chunks that are held meanwhile; fewer where each leaves in slices.
    n_minibatches
        Minibatches that this rank yields in an epoch.
    batch_size
        Cells of a minibatch.
    pool_bytes
        Bytes of the chunks that are held at most, and of those that are read ahead.
    peak_memory_bytes
        Bytes held at most, in the pool, by reads and by minibatches, beyond what the process holds when idle (an
        estimate from metadata).
    decode_amplification
        Values that are decoded for each one wanted (an estimate from the array's tiles).
    effective_batch_size
        The size of the simple random sample whose label proportions would vary as much as those of minibatches: at most
        ``batch_size``, which a full shuffle has.
    label
        The column of obs whose labels are meant; ``None`` stands for the worst labels that there can be: each
        chunk has one of its own. For K chunks and a batch size of B they give about 1 / (1/B + 1/K).
    shuffle
        Whether cells are shuffled at all.

    Examples
    --------
    >>> dataset = cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), batch_size=64, seed=0)
    >>> plan = dataset.plan()
    >>> plan.n_obs, plan.n_minibatches, plan.effective_batch_size
    (700, 11, 64.0)
    """

    n_obs: int
    n_vars: int
    chunk_rows: float
    n_chunks: int
    chunks_per_block: int
    chunks_held: float
    n_minibatches: int
    batch_size: int
    pool_bytes: int
    peak_memory_bytes: int
    decode_amplification: float
    effective_batch_size: float
    label: str | None = None
    shuffle: bool = True

    @property
    def mixing(self) -> float:
        """Effective over nominal batch size."""
        return self.effective_batch_size / self.batch_size

    def _table(self) -> dict[str, str]:
        size = f"{self.effective_batch_size:,.4g} of {self.batch_size:,} cells"
        labels = "worst case: each chunk has a label of its own" if self.label is None else f"labels in {self.label}"
        return {
            "cells x genes": f"{self.n_obs:,} x {self.n_vars:,}",
            "minibatches": f"{self.n_minibatches:,} per epoch, of {self.batch_size:,} cells",
            "chunks": f"{self.n_chunks:,} per epoch, of {self.chunk_rows:,.4g} neighbouring cells on average",
            "shuffled together": self._shuffled_together(),
            "effective batch size": f"{size} ({labels})",
            "peak memory": f"{format_bytes(self.peak_memory_bytes)} at most, for reading and shuffling",
            "decode amplification": f"{self.decode_amplification:.3g} (values decoded per value used)",
        }

    def _shuffled_together(self) -> str:
        if not self.shuffle:
            return "nothing: cells come in the order of their joinids"
        if self.chunks_per_block >= self.n_chunks:
            return "all cells"
        held = f"{self.chunks_held:,.4g} chunk{'' if self.chunks_held == 1 else 's'}"
        return f"cells of {self.chunks_per_block:,} chunks at a time, while memory holds {held}"

    def as_dict(self) -> dict[str, int | float | str | None]:
        """Return the figures by name, for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
