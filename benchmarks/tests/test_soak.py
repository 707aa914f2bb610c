"""A short soak: the half-hour one is `python -m benchmarks.soak`."""

from benchmarks import soak


def test_epochs_under_faults_are_exact_and_hold_no_more_from_one_to_the_next():
    records = list(soak.epochs(10, n_obs=1024, least=12))
    assert records[-1]["retries"] > 0
    growth, is_flat = soak.growth(records), soak.flat(records)
    early, late = growth["threads"]
    assert late <= early + 2, growth  # a thread may be ending when it is counted
    assert is_flat["rss"], growth
    assert is_flat["files"], growth
