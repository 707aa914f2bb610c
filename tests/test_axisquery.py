"""A user's choice of cells is checked against the existing columns before anything is read."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiledbsoma as soma

from cellfeed import ExperimentDataset, SelectionError, obs_filter
from tests.support.stores import addressed, write_experiment

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
N_OBS = 120


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    numbers = np.arange(N_OBS)
    obs = pd.DataFrame({kind: numbers.astype(kind) for kind in [*INTEGERS, "float32"]})
    obs["cell_type"] = pd.Categorical(np.where(numbers % 2, "CD34+ cell", "B cell"))
    obs["tissue"] = np.where(numbers < 60, "lung", "blood")
    obs["flag"] = numbers % 3 == 0
    for unit in ("s", "ms", "us", "ns"):
        obs[unit] = pd.date_range("2026-01-01", periods=N_OBS, freq="D", unit=unit)
    obs["ordered"] = pd.Categorical(np.array([1, 3, 5])[numbers % 3], categories=[1, 3, 5], ordered=True)
    obs["category"] = pd.Categorical(np.where(numbers % 4, numbers % 5, None))
    obs["nullable"] = pd.array(np.where(numbers % 4, numbers, None), dtype="Int16")
    return write_experiment(tmp_path_factory.mktemp("query") / "s", addressed(N_OBS, 6), obs)


def selected(store, query, **parameters):
    return ExperimentDataset(store, obs_query=query, seed=0, allow_empty=True, **parameters).obs_joinids.tolist()


def test_text_and_dicts_are_value_filters(store):
    lung = list(range(60))
    assert selected(store, "tissue == 'lung'") == lung
    assert selected(store, {"tissue": "lung"}) == lung
    assert selected(store, {"tissue": ["lung"], "int16": (">", 50)}) == list(range(51, 60))
    dataset = ExperimentDataset(store, var_query="feature_name in ['G1', 'G4']")
    assert dataset.var_joinids.tolist() == [1, 4]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("tisue == 'lung'", r"obs has no column 'tisue'; did you mean 'tissue'\?"),
        ("attr('tisue') == 'lung'", r"obs has no column 'tisue'; did you mean 'tissue'\?"),
        ("int8 > 3 and not tisue == 'lung'", "obs has no column 'tisue'"),
        ("tissue = 'lung'", "is not an expression"),
        ("tissue == 'lung' and", "is not an expression"),
        ("tissue == lung", "quote text: 'lung'"),
        ("tissue == 3", "column 'tissue' holds text"),
        ("cell_type in [1, 2]", "column 'cell_type' holds text"),
        ("int32 == '3'", "column 'int32' holds int32 values"),
        ("float32 > 'a'", "column 'float32' holds float values"),
        ("'lung' == tisue", "obs has no column 'tisue'"),
        ("3 < int9 < 5", "obs has no column 'int9'"),
        ("3 == tissue", "column 'tissue' holds text"),
        ("TISSUE == 'lung'", r"obs has no column 'TISSUE'; did you mean 'tissue'\?"),
        ("tissue is None", "by the `is` operator, which is not supported; write == or !="),
        ("tissue in 'lung'", "in and not in take a list"),
        ("int8 == [3, 4]", "in and not in take a list"),
        ("int8 in []", "in and not in take a list"),
        ("int8 in [3, None]", "which cannot be compared with None"),
        ("int8 == 2**3", r"'2 \*\* 3' is not a value"),
        ("int8 + 1 == 3", r"'int8 \+ 1' is not a column"),
        ("orig.ident == 'a'", r"'orig.ident' is not a column.*attr\('orig.ident'\)"),
        ("tissue == 'lung' and flag", "'flag' is not a comparison"),
        ("not flag", "'flag' is not a comparison"),
        ("~(tissue == 'lung')", "is not a comparison"),
        ("tissue == 'lung' | int8 > 3", "is not a value"),
        ("flag == 2", "column 'flag' holds True and False"),
        ("int8 in [True, False]", "column 'int8' holds int8 values, which cannot be compared with True"),
        ("cell_type > 'A'", r"'cell_type' is categorical and has no order; list its values: 'B cell', 'CD34\+ cell'"),
        ("ordered > 2", "'ordered' is categorical, and 2 is not one of its ordered values: 1, 3, 5"),
        (" | ".join(["(int8 == 3)"] * 3000), "nested too deeply|too many nested|too complex"),
    ],
)
def test_a_filter_that_does_not_fit_is_an_error_that_says_why(store, query, message):
    with pytest.raises(SelectionError, match=message) as raised:
        selected(store, query)
    assert "At:" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 700
    with soma.open(store) as experiment, pytest.raises(SelectionError, match=message):
        ExperimentDataset.from_query(experiment.axis_query("RNA", obs_query=soma.AxisQuery(value_filter=query)))


def test_errors_of_the_store_come_without_its_stack(store):
    with pytest.raises(SelectionError, match="slice start") as raised:
        selected(store, soma.AxisQuery(coords=(slice(9, 3),)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize(
    "values",
    [list(range(3, 40)), [3, 300, 70_000, 2**40, 2**63], [-5, -300, 7], [-5], [2**40], [0.5, 4], [4.0, 5.0]],
    ids=str,
)
def test_numbers_beyond_the_type_of_a_column_match_nothing(store, kind, values):
    expected = [n for n in range(N_OBS) if n in values]
    assert selected(store, {kind: values}) == expected
    if all(isinstance(value, int) and value >= 0 for value in values):
        assert selected(store, f"{kind} in {values}") == expected
        assert selected(store, f"{kind} not in {values}") == [n for n in range(N_OBS) if n not in values]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*INTEGERS, "float32"])
@pytest.mark.parametrize("value", [-300, -1, -0.5, 0, 0.5, 57, 57.5, 119, 300, 2**40])
def test_comparisons_have_the_value_that_they_have_for_numbers(store, kind, value):
    numbers = np.arange(N_OBS)
    for operator, expected in {
        ">": numbers > value,
        ">=": numbers >= value,
        "<": numbers < value,
        "<=": numbers <= value,
        "!=": numbers != value,
    }.items():
        assert selected(store, {kind: (operator, value)}) == np.flatnonzero(expected).tolist(), operator


@pytest.mark.parametrize(
    ("text", "meets"),
    [
        ("2.5 > int8", lambda obs: obs < 2.5),
        ("300 > int8", lambda obs: obs < 300),
        ("0.5 == int8", lambda obs: obs < 0),
        ("-300 < int8 < 2.5", lambda obs: obs < 2.5),
        ("2.5 < int8 <= 300", lambda obs: obs > 2.5),
        ("int8 < 1e400", lambda obs: obs >= 0),
        ("float32 < 1e400", lambda obs: obs >= 0),
        ("int8 in (3, 4)", lambda obs: (obs == 3) | (obs == 4)),
        ("int8 in {-3, 4}", lambda obs: obs == 4),
        ("  int8 == 4\n", lambda obs: obs == 4),
        ("not (int8 >= 3 or int8 == 1)", lambda obs: (obs < 3) & (obs != 1)),
        ("not (int8 >= 3 and tissue == 'lung') & (1 <= int8)", lambda obs: (obs < 1) | (obs < 3) | (obs >= 60)),
        ("not 3 <= int8 < 70", lambda obs: (obs < 3) | (obs >= 70)),
        ("not not int8 < 3", lambda obs: obs < 3),
        ("not tissue in ['lung', 'liver']", lambda obs: obs >= 60),
        ("float32 in [-1.5, 0, 3]", lambda obs: (obs == 0) | (obs == 3)),
    ],
)
def test_comparisons_may_be_chained_and_begin_with_the_value(store, text, meets):
    """TileDB-SOMA crashes on some of these, refuses some, and drops the fraction of others: 2.5 > n selected n < 2."""
    assert selected(store, text) == np.flatnonzero(meets(np.arange(N_OBS))).tolist()


@pytest.mark.parametrize("column", ["nullable", "category"])
@pytest.mark.parametrize("value", [70_000, -70_000, 2**70, 0.5, 77])
def test_missing_values_differ_from_no_number(store, column, value):
    """A missing value fulfils no comparison with a number, even if the column's type cannot hold the number."""
    there = [n for n in range(N_OBS) if n % 4 and not (column == "nullable" and n == value)]
    for text in (f"{column} != {value}", f"not {column} == {value}", f"{column} not in [{value}]"):
        assert selected(store, text) == there, text
    for text in (f"not {column} != {value}", f"{column} in [{value}]"):
        assert selected(store, text) == [n for n in range(N_OBS) if n % 4 and n not in there], text
    assert selected(store, {column: ("!=", None)}) == [n for n in range(N_OBS) if n % 4]


