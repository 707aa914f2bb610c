"""Sets of cells with matched controls: an epoch of sets keeps the guarantees of an epoch of cells."""

import json
import pickle
import re
import threading
from collections import Counter

import numpy as np
import pytest
import torch

import cellfeed
from cellfeed import ExperimentDataset, LabelEncoder
from cellfeed.errors import PlanError, ReadError, SelectionError, StateError
from cellfeed.transforms import Log1p
from tests.support.sources import KINDS, Cells
from tests.support.stores import addressed, labelled_obs, write_experiment

CELLS = Cells.make(100)
SETS = {"by": ["donor", "label"], "set_size": 4, "control": "type 0", "sets_per_batch": 3}
"""Each donor has 6 or 7 cells of each label."""


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return CELLS.write_soma(tmp_path_factory.mktemp("sets") / "cells.soma")


def make(source, arguments=SETS, **parameters):
    source = source if isinstance(source, dict) else {"experiment": source}
    return ExperimentDataset(**source, **{"seed": 5, "joinids": True, **parameters}).group_batches(**arguments)


def received(minibatches):
    """Joinids of the cells and of their controls that are no repetitions."""
    parts = [(m.joinids[m.mask], m.control_joinids[m.mask]) for m in minibatches]
    return [torch.cat(part).tolist() for part in zip(*parts, strict=True)]


def rows_of(cells, joinids):
    """The rows of the cells, shape (n_sets, set_size, n_vars)."""
    return np.array([[cells.rows[joinid] for joinid in row] for row in joinids.tolist()])


def tables(minibatches):
    return [[part.tolist() for part in minibatch.as_dict().values()] for minibatch in minibatches]


PERTURBED = [joinid for joinid, label in zip(CELLS.joinids, CELLS.obs["label"], strict=True) if label != "type 0"]


@pytest.mark.parametrize("kind", KINDS)
def test_sets_have_the_rows_and_labels_of_their_cells(kind, tmp_path):
    sets = make(KINDS[kind](CELLS, tmp_path))
    obs = CELLS.obs.set_index(CELLS.joinids)
    minibatches = list(sets)
    assert len(minibatches) == len(sets)
    for minibatch in minibatches:
        n_sets = len(minibatch.groups)
        assert minibatch.X.shape == minibatch.control_X.shape == (n_sets, 4, CELLS.X.shape[1])
        for X, joinids in ((minibatch.X, minibatch.joinids), (minibatch.control_X, minibatch.control_joinids)):
            assert (X.numpy() == rows_of(CELLS, joinids)).all()
        donors, labels = (
            sets.encoders[name].inverse_transform(minibatch.groups[:, k]) for k, name in enumerate(SETS["by"])
        )
        for k in range(n_sets):
            own, controls = obs.loc[minibatch.joinids[k].tolist()], obs.loc[minibatch.control_joinids[k].tolist()]
            assert set(own["donor"]) == set(controls["donor"]) == {donors[k]}
            assert set(own["label"]) == {labels[k]}
            assert set(controls["label"]) == {"type 0"}
    assert sorted(received(minibatches)[0]) == PERTURBED


def test_controls_match_cell_by_cell_in_other_columns(uri):
    sets = make(uri, {**SETS, "by": "label", "match": ["donor"]})
    obs = CELLS.obs.set_index(CELLS.joinids)
    cells, controls = received(sets)
    assert list(obs.loc[cells, "donor"]) == list(obs.loc[controls, "donor"])
    assert sorted(cells) == PERTURBED
    assert any(len(set(obs.loc[m.joinids[k].tolist(), "donor"])) > 1 for m in sets for k in range(len(m.groups)))


def test_epochs_follow_each_other_and_depend_on_the_seed_only(uri):
    sets = make(uri)
    first, second = tables(sets), tables(sets)
    assert first != second
    assert sets.epoch == 2
    again = make(uri, memory_budget="1 GiB", use_eager_fetch=False)
    assert tables(again) == first
    again.set_epoch(1)
    assert tables(pickle.loads(pickle.dumps(again))) == second
    assert tables(make(uri, seed=6)) != first


def test_a_local_copy_gives_the_same_sets(tmp_path):
    source = KINDS["local copy"](CELLS, tmp_path)
    sets, without = make(source), make(source["experiment"])
    assert tables(sets) == tables(without)
    assert sets._engine.media.copy is not None


def test_cells_in_order_are_not_shuffled(uri):
    sets = make(uri, {**SETS, "by": "label", "match": [], "set_size": 33}, shuffle=False)
    (minibatch,) = list(sets)
    assert minibatch.joinids.tolist() == [PERTURBED[0::2], PERTURBED[1::2]]


