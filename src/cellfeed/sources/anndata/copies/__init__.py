"""Copies on a local disk: the writer of one AnnData, and the copy that several processes write."""