def test_ordered_categories_are_compared_in_their_order(store):
    assert selected(store, "ordered > 1") == [n for n in range(N_OBS) if n % 3]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_are_compared_as_text(store, unit):
    """TileDB-SOMA takes numbers of the column's units only; a time between two of them equals none."""
    assert selected(store, f"{unit} == '2026-01-03'") == [2]
    assert selected(store, f"{unit} == '2026-01-03T01:00:00+01:00'") == [2]
    assert selected(store, f"{unit} in ['2026-01-03', '2026-01-02 00:00:00']") == [1, 2]
    assert selected(store, f"{unit} <= '2026-01-03T00:00:00.000000001'") == [0, 1, 2]
    assert selected(store, f"{unit} > '2026-01-02T23:59:59.999999999' and {unit} < '2026-01-04'") == [2]
    assert selected(store, f"{unit} == '2026-01-03T00:00:00.000000001'") == []
    assert selected(store, {unit: (">", "2026-04-29")}) == [N_OBS - 1]
    assert selected(store, f"{unit} == {pd.Timestamp('2026-01-03').value // pd.Timedelta(1, unit).value}") == [2]
    with pytest.raises(
        SelectionError, match=f"column '{unit}' holds times, and 'May' is not a time; write for example"
    ):
        selected(store, f"{unit} == 'May'")


