"""Tokens for foundation models: transforms from the rows of a dataset straight to token tensors.

::

    vocabulary = cellfeed.tokens.Vocabulary.from_file("vocab.json", pad_token="<pad>", cls_token="<cls>")
    tokens = cellfeed.tokens.BinnedTokens(vocabulary, n_bins=51, max_length=1200)
    dataset = cellfeed.ExperimentDataset(uri, transform=tokens, batch_size=256, seed=0)
    for X, obs in dataset:
        model(X.input_ids, X.values, X.attention_mask)
"""

from cellfeed.tokens.batches import RaggedTokens, TokenBatch
from cellfeed.tokens.tokenizer import Tokenizer
from cellfeed.tokens.tokenizers import BinnedTokens, RankTokens, SampledTokens, TopKTokens
from cellfeed.tokens.vocabulary import Vocabulary

__all__ = [
    "BinnedTokens",
    "RaggedTokens",
    "RankTokens",
    "SampledTokens",
    "TokenBatch",
    "Tokenizer",
    "TopKTokens",
    "Vocabulary",
]
