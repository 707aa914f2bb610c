"""Experiments of TileDB-SOMA: everything that knows TileDB."""
