"""Rows of X from the chunks of zarr and HDF5: the bytes, the kernels that unpack them, and the reader."""
