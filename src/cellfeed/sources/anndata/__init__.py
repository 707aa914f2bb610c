"""Reads and writes AnnData in zarr; zarr, anndata and h5py are named in this folder only."""
