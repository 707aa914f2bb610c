"""Tiles of TileDB arrays, decoded without TileDB: the layout of files, and kernels that unpack them."""
