"""Columns of obs to codes and back."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfeed import BatchEncoder, LabelEncoder
from cellfeed.errors import EncodeError

COLUMNS = {
    "text": pd.Series(["b", "a", "b", "c"]),
    "category": pd.Series(pd.Categorical(["b", "a", "b", "c"], categories=["c", "z", "b", "a"])),
    "integer": pd.Series([30, -1, 30, 2]),
    "float": pd.Series([0.5, -1.5, 0.5, 2.0]),
    "boolean": pd.Series([True, False, True, True]),
    "text with null": pd.Series(["b", None, "b", "a"]),
    "category with null": pd.Series(pd.Categorical(["b", None, "b", "a"])),
    "float with NaN": pd.Series([1.5, np.nan, 1.5, 0.0]),
    "nullable integer": pd.Series([3, None, 3, 1], dtype="Int64"),
    "nullable boolean": pd.Series([True, None, True, False], dtype="boolean"),
    "all null": pd.Series([None, None, None, None], dtype=object),
}


def same(a, b):
    return (pd.isna(a) and pd.isna(b)) or a == b


@pytest.mark.parametrize("kind", COLUMNS)
def test_round_trip(kind):
    """Every value comes back, a missing one as None; codes are 0..K-1 in ascending order of the values."""
    obs = pd.DataFrame({"x": COLUMNS[kind]})
    encoder = LabelEncoder("x")
    encoder.fit(obs)
    codes = encoder.transform(obs)
    assert all(same(a, b) for a, b in zip(encoder.inverse_transform(codes), obs["x"], strict=True))
    assert sorted(set(codes)) == list(range(len(encoder.classes_)))
    present = [c for c in encoder.classes_.tolist() if c is not None]
    assert present == sorted(present)
    assert encoder.classes_.tolist()[: len(present)] == present  # the missing value comes last


def test_unused_categories_get_no_code():
    obs = pd.DataFrame({"x": pd.Categorical(["b"], categories=["a", "b"])})
    encoder = LabelEncoder("x")
    encoder.fit(obs)
    assert encoder.classes_.tolist() == ["b"]


@pytest.mark.parametrize("kind", ["text", "category", "integer", "boolean"])
def test_an_unseen_label_is_an_error_that_names_it(kind):
    obs = pd.DataFrame({"cell_type": COLUMNS[kind]})
    encoder = LabelEncoder("cell_type")
    encoder.fit(obs.iloc[[1]])
    unseen = repr(obs["cell_type"].iloc[0]).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(EncodeError, match=f"'cell_type' was not fitted on .*{unseen}"):
        encoder.transform(obs)


def test_an_unseen_label_can_have_a_stated_code():
    encoder = LabelEncoder("x", handle_unknown="use_encoded_value", unknown_value=-7)
    encoder.fit(pd.DataFrame({"x": ["a"]}))
    assert encoder.transform(pd.DataFrame({"x": ["a", "zz", None]})).tolist() == [0, -7, -7]


words = st.lists(st.tuples(st.text("abc|_/", max_size=4), st.text("abc|_/", max_size=4)), min_size=1, max_size=12)


@given(pairs=words)
def test_joined_columns_never_collide(pairs):
    """Rows get the same code if and only if they agree in every column, whatever the text."""
    obs = pd.DataFrame(pairs, columns=["p", "q"])
    encoder = BatchEncoder(["p", "q"])
    encoder.fit(obs)
    codes = encoder.transform(obs).tolist()
    for a, x in zip(pairs, codes, strict=True):
        for b, y in zip(pairs, codes, strict=True):
            assert (a == b) == (x == y)
    assert len(set(encoder.classes_)) == len(set(pairs))


def test_joined_text_is_the_published_one_where_it_is_not_ambiguous():
    encoder = BatchEncoder(["number", "letter"])
    encoder.fit(pd.DataFrame({"number": [0, 1, 2], "letter": ["c", "c", "c"]}))
    assert encoder.inverse_transform([0, 1, 2]).tolist() == ["0c", "1c", "2c"]


def test_joined_text_gets_a_separator_where_it_must():
    encoder = BatchEncoder(["p", "q"])
    encoder.fit(pd.DataFrame({"p": ["a", "ab"], "q": ["bc", "c"]}))
    assert encoder.classes_.tolist() == ["a_bc", "ab_c"]
    with pytest.raises(EncodeError, match="have the same text"):
        BatchEncoder(["p", "q"], separator="").fit(pd.DataFrame({"p": ["a", "ab"], "q": ["bc", "c"]}))


def test_an_unseen_combination_of_seen_values_is_an_error():
    encoder = BatchEncoder(["p", "q"])
    encoder.fit(pd.DataFrame({"p": ["a", "b"], "q": ["x", "y"]}))
    with pytest.raises(EncodeError, match=r"'batch' was not fitted on \('a', 'y'\)"):
        encoder.transform(pd.DataFrame({"p": ["a"], "q": ["y"]}))
    assert BatchEncoder(["p"], handle_unknown="use_encoded_value", unknown_value=9).name == "batch"


@pytest.mark.parametrize("encoder", [LabelEncoder("x"), BatchEncoder(["x"])])
def test_mistakes_are_named(encoder):
    with pytest.raises(EncodeError, match="has not been fitted"):
        encoder.transform(pd.DataFrame({"x": [1]}))
    with pytest.raises(EncodeError, match=r"needs the column 'x'; obs has \['y'\]"):
        encoder.fit(pd.DataFrame({"y": [1]}))
    encoder.fit(pd.DataFrame({"x": [1, 2]}))
    for codes in ([2], [-1], [0.5]):
        with pytest.raises(EncodeError, match="codes must be integers from 0 to 1"):
            encoder.inverse_transform(codes)
    column = "x" if isinstance(encoder, LabelEncoder) else ["x"]
    with pytest.raises(EncodeError, match="unknown_value='x' must be an integer"):
        type(encoder)(column, handle_unknown="use_encoded_value", unknown_value="x")
    with pytest.raises(EncodeError, match="handle_unknown='ignore' must be"):
        type(encoder)(column, handle_unknown="ignore")
    with pytest.raises(EncodeError, match='unknown_value=3 needs handle_unknown="use_encoded_value"'):
        type(encoder)(column, unknown_value=3)
    with pytest.raises(TypeError, match="unknown"):
        type(encoder)(column, unknown=3)
