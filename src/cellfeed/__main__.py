"""``python -m cellfeed`` is the command ``cellfeed``."""

import sys

from cellfeed.command.cli import main

if __name__ == "__main__":
    sys.exit(main())
