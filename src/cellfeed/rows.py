"""Cells in their order of leaving, each with its place in memory: minibatches are slices of this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed.block import Block
from cellfeed.joinids import IntArray

WIDTHS = {np.dtype(np.uint8): 1, np.dtype(np.uint16): 2}
"""How a row tells the type of its values; 0 is the type that the whole pool uses where these do not do."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Some cells. Rows of X do not move until they leave: their addresses are kept, and the blocks that hold them.

    Attributes
    ----------
    positions
        int64, shape (n,): the cells, in order.
    is_real
        bool, shape (n,): False where a cell repeats another to even out the ranks.
    genes, values
        int64, shape (n,): addresses of each row's first gene and value.
    sizes
        int64, shape (n,): stored values of each row.
    widths
        uint8, shape (n,): types of the values, as ``WIDTHS`` has them.
    held
        Blocks in which the rows lie. Addresses are good for as long as this object lives.
    """

    positions: IntArray
    is_real: npt.NDArray[np.bool_]
    genes: IntArray
    values: IntArray
    sizes: IntArray
    widths: npt.NDArray[np.uint8]
    held: tuple[Block, ...]

    @classmethod
    def of(cls, blocks: Sequence[Block], order: IntArray, positions: IntArray, is_real: npt.NDArray[np.bool_]) -> Rows:
        """Put the rows of some blocks, end to end, in an order.

        Parameters
        ----------
        order
            int64, shape (n,): indices into the rows of all blocks.
        positions, is_real
            Of the rows of all blocks, before they are put in order.
        """
        blocks = [block for block in blocks if block.n_rows]
        n_rows = [block.n_rows for block in blocks]
        addresses = [block.addresses() for block in blocks]
        genes, values = [genes for genes, _ in addresses], [values for _, values in addresses]
        sizes = [np.diff(block.indptr) for block in blocks]
        widths = np.array([WIDTHS.get(block.values.dtype, 0) for block in blocks], np.uint8)

        def ordered(parts: list[IntArray]) -> IntArray:
            return np.concatenate([*parts, np.empty(0, np.int64)])[order]

        return cls(
            positions=positions[order],
            is_real=is_real[order],
            genes=ordered(genes),
            values=ordered(values),
            sizes=ordered(sizes),
            widths=np.repeat(widths, n_rows)[order],
            held=tuple(blocks),
        )

    def __len__(self) -> int:
        return len(self.positions)

    def cut(self, low: int, high: int) -> Rows:
        """Return the rows from ``low`` to ``high``."""
        return replace(self, **{name: getattr(self, name)[low:high] for name in _COLUMNS})

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """Return the rows of several parts, end to end."""
        if len(parts) == 1:
            return parts[0]
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
        return replace(parts[0], **columns, held=tuple(block for part in parts for block in part.held))

    def type_of_values(self) -> np.dtype[Any]:
        """Return the type of those values that no width tells."""
        others = (block.values.dtype for block in self.held if block.values.dtype not in WIDTHS)
        return next(others, np.dtype(np.float32))

    def type_of_genes(self) -> np.dtype[Any]:
        """Return the type of genes; all blocks have the same."""
        return next((block.genes.dtype for block in self.held), np.dtype(np.uint16))


_COLUMNS = [field.name for field in fields(Rows) if field.name != "held"]