@pytest.mark.parametrize("rank_remainder", ["drop", "uneven", "pad"])
def test_ranks_share_the_sets(uri, rank_remainder):
    everything = received(make(uri))[0]
    of_rank = [
        make(uri, rank=rank, world_size=4, rank_remainder=rank_remainder) for rank in range(4)
    ]  # 20 sets of 5 donors, 2 labels and 2 sets each
    cells = [cell for sets in of_rank for cell in received(sets)[0]]
    assert sorted(cells) == sorted(everything)
    three = [make(uri, rank=rank, world_size=3, rank_remainder=rank_remainder) for rank in range(3)]
    sizes = [sum(len(minibatch.mask) for minibatch in sets) for sets in three]
    assert sizes == {"drop": [6, 6, 6], "uneven": [6, 7, 7], "pad": [7, 7, 7]}[rank_remainder]
    counts = Counter(cell for sets in three for cell in received(_rewound(sets))[0])
    assert max(counts.values()) == 1
    assert len(counts) == len(PERTURBED) or rank_remainder == "drop"


def _rewound(sets):
    sets.set_epoch(0)
    return sets


def test_a_state_resumes_at_every_step(uri):
    whole = make(uri)
    expected = [tables([minibatch])[0] for _ in range(2) for minibatch in whole]
    for n in range(len(expected)):
        before = make(uri)
        seen = []
        while len(seen) < n:
            for minibatch in before:
                seen += tables([minibatch])
                if len(seen) == n:
                    break
        state = json.loads(json.dumps(before.state_dict()))
        after = make(uri)
        after.load_state_dict(state)
        rest = [table for _ in range(2) for table in tables(after)]
        assert (seen + rest)[: len(expected)] == expected


@pytest.mark.parametrize("n_steps", [0, 1, 2])
def test_a_state_resumes_on_another_number_of_ranks(uri, n_steps):
    cells, states = [], []
    for rank in range(2):
        sets = make(uri, rank=rank, world_size=2)
        iterator = iter(sets)
        cells += received([next(iterator) for _ in range(n_steps)])[0] if n_steps else []
        states.append(sets.state_dict())
    for rank in range(5):
        sets = make(uri, rank=rank, world_size=5, rank_remainder="drop")
        sets.load_state_dict(states[0])
        cells += [cell for minibatch in sets for cell in minibatch.joinids[minibatch.mask].tolist()]
    counts = Counter(cells)
    assert max(counts.values()) == 1
    n_left_out = (20 - 6 * n_steps) % 5 if n_steps else 0
    assert len(PERTURBED) - len(counts) <= 4 * n_left_out


@pytest.mark.parametrize(
    ("name", "arguments", "parameters"),
    [
        ("set_size", {"set_size": 5}, {}),
        ("sets_per_batch", {"sets_per_batch": 4}, {}),
        ("match", {"match": []}, {}),
        ("seed", {}, {"seed": 6}),
        ("obs_joinids", {}, {"obs_query": "number > 10"}),
        ("remainder", {"remainder": "drop"}, {}),
    ],
)
def test_the_state_of_other_sets_is_refused(uri, name, arguments, parameters):
    state = make(uri).state_dict()
    with pytest.raises(StateError, match=name):
        make(uri, {**SETS, **arguments}, **parameters).load_state_dict(state)


def test_the_state_of_a_dataset_is_refused(uri):
    dataset = ExperimentDataset(uri, seed=5)
    with pytest.raises(StateError, match="by=None"):
        make(uri).load_state_dict(dataset.state_dict())
    with pytest.raises(StateError, match="obs_joinids|row_extent"):
        dataset.load_state_dict(make(uri).state_dict())


def test_parts_of_a_split_have_the_codes_of_the_dataset(uri):
    dataset = ExperimentDataset(uri, seed=5, obs_column_names=["label"])
    parts = dataset.random_split([0.5, 0.5], seed=1)
    for part in (*parts, dataset.split_by("label", {"a": ["type 0", "type 2"], "b": ["type 1"]})["a"]):
        sets = part.group_batches(by="label", set_size=4, control="type 0", few_controls="repeat")
        assert sets.encoders["label"] is dataset.obs_encoders["label"]


