"""A query of obs in a pandas frame selects the cells that TileDB-SOMA selects, and is refused where it refuses it."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiledbsoma as soma
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfeed import ExperimentDataset, SelectionError, obs_filter
from cellfeed.select.filter_expression import columns_of_filter
from cellfeed.select.frame_filter import matching_rows
from cellfeed.sources.soma.axis_query import as_axis_query
from cellfeed.sources.soma.query import make_axis_query
from cellfeed.sources.soma.tables import read_frame
from tests.support.stores import addressed, write_experiment

N = 60
JOINIDS = np.arange(N) * 2 + 3
TEXTS = ["a", "b", "", "é", "e\u0301", "日本", "😀", "\uffff", "it's", "A", "aa", None]
TIMES = pd.DatetimeIndex(["2026-01-01", "1969-12-31T23:59:59", "2026-01-03", None])
INTEGERS = [0, 1, -1, 5, -128, 127, 3]
FLOATS = [0.0, -0.0, 0.1, -2.5, 3.0, np.nan, np.inf, -np.inf, 1e38]


def some_obs():
    """Columns of every type that obs has in files, most with missing values."""
    k = np.arange(N)

    def cycle(values, step=1):
        return [values[i % len(values)] for i in k * step]

    integers = {f"i{bits}": np.array(cycle(INTEGERS), f"i{bits // 8}") for bits in (8, 16, 32, 64)}
    unsigned = {f"u{bits}": np.array(cycle([0, 1, 5, 127, 255]), f"u{bits // 8}") for bits in (8, 16, 32, 64)}
    large = {"most": np.array(cycle([2**63 - 1, -(2**63), 0])), "more": np.array(cycle([2**64 - 1, 0]), np.uint64)}
    nullable = {f"nullable {kind}": pd.array(cycle([1, None, 3, 0, 100]), kind) for kind in ("Int8", "UInt16", "Int64")}
    times = {unit: pd.Series(TIMES.as_unit(unit)[k % len(TIMES)]) for unit in ("s", "ms", "us", "ns")}
    return pd.DataFrame(
        {
            **(integers | unsigned | large | nullable | times),
            "single": np.array(cycle(FLOATS), np.float32),
            "double": cycle(FLOATS),
            "flag": k % 3 == 0,
            "nullable flag": pd.array(cycle([True, False, None]), "boolean"),
            "text": cycle(TEXTS),
            "string": pd.array(cycle(TEXTS), "string"),
            "class": pd.Categorical(cycle(TEXTS, 5), [*TEXTS[:-1], "unused"]),
            "orig.ident": pd.Categorical(cycle(["low", "mid", None, "high"]), ["low", "mid", "high"], ordered=True),
            "dose": pd.Categorical(cycle([5, -1, 3]), [5, -1, 3], ordered=True),
            "group": pd.Categorical(cycle([5, None, 3, -1]), [5, 3, -1, 300]),
            "share": pd.Categorical(cycle([0.5, -0.0, None, -2.5]), [-0.0, 0.5, -2.5]),
            "sure": pd.Categorical(cycle([True, None, False])),
        }
    )


OBS = some_obs()
ORDER = np.random.default_rng(0).permutation(N)  # the rows of the frame


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    path = tmp_path_factory.mktemp("filters") / "s"
    with soma.open(write_experiment(path, addressed(N, 3), OBS, joinids=JOINIDS)) as opened:
        yield opened


def from_soma(experiment, query):
    """The selected joinids, or the error."""
    try:
        axis_query = make_axis_query(experiment, "RNA", query, None)
        return read_frame(axis_query.obs, [], "obs_query", frozenset())[0].tolist()
    except SelectionError as error:
        return str(error)


def from_frame(query, obs=OBS, joinids=JOINIDS, order=ORDER):
    try:
        query = as_axis_query("obs_query", query)
        named = [name for name in columns_of_filter(query.value_filter) if name in obs]
        rows = matching_rows(query, obs[named].iloc[order], joinids[order], column_names=list(obs.columns))
    except SelectionError as error:
        return str(error)
    assert (rows[1:] > rows[:-1]).all()
    return sorted(joinids[order[rows]].tolist())


def values_of(name):
    """Constants for a column: its own, their neighbours, and some that do not fit."""
    if name == "soma_joinid":
        return [-1, 0, 3, 4, 5.0, 50.5, 121, 2**70]
    distinct = OBS[name].drop_duplicates()
    if OBS[name].dtype.kind == "M":
        own = ["2026-01-01", "2026-01-02", "1969-12-31T23:59:59", "2026-01-03T00:00:00.000000001", 0, -1, 1.5]
    else:
        own = [value.item() if isinstance(value, np.generic) else value for value in distinct.dropna()]
    if own and isinstance(own[0], str):
        return [*own, "ab", "zz", b"a", "low"]
    if own and isinstance(own[0], bool):
        return [True, False, 0, 1.0]
    return [value for value in own if value not in (np.inf, -np.inf)] + [
        0,
        -1,
        0.5,
        2,
        -3.5,
        300,
        2**40,
        -(2**70),
        1e300,
    ]


NAMES = [*OBS.columns, "soma_joinid"]
operators = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
equalities = st.sampled_from(["==", "!="])


@st.composite
def comparisons(draw):
    """Text of one comparison; a few do not fit their column."""
    name = draw(st.sampled_from(NAMES))
    column = name if name.isidentifier() and name != "class" else f"attr({name!r})"
    unordered = name in OBS and isinstance(OBS[name].dtype, pd.CategoricalDtype) and not OBS[name].cat.ordered
    operator = draw(operators if draw(st.integers(0, 9)) == 0 or not unordered else equalities)
    misfits = draw(st.integers(0, 19)) == 0
    values = ["text", None, True, 3, b"\xff"] if misfits else values_of(name)
    constants = (
        st.sampled_from(values).map(repr).map(lambda text: draw(st.sampled_from(["{}", "val({})"])).format(text))
    )
    match draw(st.integers(0, 5)):
        case 0 | 1:
            return f"{column} {operator} {draw(constants)}"
        case 2:
            return f"{draw(constants)} {operator} {column}"
        case 3:
            return f"{draw(constants)} {operator} {column} {draw(equalities)} {draw(constants)}"
        case 4:
            return f"{column} {draw(equalities)} None"
        case _:
            several = ", ".join(draw(st.lists(constants, min_size=1, max_size=4)))
            opening, closing = draw(st.sampled_from(["[]", "()", "{}"]))
            return f"{column} {draw(st.sampled_from(['in', 'not in']))} {opening}{several},{closing}"


def combined(parts):
    pairs = st.tuples(parts, st.sampled_from(["and", "or", "&", "|"]), parts)
    return pairs.map(lambda pair: f"({pair[0]}) {pair[1]} ({pair[2]})") | parts.map(lambda part: f"not ({part})")


filters = st.recursive(comparisons(), combined, max_leaves=6)
ends = st.none() | st.integers(-3, JOINIDS[-1] + 4)
points = st.lists(st.integers(0, JOINIDS[-1]), max_size=N) | st.lists(st.integers(-1, JOINIDS[-1] + 1), max_size=3)
coordinates = st.one_of(
    st.none(),
    st.builds(slice, ends, ends),
    points,
    points.map(lambda values: np.array(values, np.int32)),
    points.map(lambda values: pa.array(values, pa.int16())),
    points.map(lambda values: pa.chunked_array([values] if values else [], pa.int64())),
    st.integers(-1, JOINIDS[-1] + 1),
)


def assert_alike(experiment, query):
    expected, selected = from_soma(experiment, query), from_frame(query)
    if not isinstance(expected, str):
        assert selected == expected
    elif "cannot be answered" in expected:  # an error of TileDB-SOMA, in its words
        assert isinstance(selected, str)
    else:  # SOMA does not store unused categories
        assert isinstance(selected, str)
        assert selected.partition(" values: ")[0] == expected.partition(" values: ")[0]


@given(filters)
@settings(max_examples=300)
def test_a_value_filter_selects_what_it_selects_on_soma(experiment, value_filter):
    assert_alike(experiment, value_filter)


@pytest.mark.parametrize("number", [1e300, -1e300, 10**300, 10**309, -(10**309)])
@pytest.mark.parametrize("column", ["single", "double"])
def test_numbers_beyond_a_type_of_floats_are_infinite(experiment, column, number):
    for value_filter in (f"{column} > {number}", f"{column} <= {number}", f"{column} not in [{number}]"):
        assert_alike(experiment, value_filter)


def test_the_category_minus_zero_equals_zero(experiment):
    for value_filter in ("share == 0", "share in [0, 7]", "not share not in [-0.0]"):
        assert_alike(experiment, value_filter)
        assert from_frame(value_filter) == JOINIDS[OBS["share"] == 0].tolist()


@given(filters)
@settings(max_examples=100)
def test_not_selects_the_other_rows_that_have_a_value(value_filter):
    named = [name for name in columns_of_filter(value_filter) if name in OBS]
    frame = OBS[named].dropna()
    try:
        selected = rows(value_filter, frame)
    except SelectionError:
        return
    assert rows(f"not ({value_filter})", frame) == sorted({*range(len(frame))}.difference(selected))


@given(coordinates, st.none() | comparisons())
@settings(max_examples=150)
def test_coordinates_select_what_they_select_on_soma(experiment, coordinate, value_filter):
    assert_alike(experiment, soma.AxisQuery(coords=(coordinate,), value_filter=value_filter))


def rows(value_filter, frame, coords=(), joinids=None, **options):
    query = SimpleNamespace(value_filter=value_filter, coords=coords)
    return matching_rows(query, frame, np.arange(len(frame)) if joinids is None else joinids, **options).tolist()


@pytest.mark.parametrize("value_filter", [obs_filter({"class": ["a", "é"], "i8": (">", 0)}), "attr('class') != 'a'"])
def test_a_dataset_selects_the_same_cells(experiment, value_filter):
    expected = ExperimentDataset(experiment, obs_query=value_filter, seed=0).obs_joinids.tolist()
    assert 0 < len(expected) < N
    assert from_frame(value_filter) == expected


def test_a_missing_value_meets_only_comparisons_with_none():
    frame = pd.DataFrame({"f": [1.0, np.nan], "n": pd.array([1, None]), "c": pd.Categorical(["a", None])})
    for column, value in {"f": 1, "n": 1, "c": "'a'"}.items():
        assert rows(f"{column} != {value}", frame) == rows(f"not {column} == {value}", frame) == []
        assert rows(f"{column} not in [{value}]", frame) == []
        assert rows(f"not ({column} != {value} or {column} == None)", frame) == [0]
        assert rows(f"{column} == None", frame) == rows(f"not {column} != None", frame) == [1]


@pytest.mark.parametrize(
    "column",
    [
        pd.Categorical([None, None], pd.Index([], dtype=object)),
        np.array([None, None], object),
        pd.array([None, None], "string"),
    ],
    ids=["categorical", "object", "string"],
)
def test_a_column_without_any_value_is_text(column):
    """Pandas and Arrow know no type for it; TileDB-SOMA stores it as text."""
    frame = pd.DataFrame({"x": column})
    assert rows("x == 'a'", frame) == rows("x != 'a'", frame) == rows("x in ['a']", frame) == []
    assert rows("x == None", frame) == [0, 1]
    with pytest.raises(SelectionError, match="column 'x' holds text"):
        rows("x == 3", frame)


def test_half_precision():
    assert rows("x <= 0.5", pd.DataFrame({"x": np.array([0.5, 1, -0.25], np.float16)})) == [0, 2]


def test_ordered_categories_are_compared_in_their_order():
    """Also with a category that no row has; TileDB-SOMA does not store it, and refuses it."""
    frame = pd.DataFrame({"x": pd.Categorical(["mid", "low", None], ["low", "mid", "high"], ordered=True)})
    assert rows("x < 'high'", frame) == [0, 1]
    assert rows("x < 'mid'", frame) == [1]


def test_joinids_need_not_ascend():
    joinids = np.array([30, 10, 20])
    frame = pd.DataFrame(index=range(3))
    assert rows("soma_joinid >= 20", frame, joinids=joinids) == [0, 2]
    assert rows(None, frame, (slice(10, 20),), joinids) == [1, 2]
    assert rows("soma_joinid != 10", frame, ([20, 10],), joinids) == [2]
    assert rows(None, frame, (25,), joinids) == []
    assert rows("soma_joinid == 7", pd.DataFrame({"soma_joinid": [7, 7, 7]}), joinids=joinids) == []


@pytest.mark.parametrize("coords", [(), (None,), (slice(None),)])
def test_an_empty_table(coords):
    assert rows("x == 'a'", pd.DataFrame({"x": pd.Categorical([])}), coords) == []


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        (([1], [2]), "coords has 2 coordinates, and soma_joinid is the only index"),
        (([1, 500],), "coords has 500, and soma_joinid goes from 0 to 121; joinids belong to one store"),
        ((-1,), "coords has -1, and soma_joinid goes from 0 to 121"),
        ((slice(2, 1),), "slice start after its slice stop"),
        ((slice(0, 2, 2),), r"has a step; give joinids: coords=\(range\(0, 2, 2\),\)"),
        ((slice(-3, -1),), "holds no soma_joinid: they go from 0 to 121"),
        ((slice("a", "b"),), "ends, which are integers"),
        ((slice(500, 600),), "holds no soma_joinid: they go from 0 to 121"),
        ((slice(500, None),), "holds no soma_joinid: they go from 0 to 121"),
        (("a",), "must be a joinid, a list or array of one dimension"),
        ((["a"],), "must be a joinid"),
        (([1, None],), "must be a joinid"),
        (([[1], [1, 2]],), "must be a joinid"),
        (([2**70],), "must be a joinid"),
        ((np.array([2**63], np.uint64),), "coords has 9223372036854775808, and soma_joinid goes from 0 to 121"),
        ((np.array([[1]]),), "must be a joinid"),
        ((pa.array([1, None]),), "must be a joinid"),
        ((pa.array(["a"]),), "must be a joinid"),
        ((np.datetime64("2026"),), "must be a joinid"),
    ],
)
def test_coordinates_that_cannot_be_joinids_are_an_error(experiment, coords, message):
    query = soma.AxisQuery(coords=coords)
    assert re.match(f"obs_query: .*{message}", from_frame(query))
    assert isinstance(from_soma(experiment, query), str)


def test_an_error_names_the_query_the_table_and_its_other_columns():
    with pytest.raises(SelectionError, match="var_query: .*: var has no column 'feature_nam'; did you mean 'feature_"):
        rows("feature_nam == 'A'", pd.DataFrame(index=[0]), argument="var_query", column_names=["feature_name", "n"])


@pytest.mark.parametrize("value_filter", ["text == '\\ud800'", "text in ['a', '\\ud800']"])
def test_half_a_character_is_an_error(experiment, value_filter):
    for answer in (from_soma(experiment, value_filter), from_frame(value_filter)):
        assert answer.startswith("obs_query cannot be answered")


def test_a_column_of_several_types_is_an_error():
    with pytest.raises(SelectionError, match="column 'x' has values that a filter cannot compare"):
        rows("x == 3", pd.DataFrame({"x": [3, "a"]}))


def test_columns_of_a_filter():
    assert columns_of_filter("a == lung and 3 < attr('b.c') or not val(1) in [d] and a in ['x']") == [
        "a",
        "lung",
        "b.c",
    ]
    for wrong in ("a = 3", "(" * 3000 + "a == 3" + ")" * 3000):
        with pytest.raises(SelectionError, match="value_filter=.* is (not an expression|nested too deeply)"):
            columns_of_filter(wrong)
