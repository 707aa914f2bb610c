"""Labels of cells: missing values are known by their code and never by a text, and numbers are exact."""

import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiledbsoma as soma
import torch

from cellfeed import BatchEncoder, EncodeError, Encoder, ExperimentDataset, LabelEncoder, SelectionError
from cellfeed.select.obs_frame import FrameBuilder
from tests.support.stores import addressed, write_experiment

BIG = 2**53


@pytest.fixture
def categories():
    """The class of encoders for scvi-tools."""
    pytest.importorskip("scvi", reason="scvi-tools is not installed")
    from cellfeed.scvi.covariates import Categories

    return Categories


def stored(path, **columns):
    """Write an experiment whose obs has columns, and return its URI."""
    obs = pd.DataFrame(columns)
    return write_experiment(path, addressed(len(obs), 4), obs)


def labels_of(uri, column, **parameters):
    """Return the decoded codes of a column in the order of the cells, and the number of classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dataset = ExperimentDataset(uri, obs_column_names=[column], shuffle=False, batch_size=100, **parameters)
    (minibatch,) = dataset
    encoder = dataset.obs_encoders[column]
    return encoder.inverse_transform(minibatch.obs[:, 0]).tolist(), len(encoder.classes_)


MISSING = {
    "text": pd.array([None] * 6, dtype=pd.ArrowDtype(pa.large_string())),
    "category": pd.Categorical([None] * 6, categories=["a", "b"]),
    "number": pd.array([None] * 6, dtype="Int64"),
    "fraction": np.full(6, np.nan),
}


@pytest.mark.parametrize("kind", MISSING)
def test_a_column_without_any_value_is_one_class(tmp_path, kind):
    uri = stored(tmp_path / "s", label=MISSING[kind], group=["x", "y"] * 3)
    assert labels_of(uri, "label") == ([None] * 6, 1)
    dataset = ExperimentDataset(uri, encoders=[BatchEncoder(["label", "group"])], seed=0, batch_size=2)
    assert len(dataset.obs_encoders["batch"].classes_) == 2
    assert [part.shape[0] for part in dataset.random_split([0.5, 0.5], stratify="label")] == [3, 3]
    assert dataset.plan(label="label").n_minibatches == 3


@pytest.mark.parametrize("text", [True, False])
def test_a_selection_or_a_page_without_any_value_is_one_class(tmp_path, text):
    values = ["a", "b", None, None, None, None]
    column = values if text else pd.Categorical(values)
    uri = stored(tmp_path / "s", label=column)
    assert labels_of(uri, "label", obs_query=soma.AxisQuery(coords=(slice(2, 5),))) == ([None] * 4, 1)
    assert labels_of(uri, "label") == (values, 3)
    pages = [pa.array(part, pa.string()).dictionary_encode() for part in (values[2:], values[:2], values[2:])]
    frame = FrameBuilder(["label"])
    for page in pages:
        frame.add(pa.table({"label": page}))
    assert frame.finish(np.arange(10))["label"].isna().sum() == 8


def test_nan_in_a_dictionary_is_a_missing_value():
    frame = FrameBuilder(["dose"])
    frame.add(pa.table({"dose": pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 1]), pa.array([0.5, np.nan, 2.0]))}))
    obs = frame.finish(np.arange(4))
    encoder = LabelEncoder("dose")
    encoder.fit(obs)
    assert encoder.classes_.tolist() == [0.5, 2.0, None]
    assert encoder.transform(obs).tolist() == [0, 2, 1, 2]


@pytest.mark.parametrize(
    "values",
    [
        [BIG, BIG + 1, None],
        [BIG + 1, BIG + 2, BIG + 3],
        [2**63, 2**63 + 1, 2**64 - 1],
        [0, 2**64 - 1, None],
        [7, None, 8],
    ],
    ids=str,
)
def test_integers_are_exact_to_64_bits(tmp_path, values, categories):
    """They are not compared as float64, in which neighbours above 2**53 are equal."""
    column = pd.array(values, dtype="UInt64") if None in values else np.array(values, np.uint64)
    uri = stored(tmp_path / "s", number=column)
    assert labels_of(uri, "number") == (values, 3)
    obs = pd.DataFrame({"number": column})
    for encoder in (BatchEncoder(["number"]), categories(["number"], "batch")):
        encoder.fit(obs)
        texts = ["<missing>" if value is None else str(value) for value in values]
        assert encoder.inverse_transform(encoder.transform(obs)).tolist() == texts


def test_integers_of_other_types_are_looked_up_by_their_value():
    encoder = LabelEncoder("k", handle_unknown="use_encoded_value", unknown_value=-1)
    encoder.fit(pd.DataFrame({"k": np.array([1, 2**63 - 1], np.int64)}))
    assert encoder.transform(pd.DataFrame({"k": np.array([1, 2**63, 2**63 - 1], np.uint64)})).tolist() == [0, -1, 1]
    encoder.fit(pd.DataFrame({"k": np.array([1, 2**63], np.uint64)}))
    assert encoder.transform(pd.DataFrame({"k": np.array([-1, 1], np.int64)})).tolist() == [-1, 0]


def test_the_text_none_and_a_missing_value_are_two_classes(tmp_path):
    uri = stored(tmp_path / "s", drug=["None", None, "x", "<missing>"])
    dataset = ExperimentDataset(uri, encoders=[BatchEncoder(["drug"])], shuffle=False)
    (minibatch,) = dataset
    encoder = dataset.obs_encoders["batch"]
    assert encoder.inverse_transform(minibatch.obs[:, 0]).tolist() == ["None", "<missing>", "x", "<<missing>>"]
    assert encoder.is_missing[minibatch.obs[:, 0]].tolist() == [False, True, False, False]


def test_a_column_that_is_named_twice_is_read_once(tmp_path):
    """An encoder whose ``columns`` repeat a name gets that column once, and fits."""
    uri = stored(tmp_path / "s", drug=["b", "a", None])
    dataset = ExperimentDataset(uri, encoders=[BatchEncoder(["drug", "drug"])], shuffle=False, batch_size=3)
    (minibatch,) = dataset
    assert dataset.obs_encoders["batch"].inverse_transform(minibatch.obs[:, 0]).tolist() == [
        "bb",
        "aa",
        "<missing><missing>",
    ]


def test_a_label_with_the_text_none_is_a_label(categories):
    """With a category for unlabelled cells, only cells without a value are in it."""
    obs = pd.DataFrame({"label": ["None", None, "T cell", "Unknown"]})
    labels = categories(["label"], "labels", other="Unknown")
    labels.fit(obs)
    assert labels.categories == ["None", "T cell", "Unknown"]
    assert labels.transform(obs).tolist() == [0, 2, 1, 2]
    known = categories(["label"], "labels", known=["None", "T cell", "Unknown"], other="Unknown")
    known.fit(obs.iloc[1:])
    assert known.transform(obs.iloc[1:]).tolist() == [2, 1, 2]


@pytest.mark.parametrize("trained", [["None", None, "x"], [None, "x"], ["None", "x"], ["<missing>", "x"]], ids=str)
@pytest.mark.parametrize("column", [["None", "x"], [None, "x"], ["<missing>", "x"]], ids=str)
def test_categories_of_a_reference_keep_missing_values_and_texts_apart(trained, column, categories):
    """A value has the code of the reference's value, or is an error, for any other content of the two data sets."""
    reference = categories(["batch"], "batch")
    reference.fit(pd.DataFrame({"batch": trained}))
    codes = dict(zip(trained, reference.transform(pd.DataFrame({"batch": trained})), strict=True))
    obs = pd.DataFrame({"batch": column})
    query = categories(["batch"], "batch", known=reference.categories)
    if set(column) <= set(trained):
        query.fit(obs)
        assert query.transform(obs).tolist() == [codes[value] for value in column]
    else:
        with pytest.raises(EncodeError, match="1 categories are not among"):
            query.fit(obs)


