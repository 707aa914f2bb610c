"""obs_filter: a filter selects exactly the rows that pandas selects, whatever the values hold."""

import enum
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import tiledbsoma as soma
from hypothesis import given, settings
from hypothesis import strategies as st

import cellfeed
from cellfeed import ExperimentDataset, SelectionError, obs_filter
from tests.support.stores import addressed, write_experiment

TEXTS = [
    "", " ", "a", "A", "b", "it's", 'say "so"', "'\"", "b\\", "\\", "\\n", "\n", "\r\n", "\t", "é", "e\u0301",
    "日本", "😀", "\u202e", "\x01", "\x7f", "\ufeff", "a' or text != 'a", "'] or text in ['a",
    "None", "True", "attr('a')", "#", "%s", "{x}",
]  # fmt: skip
NAMES = ["orig.ident", "a'b\"c", "class", "two words", "ﬁ", "attr", "val", "日本", "back\\slash"]


class Tissue(enum.StrEnum):
    LUNG = "a"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A store of one cell per hostile text, and numbers of every type."""
    n = len(TEXTS)
    k = np.arange(n) - 3
    obs = pd.DataFrame(
        {
            "text": TEXTS,
            "kind": pd.Categorical(TEXTS),
            "flag": k % 2 == 0,
            "single": (k / 8).astype(np.float32),
            "tenth": (k / 10).astype(np.float32),
            "double": k / 10,
            **{f"i{bits}": k.astype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
            **{f"u{bits}": (k + 3).astype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
            **dict.fromkeys(NAMES, TEXTS),
        }
    )
    uri = write_experiment(tmp_path_factory.mktemp("filters") / "hostile", addressed(n, 3), obs)
    with soma.open(uri) as experiment:
        yield experiment, obs


def selected(experiment, text):
    table = experiment.obs.read(value_filter=text, column_names=["soma_joinid"]).concat()
    return sorted(table.column(0).to_pylist())


texts = st.lists(st.sampled_from(TEXTS) | st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1)
integers = st.integers(-8, 40)
fractions = st.sampled_from([k / 10 for k in range(-9, 30)] + [k / 8 for k in range(-9, 30)])
whole_columns = {f"{sign}{bits}" for sign in "iu" for bits in (8, 16, 32, 64)}


@st.composite
def wanted(draw):
    """Values by column, each of the column's kind: lists and lone values of any length."""
    chosen = {}
    for name in draw(
        st.lists(st.sampled_from(["text", "kind", "flag", "double", "i64", *NAMES]), min_size=1, max_size=3)
    ):
        values = {
            "flag": st.lists(st.booleans(), min_size=1, max_size=2),
            "double": st.lists(integers | fractions, min_size=1),
            "i64": st.lists(integers, min_size=1, max_size=40),
        }.get(name, texts)
        chosen[name] = draw(values)
    return chosen


@given(wanted())
@settings(max_examples=300)
def test_a_filter_selects_what_pandas_selects(hostile, wanted):
    experiment, obs = hostile
    expected = np.logical_and.reduce([obs[name].isin(values) for name, values in wanted.items()])
    assert selected(experiment, obs_filter(wanted)) == np.flatnonzero(expected).tolist()


@pytest.mark.parametrize("name", sorted(whole_columns))
def test_integers_of_every_type(hostile, name):
    """Signs, and types for which TileDB-SOMA knows no lists, make no difference; a fraction equals no integer."""
    experiment, obs = hostile
    values = [int(obs[name].iloc[k]) for k in (0, 2, 5)]
    assert selected(experiment, obs_filter({name: values})) == [0, 2, 5]
    assert selected(experiment, obs_filter({name: float(values[1])})) == [2]
    assert selected(experiment, obs_filter({name: [values[0] + 0.5, values[1] - 0.5]})) == []


