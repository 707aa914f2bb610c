"""Progress bars on a terminal and in a notebook."""

from __future__ import annotations

import sys
from typing import Any


def progress_bar(progress: bool, **options: Any) -> Any:
    """Make a bar of tqdm: a widget in a notebook with ipywidgets, text in others and on a terminal.

    Parameters
    ----------
    progress
        Whether to show the bar. It is hidden if stderr is a file, such as the log of a job.
    options
        Arguments of ``tqdm``.
    """
    from tqdm.auto import tqdm

    hidden_in_files = False if in_notebook() else None  # a notebook's stderr is not a terminal, as a file's is not
    return tqdm(**options, disable=hidden_in_files if progress else True)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook; the test is that of ``tqdm.auto``."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config