@pytest.mark.parametrize("classes", [[1, 2**63], [2**64 - 1, 2**63, None], [2**53 + 1, 2**53, np.nan]], ids=str)
def test_given_classes_are_exact(classes):
    """Not in one common type, which for integers on both sides of 2**63 may be float64; NaN is the missing value."""
    values = [None if value != value else value for value in classes]
    encoder = LabelEncoder("k", classes=classes)
    assert encoder.classes_.tolist() == values
    obs = pd.DataFrame({"k": pd.array(values, dtype="UInt64")})
    assert encoder.transform(obs).tolist() == list(range(len(values)))


@pytest.mark.parametrize("classes", [[7, -1, 2**63], [7, 2**64, 0]], ids=str)
def test_given_classes_may_be_any_integers(classes):
    """Also those that no type of 64 bits holds together."""
    encoder = LabelEncoder("k", classes=classes, handle_unknown="use_encoded_value", unknown_value=-5)
    assert encoder.classes_.tolist() == classes
    assert encoder.transform(pd.DataFrame({"k": np.array([8, 7])})).tolist() == [-5, 0]


def test_a_code_that_int64_cannot_hold_is_an_error(tmp_path):
    """Not another number, which the same bits are as int64."""

    class Same(Encoder):
        name, columns = "same", ("value",)

        def fit(self, obs): ...

        def transform(self, obs):
            return obs["value"].to_numpy()

        def inverse_transform(self, codes):
            return codes

    uri = stored(tmp_path / "s", value=np.array([1, 2**63], np.uint64))
    with pytest.raises(EncodeError, match=f"transform returned the code {2**63}; the obs of a minibatch is int64"):
        ExperimentDataset(uri, encoders=[Same()])


