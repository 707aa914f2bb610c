"""The errors of cellfeed.

::

    CellfeedError
    ├── SelectionError (ValueError)    the experiment lacks what the arguments select
    ├── PlanError (ValueError)         sizes, budgets, weights or ranks without a valid plan
    ├── EncodeError (ValueError)       a column or label that an encoder cannot encode
    ├── StateError (ValueError)        a saved state that does not belong to this dataset
    ├── ReadError (RuntimeError)       reading failed, or the data are damaged
    └── MissingDependencyError (ImportError)    an optional library that is not installed

Each error takes one string, because PyTorch re-raises the exception of a worker from its text alone.
"""

from __future__ import annotations


class CellfeedError(Exception):
    """Base class of the errors of cellfeed.

    Examples
    --------
    >>> try:
    ...     cellfeed.ExperimentDataset("nowhere")
    ... except cellfeed.CellfeedError as error:
    ...     print(type(error).__name__)
    SelectionError
    """


class SelectionError(CellfeedError, ValueError):
    """An experiment, measurement, layer or column does not exist, or a query is invalid or selects nothing.

    Examples
    --------
    >>> cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), X_name="rav")
    Traceback (most recent call last):
    cellfeed.errors.SelectionError: X_name='rav' is not a layer of X; did you mean 'raw'? There are: 'raw'
    """


class PlanError(CellfeedError, ValueError):
    """A size, budget, weight or rank is invalid, or no epoch can be planned with it.

    Examples
    --------
    >>> cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), batch_size=0)
    Traceback (most recent call last):
    cellfeed.errors.PlanError: batch_size=0 must be an integer of at least 1, and less than 2**31
    """


class EncodeError(CellfeedError, ValueError):
    """An encoder cannot encode a column or a label.

    Examples
    --------
    >>> encoder = cellfeed.LabelEncoder("phase", classes=["G1", "S"])
    >>> encoder.fit(pd.DataFrame({"phase": ["G2M"]}))
    >>> encoder.transform(pd.DataFrame({"phase": ["G2M"]}))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    cellfeed.errors.EncodeError: encoder 'phase' was not fitted on 'G2M'; ...
    """


class StateError(CellfeedError, ValueError):
    """A saved state does not belong to this dataset.

    Examples
    --------
    >>> first, second = (cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=seed) for seed in (1, 2))
    >>> second.load_state_dict(first.state_dict())  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    cellfeed.errors.StateError: the state was saved with seed=1, and this dataset has seed=2: ...
    """


class ReadError(CellfeedError, RuntimeError):
    """Reading failed, or the store holds damaged or unsupported data.

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


class RetryTimeout(Exception):  # noqa: N818 - the caller raises a ReadError that says what failed
    """An object store did not answer before the deadline, or before the request was cancelled."""


class MissingDependencyError(CellfeedError, ImportError):
    """An optional library is needed and not installed.

    Examples
    --------
    >>> try:
    ...     import cellfeed.lightning
    ... except cellfeed.MissingDependencyError as error:
    ...     print(error)  # the command that installs it
    """
