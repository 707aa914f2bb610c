"""The guarantees over every kind of source: the same cells, as a SOMA experiment, as AnnData, and as copies."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiledbsoma as soma
import torch

import cellfeed
from cellfeed import EncodeError, ExperimentDataset, LabelEncoder, ReadError, SelectionError, experiment_dataloader
from tests.support.sources import COPIES, KINDS, Cells
from tests.support.stores import collect

CELLS = Cells.make(100)
N, G = CELLS.X.shape
ALL = CELLS.joinids.tolist()
COLUMNS = ["soma_joinid", "label", "number"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def source(kind: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments of a dataset of the cells."""
    return KINDS[kind](CELLS, tmp_path_factory.mktemp("sources"))


def making(source: dict[str, Any], tmp_path: Path) -> Callable[..., ExperimentDataset]:
    """Make datasets whose epochs have many windows and minibatches; a local copy of a query has a path of its own."""

    def make(**parameters: Any) -> ExperimentDataset:
        defaults = {"obs_column_names": COLUMNS, "seed": 5, "batch_size": 7}
        if parameters.get("shuffle", True):
            defaults |= {"soma_chunk_size": 4, "shuffle_chunk_count": 3}
        arguments = {**source, **defaults, **parameters}
        if "local_copy" in source and {"obs_query", "var_query"} & set(parameters):
            arguments["local_copy"] = tmp_path / f"copy of {len(list(tmp_path.iterdir()))}"
            for _ in ExperimentDataset(**arguments):
                pass
        return ExperimentDataset(**arguments)

    return make


@pytest.fixture
def make(source: dict[str, Any], tmp_path: Path) -> Callable[..., ExperimentDataset]:
    return making(source, tmp_path)


JOINED = {"soma": slice(0, 60), "zarr3": slice(60, N)}
"""The cells of each dataset of a join, by the kind of its source."""