def test_a_gene_without_a_name_has_no_text(tmp_path):
    """The text "None" selects the gene of that name, or is an error."""
    names = pd.array(["A", None, "None", "B"], dtype=pd.ArrowDtype(pa.large_string()))
    unnamed = pd.array([None] * 4, dtype=pd.ArrowDtype(pa.large_string()))
    var = pd.DataFrame({"feature_name": names, "unnamed": unnamed})
    uri = write_experiment(tmp_path / "s", addressed(3, 4), var=var)
    dataset = ExperimentDataset(uri, seed=0)
    assert dataset.gene_names().tolist() == ["A", None, "None", "B"]
    assert dataset.select_genes(["None"]).var_joinids.tolist() == [2]
    assert dataset.gene_names("unnamed").tolist() == [None] * 4
    with pytest.raises(SelectionError, match="None"):
        dataset.select_genes(["None"], var_column="unnamed")


def test_the_filter_of_a_message_takes_any_name_of_a_column(tmp_path):
    uri = stored(tmp_path / "s", **{"cell type": ["a", None]})
    with pytest.warns(UserWarning, match="column 'cell type' has no value for 1 of 2 cells") as caught:
        ExperimentDataset(uri, obs_column_names=["cell type"])
    obs_query = str(caught[0].message).split('obs_query="')[1].split('"')[0]
    assert ExperimentDataset(uri, obs_column_names=["cell type"], obs_query=obs_query).shape[0] == 1


def test_a_class_of_cells_without_a_label_is_announced(tmp_path):
    uri = stored(tmp_path / "s", label=["a", None, "b", None])
    with pytest.warns(UserWarning, match="column 'label' has no value for 2 of 4 cells") as caught:
        ExperimentDataset(uri, obs_column_names=["label"])
    assert caught[0].filename == __file__
    dataset = ExperimentDataset(uri, obs_column_names=["label"], obs_query="label != None", shuffle=False)
    assert next(iter(dataset)).obs[:, 0].tolist() == [0, 1]
    ignored = ExperimentDataset(
        uri, encoders=[LabelEncoder("label", handle_unknown="use_encoded_value", unknown_value=-100)], shuffle=False
    )
    codes = next(iter(ignored)).obs[:, 0]
    assert codes.tolist() == [0, -100, 1, -100]
    loss = torch.nn.functional.cross_entropy(torch.zeros(4, 2), codes)
    assert torch.isclose(loss, torch.tensor(2.0).log())


NUMBERS = "column 'value' holds numbers, and obs has the codes"


