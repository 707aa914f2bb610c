"""Environment variables of cellfeed: one rule for their values."""

import pytest

import cellfeed
from cellfeed import PlanError
from cellfeed._checks import is_enabled
from cellfeed.rows import slabs


@pytest.mark.parametrize("default", [False, True])
def test_a_variable_is_on_or_off_and_else_has_its_default(monkeypatch, default):
    monkeypatch.delenv("CELLFEED_DIRECT", raising=False)
    assert is_enabled("CELLFEED_DIRECT", default=default) is default
    for values, expected in ((("1", "true", "Yes", "ON"), True), (("0", "", "False", "no", "off"), False)):
        for value in values:
            monkeypatch.setenv("CELLFEED_DIRECT", value)
            assert is_enabled("CELLFEED_DIRECT", default=default) is expected


@pytest.mark.parametrize("variable", ["CELLFEED_DIRECT", "CELLFEED_PUBLIC_API"])
def test_any_other_value_is_an_error_that_names_the_variable(store, monkeypatch, variable):
    monkeypatch.setenv(variable, "maybe")
    slabs.keep_freed_memory.cache_clear()
    with pytest.raises(cellfeed.CellfeedError, match=f"{variable}='maybe' in the environment must be 1, true") as error:
        next(iter(cellfeed.ExperimentDataset(store, seed=0)))
    assert isinstance(error.value, PlanError)


def test_malloc_is_left_alone_if_switched_off(monkeypatch):
    monkeypatch.setenv("CELLFEED_MALLOC", "")
    slabs.keep_freed_memory.cache_clear()
    assert slabs.keep_freed_memory() is False
    slabs.keep_freed_memory.cache_clear()
