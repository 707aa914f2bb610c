"""Bad input: a clear error before the first read of X, which names the argument and what to do."""

import numpy as np
import pytest
import tiledbsoma as soma

from cellfeed import ExperimentDataPipe, ExperimentDataset, LabelEncoder
from cellfeed.errors import CellfeedError, EncodeError, PlanError, SelectionError
from tests.support.stores import addressed, write_experiment


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"measurement_name": "RNAA"}, SelectionError, "measurement_name='RNAA' .* did you mean 'RNA'"),
        ({"X_name": "row"}, SelectionError, "X_name='row' is not a layer of X; did you mean 'raw'"),
        ({"obs_column_names": ["labell"]}, SelectionError, "no column 'labell'.*did you mean 'label'"),
        ({"obs_column_names": "label"}, SelectionError, r"must be a list of names: \['label'\]"),
        ({"obs_column_names": ["label", "label"]}, EncodeError, "two encoders have the name 'label'"),
        (
            {"encoders": [LabelEncoder("cell_typ")]},
            SelectionError,
            "'cell_typ', which encoder 'cell_typ' needs",
        ),
        ({"encoders": ["label"]}, EncodeError, "'label' is not a cellfeed.Encoder"),
        (
            {"obs_query": soma.AxisQuery(value_filter="label ==")},
            SelectionError,
            "obs_query: value_filter=.label ==. is not an expression",
        ),
        (
            {"obs_query": soma.AxisQuery(value_filter="nope == 3")},
            SelectionError,
            "obs_query: .* obs has no column .nope.",
        ),
        ({"var_query": soma.AxisQuery(value_filter="a b c")}, SelectionError, "var_query: .*is not an expression"),
        ({"obs_query": 7}, SelectionError, "obs_query=7 must be a value filter as text, a dict"),
        ({"batch_size": 0}, PlanError, "batch_size=0 must be an integer of at least 1"),
        ({"batch_size": 2.5}, PlanError, "batch_size=2.5"),
        ({"batch_size": None}, PlanError, "batch_size=None"),
        ({"soma_chunk_size": 0}, PlanError, "soma_chunk_size=0 must be .* or None to have it planned"),
        ({"soma_chunk_size": -3}, PlanError, "soma_chunk_size=-3"),
        ({"shuffle_chunk_count": -1}, PlanError, "shuffle_chunk_count=-1"),
        ({"shuffle": "yes"}, PlanError, "shuffle='yes' must be True or False"),
        ({"seed": -1}, PlanError, "seed=-1 must be"),
        ({"memory_budget": "2 gallons"}, PlanError, "memory_budget='2 gallons' is not an amount of memory"),
        ({"memory_budget": 0}, PlanError, "memory_budget=0 must be at least 1 byte"),
        ({"memory_budget": None}, PlanError, "memory_budget=None must be a number of bytes"),
        ({"rank_remainder": "keep"}, PlanError, "rank_remainder='keep' must be one of 'drop', 'pad', 'uneven'"),
        ({"rank_remainder": "pad", "drop_last": True}, PlanError, "contradict"),
        ({"rank": 1}, PlanError, "rank=1 and world_size=None go together"),
        ({"rank": 2, "world_size": 2}, PlanError, "rank=2 of 2 is impossible"),
        ({"retry_deadline_s": -1}, PlanError, "retry_deadline_s=-1 must be a number of seconds from 0"),
        ({"retry_deadline_s": float("nan")}, PlanError, "retry_deadline_s=nan must be"),
        ({"retry_deadline_s": "long"}, PlanError, "retry_deadline_s='long' must be"),
        ({"context": soma.SOMATileDBContext()}, None, ""),
    ],
)
def test_arguments(store, arguments, error, text):
    if error is None:
        assert ExperimentDataset(store, **arguments).shape == (100, 30)
        return
    with pytest.raises(error, match=text):
        ExperimentDataset(store, **arguments)


@pytest.mark.parametrize("cls", [ExperimentDataset, ExperimentDataPipe])
def test_all_errors_are_ours_and_value_errors(store, cls):
    with pytest.raises(CellfeedError):
        cls(store, batch_size=0)
    with pytest.raises(ValueError, match="batch_size"):
        cls(store, batch_size=0)


def test_a_budget_that_holds_no_row_block_says_what_would_do(tmp_path):
    uri = write_experiment(tmp_path / "wide", addressed(600, 400), extent=300, capacity=5000)
    with pytest.raises(
        PlanError, match=r"memory_budget of 1 MiB is too small for a chunk of 300 cells.*give at least (\S+ \wiB)"
    ) as caught:
        ExperimentDataset(uri, memory_budget="1 MiB", batch_size=8)
    enough = str(caught.value).split("give at least ")[1].split(",")[0]
    assert ExperimentDataset(uri, memory_budget=enough, batch_size=8).plan().chunks_per_block >= 1


