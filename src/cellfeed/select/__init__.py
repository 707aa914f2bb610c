"""From columns of obs and var to a frozen Selection: cells, genes, codes, and the encoders and filters that make it."""
