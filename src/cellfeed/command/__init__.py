"""The ``cellfeed`` command, and the functions that it runs."""
