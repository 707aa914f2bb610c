"""``python -m cellfeed`` is the command ``cellfeed``."""

import sys

from cellfeed.cli import main

sys.exit(main())
