"""A short soak: the half-hour one is `python -m benchmarks.soak`."""

from tests.support.processes import apart

from benchmarks import soak


def short_soak():
    return list(soak.epochs(10, n_obs=1024, least=12))


def test_epochs_under_faults_are_exact_and_hold_no_more_from_one_to_the_next():
    records = apart(short_soak)
    assert records[-1]["retries"] > 0
    assert all(soak.flat(records).values()), soak.growth(records)
