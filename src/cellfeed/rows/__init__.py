"""Rows of X in memory, from decoded values to tensors: kernels, row buffers and minibatches."""
