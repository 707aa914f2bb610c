"""The tokens of a minibatch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class TokenBatch(NamedTuple):
    """Tokens of the cells of a minibatch, as one row of equal length per cell.

    Attributes
    ----------
    input_ids
        int64, shape (B, L): the tokens of each cell, then the padding token.
    values
        float32, shape (B, L): what belongs to each token, such as its bin; 0 for special tokens and padding.
    attention_mask
        bool, shape (B, L): False for padding.
    """

    input_ids: torch.Tensor
    values: torch.Tensor
    attention_mask: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of cells, and of tokens per cell."""
        return tuple(self.input_ids.shape)

    def to(self, device: Any, *, non_blocking: bool = False) -> TokenBatch:
        """Return the tokens on a device; see :meth:`torch.Tensor.to`."""
        return TokenBatch(*(part.to(device, non_blocking=non_blocking) for part in self))


class RaggedTokens(NamedTuple):
    """Tokens of the cells of a minibatch, one cell after another without padding.

    Attributes
    ----------
    input_ids
        int64, shape (n_tokens,).
    values
        float32, shape (n_tokens,): what belongs to each token.
    offsets
        int64, shape (B + 1,): where the tokens of each cell begin, and those of the last one end.
    """

    input_ids: torch.Tensor
    values: torch.Tensor
    offsets: torch.Tensor

    @property
    def shape(self) -> tuple[int]:
        """Number of cells."""
        return (len(self.offsets) - 1,)

    def to(self, device: Any, *, non_blocking: bool = False) -> RaggedTokens:
        """Return the tokens on a device; see :meth:`torch.Tensor.to`."""
        return RaggedTokens(*(part.to(device, non_blocking=non_blocking) for part in self))

    def nested(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``input_ids`` and ``values`` as jagged tensors of ``torch.nested``, which share their memory.

        Examples
        --------
        >>> import torch
        >>> tokens = RaggedTokens(torch.tensor([5, 6, 7]), torch.ones(3), torch.tensor([0, 1, 3]))
        >>> [row.tolist() for row in tokens.nested()[0].unbind()]
        [[5], [6, 7]]
        """
        jagged: Any = torch.nested.nested_tensor_from_jagged
        return jagged(self.input_ids, self.offsets), jagged(self.values, self.offsets)