@pytest.fixture(scope="module", params=[*KINDS, "join"])
def joined_or_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def sources(joined_or_kind: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Arguments of a dataset of the cells, or of those of a join."""
    if joined_or_kind != "join":
        return [KINDS[joined_or_kind](CELLS, tmp_path_factory.mktemp("sources"))]
    cells = {kind: Cells(CELLS.X[of], CELLS.obs.iloc[of], CELLS.var, CELLS.joinids[of]) for kind, of in JOINED.items()}
    return [KINDS[kind](own, tmp_path_factory.mktemp("sources")) for kind, own in cells.items()]


@pytest.fixture
def make_any(sources: list[dict[str, Any]], tmp_path: Path) -> Callable[..., Any]:
    """Make a dataset of any kind, or a join of two."""
    makes = [making(source, tmp_path) for source in sources]
    if len(makes) == 1:
        return makes[0]
    return lambda **parameters: cellfeed.join({str(k): make(**parameters) for k, make in enumerate(makes)})


def joinids_of(minibatches: Any) -> list[list[int]]:
    return [minibatch.obs[:, 0].tolist() for minibatch in minibatches]


def flat(minibatches: Any) -> list[int]:
    return list(itertools.chain.from_iterable(joinids_of(minibatches)))


def check_rows(dataset: ExperimentDataset, expected: list[int], genes: Any = slice(None)) -> None:
    """Check that an epoch yields each of the cells once, with its row and its labels."""
    X, obs, _ = collect(dataset, dataset.shape[1])
    if not expected:
        assert len(obs) == 0
        return
    joinids = obs[:, 0]
    assert sorted(joinids.tolist()) == sorted(expected)
    positions = (joinids - 2) // 3
    assert np.array_equal(X, CELLS.X[positions].toarray()[:, genes])
    for k, name in enumerate(["label", "number"], start=1):
        labels = dataset.obs_encoders[name].inverse_transform(obs[:, k])
        assert list(labels) == list(CELLS.obs[name].iloc[positions])


# Coverage and identity


@pytest.mark.parametrize("parameters", [{}, {"shuffle": False}, {"return_sparse_X": True, "batch_size": 40}])
@pytest.mark.parametrize("planned", [False, True])
def test_each_cell_comes_once_with_its_own_row_and_labels(make_any, parameters, planned):
    chunks = {"soma_chunk_size": None, "shuffle_chunk_count": None} if planned else {}
    for _ in range(2):
        check_rows(make_any(**chunks, **parameters), ALL)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("label == 'type 1'", ALL[1::3]),
        ("number > 250 and flag == True", [j for i, j in enumerate(ALL) if i * 10 > 250 and i % 2 == 0]),
        ({"label": ["type 0", "type 2"]}, [j for i, j in enumerate(ALL) if i % 3 != 1]),
        (soma.AxisQuery(coords=(slice(50, 200),)), [j for j in ALL if 50 <= j <= 200]),
        (soma.AxisQuery(coords=(ALL[::7],), value_filter="flag == True"), ALL[::14]),
        ("label == 'none'", []),
    ],
)
def test_queries_select_the_same_cells(make, query, expected):
    dataset = make(obs_query=query, allow_empty=True)
    assert sorted(dataset.obs_joinids.tolist()) == expected
    check_rows(dataset, expected)
    if not expected:
        with pytest.raises(SelectionError, match="obs_query selects nothing"):
            make(obs_query=query)


@pytest.mark.parametrize(
    ("var_query", "genes"),
    [
        ("length >= 500", slice(5, None)),
        ({"length": [500, 300, 100]}, [1, 3, 5]),
        (soma.AxisQuery(coords=([1, 8],)), [1, 8]),
        (soma.AxisQuery(coords=(slice(2, 6),)), slice(2, 7)),
    ],
)
def test_queries_select_the_same_genes(make, var_query, genes):
    check_rows(make(var_query=var_query), ALL, genes)


def test_genes_are_selected_by_name_in_any_order(make):
    dataset = make()
    assert dataset.gene_names().tolist() == [f"G{j}" for j in range(G)]
    chosen = dataset.select_genes(["G7", "G0", "G11"])
    assert chosen.gene_names().tolist() == ["G7", "G0", "G11"]
    check_rows(chosen, ALL, [7, 0, 11])


def test_cells_in_order_are_in_the_order_of_obs_joinids(make):
    dataset = make(shuffle=False)
    assert flat(dataset) == dataset.obs_joinids.tolist()
    loader = cellfeed.inference_dataloader(make(drop_last=True), 9)
    assert torch.cat([joinids for _, _, joinids in loader]).tolist() == dataset.obs_joinids.tolist()


# Ranks


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("rank_remainder", ["drop", "pad", "uneven"])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_an_epoch(make_any, sources, world_size, rank_remainder, drop_last):
    """Coverage, balance and length, for each remainder."""
    if rank_remainder == "pad" and drop_last:
        pytest.skip("they contradict each other")
    n_datasets = len(sources)
    if n_datasets > 1 and rank_remainder == "uneven":
        pytest.skip("a join gives all ranks equal numbers of minibatches")
    parameters = {"rank_remainder": rank_remainder, "drop_last": drop_last, "world_size": world_size}
    ranks = [make_any(rank=rank, **parameters) for rank in range(world_size)]
    for _ in range(2):
        lengths = [len(dataset) for dataset in ranks]
        received = [list(dataset) for dataset in ranks]
        assert [len(minibatches) for minibatches in received] == lengths
        assert rank_remainder == "uneven" or len(set(lengths)) == 1
        masks = [[getattr(m, "mask", torch.ones(len(m.obs), dtype=torch.bool)) for m in of] for of in received]
        cells = [
            int(j) for of, m in zip(received, masks, strict=True) for one, mask in zip(of, m, strict=True)
            for j in one.obs[mask, 0]
        ]  # fmt: skip
        assert len(set(cells)) == len(cells)
        most_left_out = {"drop": n_datasets * (world_size - 1), "pad": 0, "uneven": 0}[rank_remainder]
        if drop_last:
            most_left_out += world_size * 6
        assert N - most_left_out <= len(cells) <= N


def test_cells_of_a_rank_do_not_depend_on_workers(make):
    """As :class:`torch.utils.data.DataLoader` would divide them, without starting processes."""
    dataset = make(rank=1, world_size=2)
    whole = sorted(flat(dataset))
    for num_workers in (2, 3):
        this = make(rank=1, world_size=2)._engine.epochs.begin(num_workers)
        tracker = make(rank=1, world_size=2)._engine.epochs
        medium = dataset._engine.media.get(this.medium)
        found = [
            int(medium.selection.joinid_column[fetch.positions[k]])
            for worker in range(num_workers)
            for window in tracker.work(this, worker)
            for fetch in window.fetches
            for k in range(len(fetch.positions))
        ]
        assert sorted(found) == whole


# Determinism and epochs


def test_orders_depend_on_seed_and_epoch_only(make_any):
    dataset = make_any()
    first, second = joinids_of(dataset), joinids_of(dataset)
    assert first != second
    assert joinids_of(make_any()) == first
    assert joinids_of(make_any(use_eager_fetch=False, memory_budget="64 MiB")) == first
    assert joinids_of(make_any(seed=6)) != first
    dataset.set_epoch(0)
    assert joinids_of(dataset) == first
    assert joinids_of(dataset) == second
    assert joinids_of(pickle.loads(pickle.dumps(make_any()))) == first


# Resume


def test_the_rest_is_equal_at_every_step(make_any):
    dataset = make_any()
    whole, following = joinids_of(dataset), joinids_of(dataset)
    dataset = make_any()
    iterator = iter(dataset)
    for k in range(len(whole) + 1):
        restored = make_any()
        restored.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
        if k < len(whole):
            assert len(restored) == len(whole)
            assert joinids_of(restored) == whole[k:]
        assert joinids_of(restored) == following
        next(iterator, None)


@pytest.mark.parametrize("shuffle", [True, False])
def test_other_ranks_and_workers_lose_and_repeat_nothing(make, shuffle):
    """An epoch that begins on one rank continues on three, and ends on two."""
    dataset = make(shuffle=shuffle)
    iterator = iter(dataset)
    received = flat(itertools.islice(iterator, 4))
    state: Any = dataset.state_dict()
    ranks = [make(rank=rank, world_size=3, rank_remainder="uneven") for rank in range(3)] if shuffle else []
    if shuffle:
        state["fingerprint"]["rank_remainder"] = "uneven"
        for rank in ranks:
            rank.load_state_dict(state)
            received += flat(itertools.islice(iter(rank), 2))
        state = [rank.state_dict() for rank in ranks]
    for rank in range(2):
        last = make(rank=rank, world_size=2, shuffle=shuffle, rank_remainder="uneven" if shuffle else "drop")
        last.load_state_dict(state)
        received += flat(last)
    assert len(set(received)) == len(received)
    assert len(received) == N if shuffle else len(received) >= N - 1


def test_a_state_of_other_cells_is_refused(make):
    dataset = make()
    next(iter(dataset))
    for name, other in {"seed": 6, "batch_size": 8}.items():
        with pytest.raises(cellfeed.StateError, match=f"the state was saved with {name}="):
            make(**{name: other}).load_state_dict(dataset.state_dict())
    with pytest.raises(cellfeed.StateError, match="n_obs=100"):
        make(obs_query="flag == True").load_state_dict(dataset.state_dict())


# Resampling


def resampled(make: Callable[..., ExperimentDataset], **parameters: Any) -> ExperimentDataset:
    """A dataset whose cells come with the weights 0 to 3: some several times, and some not at all."""
    dataset = make(**parameters)
    return dataset.resample(weights=dataset.obs_joinids % 4, n_obs=90)


def test_copies_of_cells_have_their_rows_and_their_planned_numbers(make):
    dataset = resampled(make)
    X, obs, _ = collect(dataset, G)
    positions = (obs[:, 0] - 2) // 3
    assert len(positions) == 90
    assert np.array_equal(X, CELLS.X[positions].toarray())
    assert list(dataset.obs_encoders["label"].inverse_transform(obs[:, 1])) == list(CELLS.obs["label"].iloc[positions])
    expected = CELLS.joinids % 4 * 90 / (CELLS.joinids % 4).sum()
    assert (np.abs(np.bincount(positions, minlength=N) - expected) < 1).all()


def test_resampled_epochs_resume_at_every_step_and_are_shared_by_ranks(make):
    dataset = resampled(make)
    whole = joinids_of(dataset)
    dataset.set_epoch(0)
    iterator = iter(dataset)
    for k in range(len(whole)):
        restored = resampled(make)
        restored.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
        assert joinids_of(restored) == whole[k:]
        next(iterator)
    ranks = [flat(resampled(make, rank=rank, world_size=2)) for rank in range(2)]
    assert Counter(ranks[0] + ranks[1]) == Counter(itertools.chain.from_iterable(whole))


# Bound and mixing


def test_no_more_is_held_than_planned(make):
    dataset = make(memory_budget="64 MiB")
    plan = dataset.plan()
    for _ in dataset:
        pass
    assert plan.peak_memory_bytes <= 64 << 20
    assert 0 < dataset.stats().peak_pool_bytes <= 64 << 20


def test_the_effective_batch_size_is_the_predicted_one(make):
    dataset = make(obs_column_names=["donor"], batch_size=10, drop_last=True)
    inverse = []
    for epoch in range(12):
        dataset.set_epoch(epoch)
        inverse.append(1 / dataset.plan(label="donor").effective_batch_size)
    dataset.set_epoch(0)
    for _ in range(12):
        for _ in dataset:
            pass
    assert dataset.stats().effective_batch_sizes["donor"] == pytest.approx(1 / np.mean(inverse), rel=0.1)


# Labels, splits and provenance


def test_labels_decode_and_unseen_ones_are_named(make):
    dataset = make(encoders=[LabelEncoder("label", classes=["type 2", "type 0", "type 1"])], obs_column_names=())
    assert dataset.obs_encoders["label"].inverse_transform([0, 1]).tolist() == ["type 2", "type 0"]
    with pytest.raises(EncodeError, match="'type 2'"):
        make(encoders=[LabelEncoder("label", classes=["type 0", "type 1"])], obs_column_names=())


def test_splits_are_disjoint_complete_and_the_same_in_every_epoch(make):
    dataset = make()
    parts = dataset.random_split({"train": 0.7, "test": 0.3}, seed=3, group="donor")
    cells = []
    for part in parts:
        first, second = flat(part), flat(part)
        assert sorted(first) == sorted(second) == sorted(part.obs_joinids.tolist())
        cells.append(first)
    assert sorted(itertools.chain(*cells)) == ALL
    donors = [{CELLS.obs["donor"].iloc[(j - 2) // 3] for j in part} for part in cells]
    assert not donors[0] & donors[1]
    assert [part.provenance()["splits"][0]["part"] for part in parts] == ["train", "test"]
    check_rows(parts[1], cells[1])


def test_rows_of_obs_are_those_of_the_cells_that_were_yielded(make):
    """In the order asked, also of a part, of cells that repeat, and from a tensor."""
    dataset, _ = make().split_by("label", {"first": ["type 0", "type 2"], "others": None}).values()
    for minibatch in itertools.islice(dataset, 3):
        joinids = torch.cat([minibatch.obs[:, 0], minibatch.obs[:2, 0]])
        frame = dataset.obs_frame(joinids, ["text", "soma_joinid", "fraction"])
        assert list(frame.columns) == ["text", "soma_joinid", "fraction"]
        assert frame["soma_joinid"].tolist() == joinids.tolist()
        expected = CELLS.obs.iloc[(joinids.numpy() - 2) // 3]
        assert frame["text"].tolist() == expected["text"].tolist()
        assert frame["fraction"].tolist() == expected["fraction"].tolist()
    whole = make().obs_frame(ALL[::-1])
    assert {"soma_joinid", *CELLS.obs} <= set(whole)
    assert whole["donor"].tolist() == CELLS.obs["donor"].tolist()[::-1]
    assert len(dataset.obs_frame([], ["label"])) == 0


def test_rows_of_other_cells_are_refused_by_their_joinids(make):
    dataset, _ = make().split_by("label", {"first": ["type 0", "type 2"], "others": None}).values()
    with pytest.raises(SelectionError, match="joinids: 2 are not cells of this dataset: 3, 5"):
        dataset.obs_frame([5, 3, 2])  # 5 is a cell of the other part, and 3 is not in the store
    with pytest.raises(SelectionError, match="columns: obs has no column 'labels'; did you mean 'label'"):
        dataset.obs_frame([2], ["labels"])
    with pytest.raises(SelectionError, match="joinids must be integers in one dimension"):
        dataset.obs_frame([[2.0]])


def test_labels_are_counted_in_the_order_of_their_codes(make):
    """Of an encoder and of any other column, in the whole and in a part that lacks a label."""
    dataset = make()
    assert dataset.class_counts("label").to_dict() == {"type 0": 34, "type 1": 33, "type 2": 33}
    assert dataset.class_counts("donor").to_dict() == {f"donor {k}": 20 for k in range(5)}
    part = dataset.split_by("label", {"first": ["type 0", "type 2"], "others": None})["first"]
    counts = part.class_counts("label")
    assert counts.to_dict() == {"type 0": 34, "type 1": 0, "type 2": 33}
    assert counts.index.tolist() == part.obs_encoders["label"].classes_.tolist()
    assert torch.allclose(part.class_weights("label"), torch.tensor([67 / 68, 0, 67 / 66]))


def test_provenance_is_plain_and_names_the_genes(make):
    record = make().provenance()
    assert json.loads(json.dumps(record)) == record
    assert record["n_obs"] == N
    assert record["genes"] == ExperimentDataset.provenance(make())["genes"]
    assert make().select_genes(["G1", "G0"]).provenance()["genes"] != record["genes"]


# Endings and faults


def test_no_thread_and_no_file_outlives_its_iterator(make_any):
    dataset = make_any()
    for _ in dataset:  # what stays open for the process has been opened
        pass
    threads, files = set(threading.enumerate()), open_files()
    for end in ("break", "error"):
        try:
            for _ in dataset:
                if end == "error":
                    raise KeyError(end)
                break
        except KeyError:
            pass
        assert {thread for thread in threading.enumerate() if thread.name.startswith("cellfeed")} <= threads
        assert open_files() == files


def open_files() -> set[str]:
    """Paths of the open files of this process that a source could have left."""
    found = set()
    for handle in Path("/proc/self/fd").iterdir():
        try:
            target = str(handle.readlink())
        except OSError:
            continue
        if "/sources" in target:
            found.add(target)
    return found


@pytest.fixture
def own(kind: str, tmp_path: Path) -> tuple[Path, Callable[..., ExperimentDataset]]:
    """A store of this test only, which it may damage: its folder, and how a dataset is made of it."""
    source = KINDS[kind](CELLS, tmp_path)
    return tmp_path, lambda **parameters: ExperimentDataset(
        **source, **{"obs_column_names": COLUMNS, "seed": 0, "batch_size": 7, **parameters}
    )


def data_files(kind: str, folder: Path) -> list[Path]:
    """The files with the values of X that an epoch reads."""
    if kind == "h5ad":
        return [folder / "cells.h5ad"]
    if kind == "soma":
        return list(folder.glob("cells.soma/ms/RNA/X/raw/__fragments/*/*.tdb"))
    parts = folder / "copy" if kind == "local copy" else folder / "cells.zarr"
    return [path for path in parts.rglob("X/*/**/*") if path.is_file() and not path.name.startswith((".z", "zarr.j"))]


@pytest.mark.parametrize("harm", ["deleted", "without its values", "written again"])
def test_a_store_that_is_lost_while_it_is_read(kind, own, harm, tmp_path_factory):
    """Zarr takes a chunk that is missing for zeros, and cellfeed does not. Cells before the error are right."""
    folder, make = own
    if harm == "without its values" and kind in ("zarr2", "zarr3", "collection"):
        pytest.skip("zarr does not store chunks of zeros, and anndata stores no checksums")
    dataset = make(soma_chunk_size=4, shuffle_chunk_count=1, memory_budget="64 MiB")
    iterator = iter(dataset)
    next(iterator)
    (root,) = {folder / path.relative_to(folder).parts[0] for path in data_files(kind, folder)}
    if harm == "without its values":
        for path in data_files(kind, folder):
            path.unlink()
    else:
        shutil.rmtree(root) if root.is_dir() else root.unlink()
    if harm == "written again":
        other = Cells.make(N, X=CELLS.X * 1000)
        new = tmp_path_factory.mktemp("other")
        KINDS[kind](other, new)
        (new / root.name).rename(root)
    try:
        for X, obs in iterator:
            assert np.array_equal(X.numpy(), CELLS.X[(obs[:, 0].numpy() - 2) // 3].toarray())
    except ReadError:
        pass
    with pytest.raises(ReadError):
        list(dataset)


def test_truncated_files_are_an_error(kind, own):
    folder, make = own
    dataset = make()
    for path in data_files(kind, folder):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ReadError):
        list(dataset)


def test_a_flipped_byte_is_an_error_or_is_not_in_what_is_read(kind, own):
    """Copies have a checksum per chunk, and tiles of SOMA are compared with their metadata."""
    if kind not in COPIES:
        pytest.skip("the writer of the store has stored no checksums")
    folder, make = own
    files = sorted(data_files(kind, folder))
    chance, n_errors = np.random.default_rng(5), 0
    for _ in range(30):
        path = files[chance.integers(len(files))]
        before = path.read_bytes()
        at = int(chance.integers(len(before)))
        damaged = bytearray(before)
        damaged[at] ^= 1 << int(chance.integers(8))
        path.write_bytes(damaged)
        try:
            check_rows(make(), ALL)
        except ReadError:
            n_errors += 1
        path.write_bytes(before)
    assert n_errors > 10


# Devices and workers


@pytest.mark.parametrize("sparse", [False, True])
def test_minibatches_made_on_a_device_are_those_of_the_cpu(make_any, sparse):
    expected, found = (make_any(return_sparse_X=sparse) for _ in range(2))
    for here, there in zip(expected, experiment_dataloader(found, device="cpu"), strict=True):
        assert all(torch.equal(a.to_dense(), b.to_dense()) for a, b in zip(here, there, strict=True))


@pytest.mark.slow
def test_worker_processes_share_an_epoch_and_resume(make_any):
    dataset = make_any()
    loader = experiment_dataloader(dataset, num_workers=2)
    iterator = iter(loader)
    received = flat(itertools.islice(iterator, 5))
    state = loader.state_dict()
    del iterator
    restored = make_any()
    restored.load_state_dict(state)
    received += flat(restored)
    assert sorted(received) == ALL