@pytest.mark.parametrize("name", ["single", "tenth"])
def test_floats_of_single_precision(hostile, name):
    experiment, obs = hostile
    for k in range(8):
        assert selected(experiment, obs_filter({name: obs[name].iloc[k]})) == [k]
        assert selected(experiment, obs_filter({name: float(str(obs[name].iloc[k]))})) == [k]


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b"],
        ("a", "b"),
        {"b", "a"},
        frozenset("ab"),
        np.array(["a", "b"]),
        np.array(["a", "b"], dtype=object),
        pd.Series(["a", "b", "a"]),
        pd.Index(["a", "b"]),
        pd.Categorical(["a", "b"]),
        pd.Series(["a", "b"], dtype="category"),
        pd.Series(["a", "b"], dtype="string"),
        {"a": 1, "b": 2}.keys(),
        (x for x in "ab"),
    ],
)
def test_all_sorts_of_lists(values):
    assert obs_filter(x=values) == "x in ['a', 'b']"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "x == 'a'"),
        (np.str_("a"), "x == 'a'"),
        (Tissue.LUNG, "x == 'a'"),
        (["a"], "x == 'a'"),
        (True, "x == True"),
        (np.True_, "x == True"),
        ([True, False], "(x == True or x == False)"),
        (3, "x == 3"),
        (np.uint8(3), "x == 3"),
        (np.array(3), "x == 3"),
        (3.0, "x == 3"),
        (-0.0, "x == 0"),
        (0.25, "(x == 0.25 and x != 0)"),
        ([-1, 2], "(x == -1 or x == 2)"),
        (range(17), f"x in {list(range(17))}"),
        (range(-1, 17), f"(x in {list(range(17))} or x == -1)"),
        (pd.Series([1, 2], dtype="Int64"), "(x == 1 or x == 2)"),
    ],
)
def test_what_is_written(value, text):
    assert obs_filter(x=value) == text


def test_columns_by_name_and_by_mapping():
    assert obs_filter({"orig.ident": "a", "y": 1}, x="b") == "attr('orig.ident') == 'a' and y == 1 and x == 'b'"
    assert obs_filter(columns="a", more="b") == "columns == 'a' and more == 'b'"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": []}, "x=\\[\\] would select nothing; omit 'x'"),
        ({"x": None}, "x has a missing value \\(None\\).*x == None"),
        ({"x": ["a", None]}, "missing value"),
        ({"x": pd.Series(["a", None])}, "missing value|not a finite number"),
        ({"x": pd.NA}, "missing value"),
        ({"x": pd.NaT}, "missing value"),
        ({"x": float("nan")}, "x=nan is not a finite number"),
        ({"x": [1.0, float("-inf")]}, "x=-inf is not a finite number"),
        ({"x": ["a", 1]}, "several kinds \\(number, text\\)"),
        ({"x": [True, 1]}, "several kinds"),
        ({"x": "a\0b"}, "NUL"),
        ({"x": "\ud800"}, "half a character"),
        ({"x\0": "a"}, "NUL"),
        ({"x": b"a"}, "is a bytes"),
        ({"x": 1j}, "is a complex"),
        ({"x": Decimal(1)}, "is a Decimal"),
        ({"x": pd.Timestamp("2020")}, "is a time; give it as text: '2020-01-01 00:00:00'"),
        ({"x": np.datetime64("2020")}, "is a time; give it as text: '2020-01-01 00:00:00'"),
        ({"x": np.timedelta64(1, "s")}, "is a timedelta64"),
        ({"x": {"a": 1}}, "is a dict"),
        ({"x": [["a"]]}, "is a list"),
        ({"x": np.ones((2, 2))}, "a ndarray of 2 dim"),
        ({"x": pd.DataFrame({"a": [1]})}, "a DataFrame of 2 dim"),
        ({"x": 2**64}, "does not fit 64 bits"),
        ({"x": 1e300}, "does not fit 64 bits"),
        ({"x": object()}, "is a object"),
        ({"": 1}, "must be the name"),
        ({3: 1}, "must be the name"),
        ({}, "received no column"),
        ("tissue == 'lung'", "takes columns by name"),
    ],
)
def test_what_cannot_be_a_filter_is_said(columns, message):
    with pytest.raises(SelectionError, match=message):
        obs_filter(columns)


def test_a_column_given_twice():
    with pytest.raises(SelectionError, match="column 'x' twice"):
        obs_filter({"x": 1}, x=2)


def test_in_a_dataset(hostile):
    experiment, obs = hostile
    query = soma.AxisQuery(value_filter=cellfeed.obs_filter(kind=TEXTS[:20], flag=False))
    expected = [k for k in range(20) if not obs["flag"].iloc[k]]
    assert ExperimentDataset(experiment, obs_query=query).obs_joinids.tolist() == expected