@pytest.mark.parametrize(
    ("values", "announced"),
    [
        ([69, 77, 36], True),
        ([0.0, 1.0, 2.0], True),
        ([0, 2, 1], False),
        ([True, False, True], False),
        (["7", "8", "9"], False),
    ],
    ids=str,
)
def test_numbers_that_become_codes_are_announced(tmp_path, values, announced):
    uri = stored(tmp_path / "s", value=values)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = ExperimentDataset(uri, obs_column_names=["value"], shuffle=False)
        ExperimentDataset(uri, encoders=[LabelEncoder("value")])
    assert [str(one.message).startswith(NUMBERS) for one in caught] == [True] * announced
    (minibatch,) = dataset
    assert dataset.obs_encoders["value"].inverse_transform(minibatch.obs[:, 0]).tolist() == values


def test_numbers_of_an_encoder_are_refused_with_the_reason(tmp_path):
    class Age(Encoder):
        name, columns = "age", ("value",)

        def fit(self, obs): ...

        def transform(self, obs):
            return obs["value"] / 2

        def inverse_transform(self, codes):
            return codes

    uri = stored(tmp_path / "s", value=[1, 2, 3])
    with pytest.raises(
        EncodeError, match="The obs of a minibatch is int64: return codes, and numbers from inverse_tra"
    ):
        ExperimentDataset(uri, encoders=[Age()])


@pytest.mark.parametrize("kind", [LabelEncoder, lambda column: BatchEncoder([column])])
def test_an_encoder_of_two_datasets_has_the_same_codes_in_both(tmp_path, kind):
    """If it were fitted to the test cells, it would decode the codes of the training cells to other labels."""
    uri = stored(tmp_path / "s", label=["a", "b", "c", "c"])
    encoder = kind("label")
    datasets = [
        ExperimentDataset(uri, encoders=[encoder], obs_query=query, shuffle=False) for query in (None, "label != 'a'")
    ]
    codes = [next(iter(dataset)).obs[:, 0].tolist() for dataset in datasets]
    assert codes == [[0, 1, 2, 2], [1, 2, 2]]
    decoded = [
        next(iter(dataset.obs_encoders.values())).inverse_transform(found).tolist()
        for dataset, found in zip(datasets, codes, strict=True)
    ]
    assert decoded == [["a", "b", "c", "c"], ["b", "c", "c"]]


@pytest.mark.parametrize("encoder", [LabelEncoder("label"), BatchEncoder(["label"])])
def test_classes_cannot_be_changed_in_place(encoder):
    """A user who renames labels does so in a copy; codes decode to what they were made of."""
    encoder.fit(pd.DataFrame({"label": ["a", "b"]}))
    with pytest.raises(ValueError, match="read-only"):
        encoder.classes_[0] = "renamed"
    labels = encoder.inverse_transform([0, 1])
    labels[0] = "renamed"
    assert encoder.inverse_transform([0, 1]).tolist() == ["a", "b"]


def test_an_encoder_that_a_user_has_fitted_keeps_its_codes(tmp_path):
    """Such an encoder may know all labels of a study; an unknown label is an error that says how to mend it."""
    uri = stored(tmp_path / "s", label=["a", "b", "c", "c"])
    encoder = LabelEncoder("label")
    encoder.fit(pd.DataFrame({"label": ["c", "b", "a", "0"]}))
    dataset = ExperimentDataset(uri, encoders=[encoder], shuffle=False)
    assert next(iter(dataset)).obs[:, 0].tolist() == [1, 2, 3, 3]
    few = LabelEncoder("label")
    few.fit(pd.DataFrame({"label": ["c", "b"]}))
    with pytest.raises(EncodeError, match="was not fitted on 'a'.*make a new encoder"):
        ExperimentDataset(uri, encoders=[few])


def test_missing_labels_are_announced_where_they_are(tmp_path):
    """Not for a dataset that has none, though its encoder has a class for them."""
    uri = stored(tmp_path / "s", label=["a", None, "b"])
    encoder = LabelEncoder("label")
    with pytest.warns(UserWarning, match="no value for 1 of 3 cells"):
        ExperimentDataset(uri, encoders=[encoder])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ExperimentDataset(uri, encoders=[encoder], obs_query="label != None")
