"""Pretrain a small transformer on tokens of cells: it predicts the bins of genes whose values are hidden.

python examples/train_masked_genes.py                       # the 700 cells of `cellfeed demo`
python examples/train_masked_genes.py URI --max-length 512  # a SOMA experiment, an AnnData in zarr, or an .h5ad file
"""

import argparse

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import cellfeed
from cellfeed.datasets import pbmc700
from cellfeed.tokens import BinnedTokens, Vocabulary

N_BINS = 16
HIDDEN = 0.3
"""Fraction of the genes of a cell whose bins are hidden."""


class MaskedGenes(nn.Module):
    """Embeds genes and bins, and predicts the bin of each gene."""

    def __init__(self, n_tokens, width=64):
        super().__init__()
        self.genes = nn.Embedding(n_tokens, width)
        self.bins = nn.Embedding(N_BINS + 1, width)  # bin 0 is that of special tokens, the last hides the value
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, N_BINS)

    def forward(self, tokens, is_hidden):
        bins = tokens.values.long().masked_fill(is_hidden, N_BINS)
        embedded = self.genes(tokens.input_ids) + self.bins(bins)
        return self.head(self.encoder(embedded, src_key_padding_mask=~tokens.attention_mask))


def main(uri, var_column, max_length, n_epochs):
    genes = cellfeed.ExperimentDataset(uri).gene_names(var_column)
    ids = {"<pad>": 0, "<cls>": 1} | {gene: token for token, gene in enumerate(genes, 2)}
    vocabulary = Vocabulary(ids, cls_token="<cls>", var_column=var_column)
    tokens = BinnedTokens(vocabulary, n_bins=N_BINS, max_length=max_length, choice="random")
    dataset = cellfeed.ExperimentDataset(uri, transform=tokens, batch_size=32, seed=0)
    torch.manual_seed(0)
    model = MaskedGenes(len(vocabulary))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(n_epochs):
        total, n_hidden = 0.0, 0
        for X, _ in dataset:
            is_gene = X.attention_mask & (X.input_ids != vocabulary.cls_id)
            is_hidden = is_gene & (torch.rand(is_gene.shape) < HIDDEN)
            loss = cross_entropy(model(X, is_hidden)[is_hidden], X.values[is_hidden].long(), reduction="sum")
            optimizer.zero_grad()
            (loss / is_hidden.sum()).backward()
            optimizer.step()
            total, n_hidden = total + loss.item(), n_hidden + int(is_hidden.sum())
        print(f"epoch {epoch}: loss {total / n_hidden:.4f} over {dataset.shape[0]} cells", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("uri", nargs="?", help="a SOMA experiment, an AnnData in zarr, or an .h5ad file")
    parser.add_argument("--var-column", help="the column of var that names genes")
    parser.add_argument("--max-length", type=int, default=128, help="most tokens of a cell")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    main(arguments.uri or pbmc700(), arguments.var_column, arguments.max_length, arguments.epochs)
