"""The errors of cellfeed.

::

    CellfeedError
    ├── SelectionError (ValueError)    what was asked for is not in the experiment
    ├── PlanError (ValueError)         sizes, budgets, weights or ranks that cannot be planned
    ├── EncodeError (ValueError)       a column or label that an encoder cannot turn into codes
    ├── StateError (ValueError)        a saved state that does not belong to this dataset
    ├── ReadError (RuntimeError)       reading failed, or the store holds what no loader can serve
    └── MissingDependencyError (ImportError)    an optional library that is not installed

Each is built from one string: PyTorch re-raises a worker's exception from its text alone.
"""

from __future__ import annotations


class CellfeedError(Exception):
    """Base of all errors that cellfeed raises on purpose.

    Examples
    --------
    >>> try:
    ...     cellfeed.ExperimentDataset("nowhere")
    ... except cellfeed.CellfeedError as error:
    ...     print(type(error).__name__)
    SelectionError
    """


class SelectionError(CellfeedError, ValueError):
    """The experiment, measurement, layer, column or query asked for cannot be served.

    Examples
    --------
    >>> cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), X_name="rav")
    Traceback (most recent call last):
    cellfeed.errors.SelectionError: X_name='rav' is not a layer of X; did you mean 'raw'? There are: 'raw'
    """


class PlanError(CellfeedError, ValueError):
    """Sizes, budgets, weights or ranks from which no epoch can be planned.

    Examples
    --------
    >>> cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), batch_size=0)
    Traceback (most recent call last):
    cellfeed.errors.PlanError: batch_size=0 must be an integer of at least 1, and less than 2**31
    """


class EncodeError(CellfeedError, ValueError):
    """A column or a label that an encoder cannot turn into codes.

    Examples
    --------
    >>> encoder = cellfeed.LabelEncoder("phase", classes=["G1", "S"])
    >>> encoder.fit(pd.DataFrame({"phase": ["G2M"]}))
    >>> encoder.transform(pd.DataFrame({"phase": ["G2M"]}))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    cellfeed.errors.EncodeError: encoder 'phase' was not fitted on 'G2M'; ...
    """


class StateError(CellfeedError, ValueError):
    """A saved state that does not belong to this dataset.

    Examples
    --------
    >>> one, other = (cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=k) for k in (1, 2))
    >>> other.load_state_dict(one.state_dict())  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    cellfeed.errors.StateError: the state was saved with seed=1, and this dataset has seed=2: ...
    """


class ReadError(CellfeedError, RuntimeError):
    """Reading the store failed, or it holds what cannot be served exactly.

    Examples
    --------
    >>> import shutil, tempfile
    >>> uri = cellfeed.datasets.pbmc700(tempfile.mkdtemp() + "/cells.soma")
    >>> dataset = cellfeed.ExperimentDataset(uri)
    >>> shutil.rmtree(uri.removeprefix("file://"))
    >>> next(iter(dataset))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    cellfeed.errors.ReadError: reading soma_joinid 0 to 699 of ...
    """


class RetryTimeout(Exception):  # noqa: N818 - what failed is told by others, as a ReadError
    """Nothing came from an object store until the deadline, or until it was not wanted any more."""


class MissingDependencyError(CellfeedError, ImportError):
    """An optional library that is needed and not installed.

    Examples
    --------
    >>> try:
    ...     import cellfeed.lightning
    ... except cellfeed.MissingDependencyError as error:
    ...     print(error)  # what to install
    """