def test_cells_without_a_class_are_in_no_set(uri):
    encoder = LabelEncoder(
        "label", classes=["type 0", "type 2"], handle_unknown="use_encoded_value", unknown_value=-100
    )
    expected = [joinid for joinid, label in zip(CELLS.joinids, CELLS.obs["label"], strict=True) if label == "type 2"]
    assert sorted(received(make(uri, encoders=[encoder]))[0]) == expected
    matched = make(uri, {**SETS, "by": "donor", "control": "donor 0", "match": ["label"], "few_controls": "repeat"})
    everything = received(matched)[0]
    assert len(everything) == 80
    few = make(
        uri,
        {**SETS, "by": "donor", "control": "donor 0", "match": ["label"], "few_controls": "repeat"},
        encoders=[encoder],
    )
    assert sorted(received(few)[0]) == sorted(
        joinid for joinid in everything if CELLS.obs["label"][(joinid - 2) // 3] != "type 1"
    )


# Values


def test_a_transform_and_a_type_apply_to_cells_and_controls(uri):
    plain, changed = list(make(uri)), list(make(uri, transform=Log1p()))
    half = list(make(uri, X_dtype="bfloat16"))
    for a, b, c in zip(plain, changed, half, strict=True):
        assert torch.allclose(a.X.log1p(), b.X)
        assert torch.allclose(a.control_X.log1p(), b.control_X)
        assert torch.equal(a.X.bfloat16(), c.X)
        assert torch.equal(a.control_X.bfloat16(), c.control_X)


def test_selected_genes_are_columns_in_their_order(uri):
    dataset = ExperimentDataset(uri, seed=5, joinids=True)
    few = dataset.select_genes(["G5", "G2"]).group_batches(**SETS)
    for a, b in zip(make(uri), few, strict=True):
        assert torch.equal(a.X[..., [5, 2]], b.X)


def test_large_and_fractional_values_stay_exact(tmp_path):
    X = addressed(60, 12)
    X.data[::3] = 3
    X.data[1::7] += 0.5
    X.data[2::11] = 70_000
    cells = Cells.make(60, X=X)
    for minibatch in make(cells.write_soma(tmp_path / "cells.soma"), {**SETS, "by": "label", "few_controls": "repeat"}):
        for part, joinids in ((minibatch.X, minibatch.joinids), (minibatch.control_X, minibatch.control_joinids)):
            assert (part.numpy() == rows_of(cells, joinids)).all()


def test_a_row_that_differs_from_obs_is_found(tmp_path):
    X = addressed(60, 12)
    obs = labelled_obs(60).assign(nnz=np.diff(X.indptr), raw_sum=np.asarray(X.sum(axis=1)).ravel())
    obs.loc[41, "nnz"] += 1
    sets = make(write_experiment(tmp_path / "cells.soma", X, obs), {**SETS, "by": "label"})
    with pytest.raises(ReadError, match="41"):
        next(iter(sets))


def test_no_thread_outlives_an_iterator(uri):
    def threads():
        return {thread for thread in threading.enumerate() if thread.name.startswith("cellfeed")}

    before = threads()
    sets = make(uri)
    for minibatch in sets:
        assert minibatch.X.shape
    assert threads() <= before
    iterator = iter(sets)
    next(iterator)
    iterator.close()
    assert threads() <= before


def test_the_plan_says_what_an_epoch_has(uri):
    sets = make(uri)
    plan = sets.plan()
    minibatches = list(sets)
    assert plan.n_minibatches == len(minibatches)
    assert plan.n_sets == sum(len(minibatch.mask) for minibatch in minibatches)
    assert plan.n_padded == sum(int((~minibatch.mask).sum()) for minibatch in minibatches)
    assert plan.n_obs == len(PERTURBED)
    assert plan.n_controls == len(set(received(minibatches)[1]))
    assert "20 of 4 cells, in 10 groups" in str(plan)
    assert str(sets) == str(sets.plan())
    stats = sets.stats()
    assert (stats.n_obs, stats.n_minibatches) == (len(PERTURBED), len(minibatches))
    assert stats.nnz > 0
    assert stats.elapsed_s >= stats.consumer_wait_s >= stats.first_wait_s > 0


# Errors, before X is read

ERRORS = [
    ({"set_size": 0}, PlanError, "set_size=0 must be an integer of at least 1"),
    ({"set_size": "many"}, PlanError, "set_size='many' must"),
    ({"sets_per_batch": -1}, PlanError, "sets_per_batch=-1 must"),
    ({"by": []}, PlanError, "by=[] must name columns"),
    ({"by": ["label", "label"]}, PlanError, "'label' twice"),
    ({"by": ["donor", "lable"]}, SelectionError, "obs has no column 'lable'; did you mean 'label'?"),
    ({"match": ["dono"]}, SelectionError, "obs has no column 'dono'"),
    ({"match": ["donor", "label"]}, PlanError, "give match=['donor']"),
    ({"control": "type0"}, SelectionError, "control='type0' is not a label of the column 'label'"),
    ({"control": "type0"}, SelectionError, "the nearest are 'type 0'"),
    ({"control": "zzz"}, SelectionError, "there are 'type 0', 'type 1', 'type 2'"),
    ({"remainder": "keep"}, PlanError, "remainder='keep' must be one of 'pad', 'drop'"),
    ({"few_controls": None}, PlanError, "few_controls=None must be one of 'error', 'repeat', 'drop'"),
    (
        {"set_size": 50, "remainder": "drop", "few_controls": "repeat"},
        PlanError,
        "no group has 50 cells, the largest has 7",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), ERRORS)
def test_an_invalid_argument_is_named(uri, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make(uri, {**SETS, **arguments})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"return_sparse_X": True}, "return_sparse_X=True: sets are dense"),
        ({"obs_values": ["number"]}, "yields X only"),
        ({"obs_query": "label == 'type 0'"}, "no perturbed cells"),
        ({"memory_budget": "20 KiB"}, "memory_budget"),
    ],
)
def test_a_dataset_that_has_no_sets_is_refused(uri, parameters, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        make(uri, **parameters)


def test_a_part_without_controls_is_refused(uri):
    dataset = ExperimentDataset(uri, seed=5, obs_column_names=["label"])
    part = dataset.split_by("label", {"a": ["type 0"], "b": ["type 1", "type 2"]})["b"]
    with pytest.raises(PlanError, match="no cell of the dataset has this label"):
        part.group_batches(by="label", set_size=4, control="type 0")


def test_a_resampled_dataset_is_refused(uri):
    resampled = ExperimentDataset(uri, seed=5, batch_size=5).resample(balance="label")
    with pytest.raises(PlanError, match="group_batches"):
        resampled.group_batches(**SETS)


def test_too_few_controls_follow_the_rule(tmp_path):
    """Donor 0 has 2 controls, donor 4 has none, and the others have 6 or 7."""
    obs = labelled_obs(100)
    controls = np.flatnonzero(obs["label"] == "type 0")
    obs.loc[controls[(controls >= 6) & (controls < 20) | (controls >= 80)], "label"] = "type 1"
    uri = write_experiment(tmp_path / "cells.soma", CELLS.X, obs, joinids=CELLS.joinids)
    with pytest.raises(PlanError, match=r"up to 4 different controls with donor='donor 4', and 0 .* 1 other comb"):
        make(uri)
    with pytest.raises(PlanError, match=r"donor='donor 4', and 0 cells"):
        make(uri, {**SETS, "few_controls": "repeat"})
    dropped = make(uri, {**SETS, "few_controls": "drop"})
    expected = [joinid for joinid in CELLS.joinids[20:80] if obs["label"][(joinid - 2) // 3] != "type 0"]
    assert sorted(received(dropped)[0]) == expected
    repeated = make(uri, {**SETS, "few_controls": "repeat"}, obs_query="donor != 'donor 4'")
    cells, of_cells = received(repeated)
    assert len(cells) == sum(obs["label"][:80] != "type 0")
    counts = Counter(control for control in of_cells if control < CELLS.joinids[20])
    assert len(counts) == 2
    assert max(counts.values()) - min(counts.values()) <= 1


def test_cells_that_do_not_fit_in_memory_are_refused(uri, monkeypatch):
    """With all genes before X is read, and with some as soon as it is seen: obs does not count their values."""
    monkeypatch.setattr("cellfeed.loader.held_rows.HELD_SHARE", 200 / (1 << 30))
    with pytest.raises(PlanError, match=r"100 cells x 12 genes take about .* memory_budget=1 GiB; .*memory_budget='"):
        make(uri, memory_budget="1 GiB")
    few = ExperimentDataset(uri, seed=0, memory_budget="1 GiB").select_genes([f"G{k}" for k in range(11)])
    sets = few.group_batches(**SETS)
    with pytest.raises(PlanError, match=r"100 cells x 11 genes take about .* memory_budget=1 GiB"):
        next(iter(sets))


def test_sets_of_the_real_cells():
    dataset = ExperimentDataset(cellfeed.datasets.pbmc700(), obs_column_names=["phase"], seed=0, joinids=True)
    sets = dataset.group_batches(
        by=["bulk_labels", "phase"], set_size=16, control="G1", few_controls="repeat", remainder="pad"
    )
    cells, controls = received(sets)
    frame = dataset.obs_frame(cells, ["bulk_labels", "phase"])
    assert (frame["phase"] != "G1").all()
    assert list(frame["bulk_labels"]) == list(dataset.obs_frame(controls, ["bulk_labels"])["bulk_labels"])
    assert len(cells) == 199