def test_booleans_are_compared_with_lists(store):
    assert selected(store, "flag in [True]") == list(range(0, N_OBS, 3))
    assert selected(store, "flag not in [True]") == sorted({*range(N_OBS)} - {*range(0, N_OBS, 3)})
    assert selected(store, "flag in [True, False]") == list(range(N_OBS))


@pytest.mark.parametrize(
    "joinids", [[3.0, 4.0], [3, 4.5], np.array([3.0]), pa.array([3.0]), (np.float32(3),), pa.chunked_array([[3.0]])]
)
def test_floats_as_coordinates_are_an_error(store, joinids):
    with pytest.raises(SelectionError, match="obs_query: the coordinates are floats.*astype"):
        ExperimentDataset(store, obs_query=soma.AxisQuery(coords=(joinids,)))


@pytest.mark.parametrize("joinids", [[-1], [5, N_OBS]])
def test_joinids_of_another_store_are_an_error(store, joinids):
    with pytest.raises(
        SelectionError, match="The store has no such soma_joinid: joinids belong to one store"
    ) as raised:
        ExperimentDataset(store, obs_query=soma.AxisQuery(coords=(joinids,)))
    assert "obs_filter" not in str(raised.value)


def test_several_comparisons_must_all_hold():
    assert obs_filter(n=[(">=", 500), ("<", 600)]) == "n >= 500 and n < 600"
    assert obs_filter(n=("!=", [1, 2]), t="x") == "n != 1 and n != 2 and t == 'x'"
    assert obs_filter(n=[("==", 5)]) == "n == 5"
    assert obs_filter(t=("!=", None)) == "t != None"
    with pytest.raises(SelectionError, match=r'comparisons such as n=\(">", 500\) with one of >, >=, <, <=, !=, =='):
        obs_filter(n=("=>", 500))
    for wrong in ([(">", 1), 5], (">", [1, 2]), (">", None)):
        with pytest.raises(SelectionError, match="obs_filter"):
            obs_filter(n=wrong)


