"""What a dataset is going to do, before it reads X."""

from __future__ import annotations

from dataclasses import dataclass, fields

from cellfeed.memory import format_bytes


@dataclass(frozen=True)
class Plan:
    """The answer of :meth:`cellfeed.ExperimentDataset.plan`; it prints as a table.

    Attributes
    ----------
    n_obs, n_vars
        Selected cells and genes.
    chunk_rows
        Cells of a chunk, on average: consecutive cells that are read together.
    n_chunks
        Chunks in an epoch.
    chunks_per_block
        Chunks that are held and shuffled together.
    n_minibatches
        Minibatches that this rank yields in an epoch.
    batch_size
        Cells of a minibatch.
    peak_memory_bytes
        Bytes held at most, beyond what the process holds when idle (an estimate from metadata).
    decode_amplification
        Values that are decoded for each one wanted (an estimate from the array's tiles).
    effective_batch_size
        The size of the simple random sample that varies as much as a minibatch does, at worst: every
        chunk of a kind of its own. For K chunks a block and batch size B it is 1 / (1/B + 1/K).
    """

    n_obs: int
    n_vars: int
    chunk_rows: float
    n_chunks: int
    chunks_per_block: int
    n_minibatches: int
    batch_size: int
    peak_memory_bytes: int
    decode_amplification: float
    effective_batch_size: float

    def __str__(self) -> str:
        shown = {
            "cells x genes": f"{self.n_obs:,} x {self.n_vars:,}",
            "minibatches": f"{self.n_minibatches:,} of {self.batch_size:,} cells",
            "chunks": f"{self.n_chunks:,} of {self.chunk_rows:,.4g} cells",
            "shuffled together": f"{self.chunks_per_block:,} chunks",
            "effective batch size": f"{self.effective_batch_size:,.4g} at worst, of {self.batch_size:,}",
            "peak memory": format_bytes(self.peak_memory_bytes),
            "decode amplification": f"{self.decode_amplification:.3g}",
        }
        width = max(map(len, shown))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in shown.items())

    def as_dict(self) -> dict[str, int | float]:
        """Return the figures by name, for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def worst_effective_batch_size(*, batch_size: int, chunks_per_block: int, n_chunks: int, shuffle: bool) -> float:
    """Effective batch size where each chunk is of one kind that no other chunk shares.

    Examples
    --------
    >>> round(worst_effective_batch_size(batch_size=1024, chunks_per_block=2000, n_chunks=10**6, shuffle=True))
    677
    """
    if not shuffle:
        return 1.0
    if chunks_per_block >= n_chunks:  # all cells shuffled together
        return float(batch_size)
    return 1 / (1 / batch_size + 1 / chunks_per_block)