def test_what_is_no_experiment(tmp_path, store):
    with pytest.raises(SelectionError, match=r"experiment='.*nowhere' is not a SOMA experiment that can be opened"):
        ExperimentDataset(str(tmp_path / "nowhere"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(SelectionError, match=r"experiment='.*folder' is not a SOMA experiment"):
        ExperimentDataset(tmp_path / "folder")
    with pytest.raises(SelectionError, match="is a NoneType, not a tiledbsoma.Experiment"):
        ExperimentDataset(None)
    with pytest.raises(SelectionError, match="is a DataFrame, not a tiledbsoma.Experiment"):
        ExperimentDataset(f"{store}/obs")


def test_a_collection_names_its_experiments(tmp_path):
    uri = str(tmp_path / "census")
    with soma.Collection.create(uri) as census:
        census.add_new_collection("homo_sapiens", soma.Experiment)
    with (
        soma.open(uri) as census,
        pytest.raises(SelectionError, match="open one of its members: 'homo_sapiens'"),
    ):
        ExperimentDataset(census)


def test_closed_or_writable_experiments(store):
    experiment = soma.open(store)
    query = experiment.axis_query("RNA")
    experiment.close()
    with pytest.raises(SelectionError, match="is closed; open it with"):
        ExperimentDataset(experiment)
    with pytest.raises(SelectionError, match="is closed"):
        ExperimentDataset.from_query(query)
    with soma.open(store, "w") as writable, pytest.raises(SelectionError, match="open for writing"):
        ExperimentDataset(writable)
    with soma.open(store) as experiment, pytest.raises(SelectionError, match="context= goes with a URI"):
        ExperimentDataset(experiment, context=soma.SOMATileDBContext())


def test_a_dense_layer(tmp_path):
    import pyarrow as pa

    uri = write_experiment(tmp_path / "dense", addressed(4, 3))
    with soma.open(uri, "w") as experiment:
        layers = experiment.ms["RNA"].X
        layers.add_new_dense_ndarray("scaled", type=pa.float32(), shape=(4, 3))
    with pytest.raises(SelectionError, match="X_name='scaled' is a DenseNDArray; cellfeed reads sparse layers"):
        ExperimentDataset(uri, X_name="scaled")


def test_a_layer_that_does_not_belong_to_obs(tmp_path):
    import pyarrow as pa

    uri = write_experiment(tmp_path / "short", addressed(9, 3))
    with soma.open(uri, "w") as experiment:
        experiment.ms["RNA"].X.add_new_sparse_ndarray("half", type=pa.float32(), shape=(5, 3))
    with pytest.raises(SelectionError, match=r"obs holds soma_joinid 8, outside the layer's shape \(5, 3\)"):
        ExperimentDataset(uri, X_name="half")


def test_from_query_names_what_it_does_not_take(store):
    with soma.open(store) as experiment:
        query = experiment.axis_query("RNA")
        with pytest.raises(PlanError, match="does not take 'batchsize'; did you mean 'batch_size'"):
            ExperimentDataset.from_query(query, batchsize=3)
    with pytest.raises(SelectionError, match="must be a tiledbsoma.ExperimentAxisQuery"):
        ExperimentDataset.from_query(store)


def test_selecting_nothing_is_an_error_unless_it_is_allowed(store):
    nothing = {"obs_query": "number < 0"}
    with pytest.raises(SelectionError, match="obs_query selects nothing: 'number < 0'.*allow_empty=True makes"):
        ExperimentDataset(store, **nothing)
    assert len(ExperimentDataset(store, **nothing, allow_empty=True)) == 0
    with pytest.warns(UserWarning, match="selects nothing; the datapipe is empty") as caught:
        assert len(ExperimentDataPipe(store, **nothing)) == 0
    assert caught[0].filename == __file__
    no_genes = soma.AxisQuery(value_filter="feature_name == 'none'")
    with pytest.raises(SelectionError, match="var_query selects nothing"):
        ExperimentDataset(store, var_query=no_genes)
    dataset = ExperimentDataset(store, var_query=no_genes, batch_size=64, allow_empty=True)
    assert [X.shape for X, _ in dataset] == [(64, 0), (36, 0)]


def test_epochs_and_seeds(store):
    dataset = ExperimentDataset(store)
    for epoch in (-1, 1.5, None):
        with pytest.raises(PlanError, match=f"epoch={epoch} must be an integer"):
            dataset.set_epoch(epoch)
    with pytest.raises(PlanError, match="seed=None"):
        dataset.random_split([1.0], seed=None)
    with pytest.raises(PlanError, match="sum to 0.5; they must sum to 1"):
        dataset.random_split([0.25, 0.25])
    dataset.set_epoch(np.int64(3))


def test_ranks_without_a_common_seed(store, monkeypatch):
    """Each rank would draw another order: cells would be lost and repeated."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PlanError, match="seed=None with world_size=2"):
        iter(ExperimentDataset(store))
    assert len(list(ExperimentDataset(store, seed=1, batch_size=10))) == 5
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(PlanError, match="RANK='x'"):
        len(ExperimentDataset(store, seed=1))


@pytest.mark.parametrize("none", [[], (), np.empty((0, 2))])
def test_an_empty_collection_of_encoders_is_no_encoders(store, none):
    assert ExperimentDataset(store, encoders=none).obs_encoders == {}
