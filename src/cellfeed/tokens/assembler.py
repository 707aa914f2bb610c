"""Assembly of minibatches of tokens: several threads make the tokens of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cellfeed._joinids import IntArray
from cellfeed.plan.budget import MINIBATCHES_HELD
from cellfeed.rows.assemble import Assembler, DenseBuffers
from cellfeed.rows.cell_rows import CellRows
from cellfeed.tokens.batches import RaggedTokens, TokenBatch
from cellfeed.tokens.tokenizer import Tokenizer

TYPES = (np.int64, np.float32, np.bool_)
"""Types of tokens, values and the mask."""


class TokenAssembler(Assembler):
    """Makes tokens of rows.

    Parameters
    ----------
    tokenizer
        What to make, of the genes of the dataset.
    joinids
        The joinid of each cell, by its position in the selection.
    seed, epoch
        What random choices depend on, beside the joinid.
    n_threads
        As for :class:`~cellfeed.rows.assemble.Assembler`.
    """

    def __init__(self, tokenizer: Tokenizer, joinids: Any, seed: int, epoch: int, *, n_threads: int) -> None:
        super().__init__(tokenizer.n_vars, "float32", n_threads=n_threads, buffers=DenseBuffers(keep=0))
        self._tokenizer = tokenizer
        self._joinids = joinids
        self._seed, self._epoch = seed, epoch
        self._of_type = [DenseBuffers(keep=MINIBATCHES_HELD) for _ in TYPES]

    def tensor(self, rows: CellRows) -> TokenBatch | RaggedTokens:
        """Return the tokens of rows."""
        n_tokens = self._tokenizer._n_tokens(rows.sizes)
        if self._tokenizer.padding is not None:
            longest = self._tokenizer.padding == "longest"
            length = int(n_tokens.max(initial=0)) if longest else self._tokenizer.max_length
            n_tokens = np.full(len(rows), length)
        starts = np.append(0, np.cumsum(n_tokens))
        shape = (1, int(starts[-1])) if self._tokenizer.padding is None else (len(rows), length)
        parts = [buffers.borrow(shape, dtype) for buffers, dtype in zip(self._of_type, TYPES, strict=True)]
        lengths = self._write(rows, starts, *(part.reshape(-1) for part in parts))
        tensors = [torch.from_numpy(part) for part in parts]
        if self._tokenizer.padding is not None:
            return TokenBatch(*tensors)
        ids, values, mask = (tensor[0] for tensor in tensors)
        offsets = torch.from_numpy(np.append(0, np.cumsum(lengths)))
        if offsets[-1] < starts[-1]:  # zeros of the store have no token
            ids, values = ids[mask], values[mask]
        return RaggedTokens(ids, values, offsets)

    def _write(self, rows: CellRows, starts: IntArray, ids: Any, values: Any, mask: Any) -> IntArray:
        """Write the tokens of rows, and return their number in each row."""
        from cellfeed.tokens.token_kernels import TokenArrays

        tokenizer, vocabulary = self._tokenizer, self._tokenizer.vocabulary
        special = vocabulary.cls_id, vocabulary.eos_id, vocabulary.pad_id
        lengths = np.empty(len(rows), np.int64)
        keys = self._keys(rows)

        def write(part: CellRows, low: int, high: int) -> None:
            out = TokenArrays(
                ids,
                values,
                mask,
                starts[low : high + 1],
                lengths[low:high],
                tokenizer._gene_ids,
                tokenizer._scales,
                *special,
            )
            tokenizer._write(part.arrays, part.widths, keys[low:high], out)

        self._run(rows, write)
        return lengths

    def _keys(self, rows: CellRows) -> npt.NDArray[np.uint64]:
        """Return the key of random numbers for each row; none if nothing is random."""
        if not self._tokenizer._is_random:
            return np.empty(0, np.uint64)
        from cellfeed.tokens.random_kernels import random_keys

        keys = np.empty(len(rows), np.uint64)
        random_keys(self._seed, self._epoch, np.asarray(self._joinids[rows.positions]), keys)
        return keys