MASK = np.arange(N_OBS) >= 100


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        MASK.astype(object),
        MASK.tolist(),
        tuple(MASK.tolist()),
        [3, True],
        slice(False, True),
        pa.array(MASK),
        pa.chunked_array([pa.array(MASK)]),
    ],
    ids=lambda mask: type(mask).__name__,
)
def test_a_mask_as_coordinates_is_an_error(store, mask):
    """TileDB-SOMA takes it for the joinids 0 and 1."""
    query = soma.AxisQuery(coords=(mask,))
    for parameters in ({"obs_query": query}, {"var_query": query}):
        with pytest.raises(SelectionError, match="coordinates are booleans"):
            ExperimentDataset(store, **parameters)
    with soma.open(store) as experiment, pytest.raises(SelectionError, match="coordinates are booleans"):
        ExperimentDataset.from_query(experiment.axis_query("RNA", obs_query=query))
    assert selected(store, soma.AxisQuery(coords=(np.flatnonzero(MASK),))) == list(range(100, N_OBS))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("cell_type == 'CD34'", r"cell_type holds no 'CD34': did you mean 'CD34\+ cell'\?"),
        ("tissue == 'Lung'", r"tissue holds no 'Lung': did you mean 'lung'\?"),
        ("tissue in ['zzzz', 'lungs'] and int8 == 3", "tissue holds no 'lungs': did you mean 'lung'"),
        ("cell_type == 'zzzzzz'", "there are 'B cell', "),
        ("cell_type == 'B cell' and int8 == 3", "; none of 120 rows meets all its conditions"),
        ({"int8": (">", 119)}, "int8 holds no value > 119: it has 0 to 119"),
        ("300 == int8", "selects nothing: '300 == int8'; int8 holds no value 300: it has 0 to 119"),
        ("not tissue == 'lung' and not tissue == 'blood'", "; none of 120 rows"),
        ("'Lung' == tissue", "did you mean 'lung'"),
        ("float32 == 0.1", "float32 holds no value 0.1: it has 0.0 to 119.0"),
        ("category == 7.5", "category holds no value 7.5: it has 0 to 4"),
        (obs_filter(tissue=[f"t{k}" for k in range(3000)]), r"'t3.*\.\.\.; tissue holds no 't0'"),
    ],
)
def test_a_filter_that_selects_nothing_names_similar_values(store, query, message):
    with pytest.raises(SelectionError, match=message):
        ExperimentDataset(store, obs_query=query)


def test_an_experiment_without_cells_needs_to_be_allowed(tmp_path):
    uri = write_experiment(tmp_path / "s", addressed(4, 3)[:0])
    with pytest.raises(SelectionError, match="obs_query selects nothing; obs has no rows"):
        ExperimentDataset(uri)
    assert len(ExperimentDataset(uri, allow_empty=True)) == 0


def test_a_mask_of_values_is_an_error(store):
    """As values, a mask would mean all rows: each is one of True and False."""
    with pytest.raises(SelectionError, match="flag has 120 booleans, which look like a mask"):
        selected(store, {"flag": MASK})


def test_reasons_are_sought_in_a_bounded_number_of_rows(store, monkeypatch):
    monkeypatch.setattr("cellfeed.sources.soma.empty_query.MAX_ROWS_READ", 50)
    with pytest.raises(SelectionError, match="tissue holds no 'bloods' in its first 50 rows: there are 'lung'"):
        ExperimentDataset(store, obs_query="tissue == 'bloods'")


def test_what_the_user_asked_is_kept_beside_what_is_read(store):
    """In provenance, and so in checkpoints: the filter as it was given, as plain text."""
    with soma.open(store) as experiment:
        query = experiment.axis_query("RNA", obs_query=soma.AxisQuery(value_filter="int8 < 300"))
        for dataset in (ExperimentDataset(store, obs_query="int8 < 300"), ExperimentDataset.from_query(query)):
            kept = dataset.provenance()["obs_query"]["value_filter"]
            assert (type(kept), kept) == (str, "int8 < 300")


def test_allow_empty_is_true_or_false(store):
    with pytest.raises(SelectionError, match="allow_empty='no' must be True or False"):
        ExperimentDataset(store, allow_empty="no")
