"""Copies in adverse circumstances: kills, several processes, full and read-only disks, sources that change."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiledbsoma as soma

import cellfeed
from cellfeed import ExperimentDataset, SelectionError
from cellfeed.plan.planner import Planner
from cellfeed.plan.schedule import ShufflePlan
from cellfeed.sources.anndata.copies import local_copy, owner, part_writer
from tests.support import copies
from tests.support.copies import assert_same_copy, describe, described, parts_of, read_copy
from tests.support.processes import PATIENCE_S, python, torchrun
from tests.support.stores import addressed, labelled_obs, write_experiment
from tests.test_copy_writer import Failures, KilledError

X = addressed(120, 30)

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # writers that are killed


@pytest.fixture(autouse=True)
def _small_layout(monkeypatch):
    copies.make_layout_small(monkeypatch.setattr)


@pytest.fixture
def _larger_layout(monkeypatch):
    """Shards of some KB."""
    copies.make_layout_small(monkeypatch.setattr, ("lz4", 64, 8))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("sources") / "cells.soma", X, labelled_obs(120))


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """A copy whose writing was never disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        copies.make_layout_small(patch.setattr)
        path = tmp_path_factory.mktemp("whole") / "copy.zarr"
        dataset = make(source, path)
        epoch(dataset)
    return path


def make(source, copy=None, **options):
    parameters = {"seed": 0, "batch_size": 5, "soma_chunk_size": 6, "shuffle_chunk_count": 4, **options}
    return ExperimentDataset(source, obs_column_names=["soma_joinid", "label"], local_copy=copy, **parameters)


def epoch(dataset):
    """The cells of an epoch, described, in the order of their joinids."""
    return sorted(cell for minibatch in dataset for cell in describe(minibatch))


def begin(dataset, n_minibatches=12):
    """Receive a part of an epoch."""
    minibatches = iter(dataset)
    for _ in range(n_minibatches):
        next(minibatches)
    minibatches.close()


def names(copy):
    return sorted(path.name for path in copy.iterdir())


def unfinished(copy):
    (work,) = owner.unfinished(copy)
    return work


# ---------------------------------------------------------------------- kills


@pytest.mark.slow
@pytest.mark.parametrize("writes", [False, True], ids=["local_copy", "write_copy"])
def test_kills_at_random_moments(tmp_path, writes):
    """A run that is killed 20 times and continued: each epoch is exact, and the copy is that of an undisturbed run."""
    matrix = addressed(500, 30)
    source = write_experiment(tmp_path / "cells.soma", matrix, labelled_obs(500))
    options = json.dumps({"n_kills": 20, "seed": int(writes), "writes": writes})
    process = python("-m", "tests.programs.copied", source, tmp_path / "copy.zarr", tmp_path, options)
    epoch(make(source, tmp_path / "whole.zarr"))
    assert process.wait(timeout=PATIENCE_S) == 0
    if not writes:
        history = copies.history_of(tmp_path)
        assert copies.epochs_of(history, 3) == [described(matrix)] * 3
        parts = set(names(tmp_path / "copy.zarr")) - {"zarr.json"}  # a kill may lose rows that the next epoch appends
        assert parts == {f"dataset_{k}" for k in range(len(parts))}
    assert_same_copy(tmp_path / "copy.zarr", tmp_path / "whole.zarr")
    assert not list(tmp_path.glob("*.partial"))


def failing(patch, moment):
    """Raise an error at the ``moment``-th change of files, and forget which parts this process writes."""
    Failures(patch, moment, KilledError())
    for module in (local_copy.shutil, part_writer):
        patch.setattr(module, "rmtree", module.rmtree)
    patch.setattr(owner, "_open", set())


def moments():
    """The first changes of files, at which a copy begins, and each seventh of the others."""
    return [*range(14), *range(14, 1000, 7)]


@pytest.mark.slow
@pytest.mark.usefixtures("_larger_layout")
def test_kills_at_changes_of_files(source, whole, tmp_path):
    """In an epoch that writes a copy: later epochs complete it, and nothing else stays in its folder."""
    for moment in moments():
        copy = tmp_path / f"{moment}.zarr"
        with pytest.MonkeyPatch.context() as patch:
            failing(patch, moment)
            try:
                assert epoch(make(source, copy)) == described(X)
                break
            except KilledError:
                pass
        dataset = make(source, copy, seed=1)
        assert [epoch(dataset) for _ in range(2)] == [described(X)] * 2
        assert len(parts_of(copy)) == len(names(copy)) - 1
        assert_same_copy(copy, whole)
    assert 50 < moment < 1000


@pytest.mark.slow
@pytest.mark.usefixtures("_larger_layout")
def test_kills_of_write_copy(source, whole, tmp_path):
    for moment in moments():
        copy = tmp_path / f"{moment}.zarr"
        with pytest.MonkeyPatch.context() as patch:
            failing(patch, moment)
            with contextlib.suppress(KilledError):
                make(source).write_copy(copy)
                break
        if not copy.exists():
            make(source).write_copy(copy)
        assert_same_copy(copy, whole)
    assert 50 < moment < 1000


def test_a_part_that_was_only_begun_does_not_stay(source, tmp_path):
    """Nor one whose process ended before it had written a shard, or whose files are damaged."""
    copy = tmp_path / "copy.zarr"
    dataset = make(source, copy)
    begin(dataset)
    for file in unfinished(copy).glob("journal/X/*.npy"):
        file.write_bytes(file.read_bytes()[:40])
    ended = f"{owner._machine()}-{2**23}-0"  # no process has this number
    (copy / f"{ended}-0.partial" / "store").mkdir(parents=True)
    part_writer.PartWriter(copy / f"{ended}-1.partial", n_vars=30).abandon()
    assert [epoch(dataset) for _ in range(2)] == [described(X)] * 2
    assert names(copy) == ["dataset_0", "zarr.json"]


def test_all_abandoned_parts_are_completed(source, tmp_path):
    """By an epoch on fewer ranks, which continues one of them."""
    copy = tmp_path / "copy.zarr"
    iterators = [iter(make(source, copy, seed=seed)) for seed in range(3)]
    for minibatches in iterators:
        for _ in range(12):
            next(minibatches)
    for minibatches in iterators:
        minibatches.close()
    assert len(owner.unfinished(copy)) == 3
    assert epoch(make(source, copy, seed=3)) == described(X)
    assert names(copy) == ["dataset_0", "dataset_1", "dataset_2", "zarr.json"]


# ---------------------------------------------------------------------- several processes


def test_two_datasets_write_one_copy_at_the_same_time(source, whole, tmp_path):
    """Each writes a part; a cell in both counts once."""
    copy = tmp_path / "copy.zarr"
    datasets = [make(source, copy, seed=seed) for seed in range(2)]
    received = [[], []]
    for minibatches in zip(*datasets, strict=True):
        for cells, minibatch in zip(received, minibatches, strict=True):
            cells += describe(minibatch)
    assert [sorted(cells) for cells in received] == [described(X)] * 2
    assert names(copy) == ["dataset_0", "dataset_1", "zarr.json"]
    assert [epoch(dataset) for dataset in datasets] == [described(X)] * 2
    assert [dataset.stats().n_obs_from_copy for dataset in datasets] == [120, 120]
    for part in parts_of(copy):
        assert_same_copy(part, whole)


@pytest.mark.slow
def test_two_processes_begin_one_copy_at_the_same_time(source, tmp_path):
    copy, folders = tmp_path / "copy.zarr", [tmp_path / "first", tmp_path / "second"]
    processes = []
    for folder in folders:
        folder.mkdir()
        options = json.dumps({"n_kills": 0, "seed": 0, "writes": False})
        processes.append(python("-m", "tests.programs.copied", source, copy, folder, options))
    assert [process.wait(timeout=PATIENCE_S) for process in processes] == [0, 0]
    for folder in folders:
        assert copies.epochs_of(copies.history_of(folder), 3) == [described(X)] * 3
    assert epoch(make(source, copy)) == described(X)
    assert len(parts_of(copy)) == len(names(copy)) - 1


@pytest.mark.slow
def test_ranks_write_one_copy(source, whole, tmp_path):
    """The second epoch of all ranks reads it."""
    torchrun(2, "tests.programs.copied_ranks", source, tmp_path / "copy.zarr", tmp_path)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for k in range(3):
        assert sorted(cell for rank in ranks for cell in rank["epochs"][k]) == described(X)
    assert [rank["from_copy"] for rank in ranks] == [[0, 60, 120]] * 2
    assert names(tmp_path / "copy.zarr") == ["dataset_0", "dataset_1", "zarr.json"]
    assert_same_copy(tmp_path / "copy.zarr", whole)


def test_a_part_has_one_writer(source, tmp_path):
    """A process that has lost its part, which was taken as abandoned, changes nothing; its epoch continues."""
    copy = tmp_path / "copy.zarr"
    first, second = make(source, copy, use_eager_fetch=False), make(source, copy, seed=1)
    minibatches = iter(first)
    received = [cell for _ in range(12) for cell in describe(next(minibatches))]
    work = unfinished(copy)
    owner.release(work)  # as if its process had ended
    assert epoch(second) == described(X)
    assert not work.exists()
    (part,) = parts_of(copy)
    before = {file: file.read_bytes() for file in part.rglob("*") if file.is_file()}
    with pytest.warns(UserWarning, match="is not written any more"):
        received += [cell for minibatch in minibatches for cell in describe(minibatch)]
    assert sorted(received) == described(X)
    assert before == {file: file.read_bytes() for file in part.rglob("*") if file.is_file()}
    assert len(read_copy(copy)[1]) == 120


def test_a_writer_that_lost_its_part_puts_no_store_in_place(tmp_path):
    """Although zarr makes folders where they were."""
    work = owner.new_part(tmp_path)
    writer = part_writer.PartWriter(work, n_vars=3)
    taken = owner.take(work, by_force=True)
    obs = labelled_obs(0)
    with pytest.raises(FileNotFoundError, match="another process continues"):
        writer.finish(tmp_path / "dataset_0", obs, obs)
    assert part_writer.PartWriter.recover(taken).n_rows == 0
    assert not (tmp_path / "dataset_0").exists()


def test_whose_part_is_taken(tmp_path, monkeypatch):
    def part(machine, pid, started, number=0):
        work = tmp_path / f"{machine}-{pid}-{started}-{number}.partial"
        work.mkdir()
        return work

    own = owner.new_part(tmp_path)
    _, pid, started, _ = own.name.split("-")
    here = own.name.split("-")[0]
    own.mkdir()
    parent = owner._started(os.getppid())
    assert owner.take(own) is None
    assert owner.take(part(here, os.getppid(), parent)) is None  # a process that runs
    elsewhere = part("another", pid, started)
    assert owner.take(elsewhere) is None  # perhaps it runs: a machine or container with other process numbers
    ended = part(here, os.getppid(), parent + 1)  # its number belongs to another process now
    taken = owner.take(ended)
    assert taken is not None
    assert not ended.exists()
    assert owner.take(taken) is None
    assert owner.take(ended) is None  # another was faster
    assert owner.take(part(here, 2**23, 5)) is not None
    os.utime(elsewhere, (0, 0))
    assert owner.take(elsewhere) is not None  # it has not written for a long time
    owner.release(taken)
    assert owner.take(taken) is not None
    monkeypatch.setattr(Path, "readlink", lambda path: Path("pid:[7]"))
    owner._machine.cache_clear()
    other_container = owner._machine()
    monkeypatch.undo()
    owner._machine.cache_clear()
    assert other_container != here == owner._machine()


def test_another_process_writes_the_same_copy(source, tmp_path, monkeypatch):
    """A second call of write_copy for one path is refused, and continues the copy when the first has ended."""
    copy = tmp_path / "copy.zarr"
    append = part_writer.PartWriter.append
    raised = []

    def call_again(writer, rows, layers):
        monkeypatch.setattr(part_writer.PartWriter, "append", append)
        with pytest.raises(SelectionError, match="another process writes"):
            make(source).write_copy(copy)
        raised.append(True)
        append(writer, rows, layers)

    monkeypatch.setattr(part_writer.PartWriter, "append", call_again)
    make(source).write_copy(copy)
    assert raised
    assert epoch(make(copy)) == described(X)
    assert not list(tmp_path.glob("*.partial*"))


# ---------------------------------------------------------------------- splits and genes


def test_an_abandoned_part_of_another_split_has_its_own_labels(source, whole, tmp_path):
    copy = tmp_path / "copy.zarr"
    train, test = make(source, copy).random_split([0.5, 0.5], seed=0)
    begin(test, 8)
    assert len(epoch(train)) == 60
    assert len(epoch(test)) == 60
    assert len(read_copy(copy)[1]) == 120
    assert_same_copy(copy, whole)


def test_some_genes_are_not_appended(source, whole, tmp_path):
    dataset = make(source, tmp_path / "copy.zarr")
    genes = dataset.select_genes(["G3", "G5"])
    first = epoch(genes)
    assert names(tmp_path / "copy.zarr") == ["zarr.json"]
    epoch(dataset)
    assert_same_copy(tmp_path / "copy.zarr", whole)
    assert epoch(genes) == first


# ---------------------------------------------------------------------- disks


@contextlib.contextmanager
def largest_file(n_bytes):
    """Let writes beyond a size fail, as on a full disk: with an ``OSError`` of the system, after a partial write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_larger_layout")
@pytest.mark.parametrize("n_bytes", [60, 700, 3000, 12_000])
def test_a_full_disk_while_an_epoch_trains(source, whole, tmp_path, n_bytes):
    """One warning; epochs continue. A later dataset continues the copy."""
    copy = tmp_path / "copy.zarr"
    dataset = make(source, copy)
    with largest_file(n_bytes), pytest.warns(UserWarning, match="not written any more") as warned:
        assert [epoch(dataset) for _ in range(2)] == [described(X)] * 2
    assert len(warned) == 1
    dataset = make(source, copy)
    assert [epoch(dataset) for _ in range(2)] == [described(X)] * 2
    assert names(copy) == ["dataset_0", "zarr.json"]
    assert_same_copy(copy, whole)


@pytest.mark.usefixtures("_larger_layout")
@pytest.mark.parametrize("n_bytes", [60, 700, 3000, 12_000])
def test_a_full_disk_while_a_copy_is_written(source, whole, tmp_path, n_bytes):
    """An error says what to do. The same call continues the copy."""
    copy = tmp_path / "copy.zarr"
    with largest_file(n_bytes), pytest.raises(SelectionError, match="free the disk and call write_copy again"):
        make(source).write_copy(copy)
    assert not copy.exists()
    make(source).write_copy(copy)
    assert_same_copy(copy, whole)
    assert names(tmp_path) == ["copy.zarr"]


@pytest.mark.usefixtures("_larger_layout")
def test_a_copy_is_continued_in_its_order(source, tmp_path, monkeypatch):
    """Another memory budget means another order, so that the cells that are left are others."""
    with largest_file(700), pytest.raises(SelectionError, match="cannot be written"):
        make(source).write_copy(tmp_path / "copy.zarr")
    with pytest.raises(SelectionError, match="beginning of a copy of other cells, or with another compression or mem"):
        make(source).write_copy(tmp_path / "copy.zarr", compression="zstd")
    with monkeypatch.context() as patch, pytest.raises(SelectionError, match="beginning of a copy of other cells"):
        patch.setattr(Planner, "shuffle_plan", lambda planner, num_workers=1: ShufflePlan(2, n_slices=3))
        make(source).write_copy(tmp_path / "copy.zarr")
    make(source).write_copy(tmp_path / "copy.zarr")


@pytest.fixture
def readable():
    """A folder that all users can read."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def as_other_user(folder):
    """Let nothing in a folder be written: root may always write, so that another user works here."""
    paths = [folder, *folder.rglob("*")]
    modes = [(path, path.stat().st_mode) for path in paths]
    user = os.geteuid()
    for path, _ in modes:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        for path, mode in modes:
            path.chmod(mode)


def test_a_read_only_copy(source, readable):
    """A complete one is read; of an incomplete one, a warning says that it stays so, and the source is read."""
    own = readable / "cells.soma"
    shutil.copytree(source, own)
    copy = readable / "copy.zarr"
    begin(make(str(own), copy))
    with as_other_user(readable):
        dataset = make(str(own), copy)
        with pytest.warns(UserWarning, match=r"is not written any more \(.*Permission denied") as warned:
            assert [epoch(dataset) for _ in range(2)] == [described(X)] * 2
        assert len(warned) == 1, [str(w.message) for w in warned]
        with pytest.raises(SelectionError, match="cannot be written"):
            make(str(own), readable / "other.zarr")
    for _ in range(2):  # the second epoch reads the copy: another user may not be able to keep kernels
        epoch(make(str(own), copy))
    with as_other_user(readable), warnings.catch_warnings(action="error"):
        dataset = make(str(own), copy)
        assert epoch(dataset) == described(X)
        assert dataset.stats().n_obs_from_copy == dataset.shape[0]


# ---------------------------------------------------------------------- sources that change


def rewrite(path, matrix=X, **options):
    shutil.rmtree(path, ignore_errors=True)
    return write_experiment(path, matrix, labelled_obs(matrix.shape[0]), **options)


@pytest.mark.parametrize(
    ("matrix", "what"),
    [
        (addressed(120, 30, seed=1), "X_nnz"),
        (addressed(121, 30), "X_nnz|n_obs"),
        (addressed(120, 31), "X_nnz|n_vars"),
        (X, "X_identity"),
    ],
)
def test_a_source_that_has_changed(tmp_path, matrix, what):
    """The copy is refused, also if the source was written again with equal numbers."""
    source, copy = rewrite(tmp_path / "cells.soma"), tmp_path / "copy.zarr"
    epoch(make(source, copy))
    rewrite(tmp_path / "cells.soma", matrix)
    with pytest.raises(SelectionError, match=rf"is a copy of ({what})=.*remove the copy if its source has changed"):
        make(source, copy)


def test_a_source_to_which_values_were_added(tmp_path):
    source, copy = rewrite(tmp_path / "cells.soma"), tmp_path / "copy.zarr"
    epoch(make(source, copy))
    with soma.open(source) as experiment:
        uri = experiment.ms["RNA"].X["raw"].uri
    column = np.flatnonzero(X[:1].toarray() == 0)[:1]
    with soma.SparseNDArray.open(uri, "w") as array:
        array.write(pa.table({"soma_dim_0": [0], "soma_dim_1": column, "soma_data": np.float32([7])}))
    with pytest.raises(SelectionError, match="is a copy of X_nnz="):
        make(source, copy)


def test_an_anndata_source_that_was_written_again(source, tmp_path):
    """With equal numbers, in another order: the time of writing differs."""
    first, copy = make(source).write_copy(tmp_path / "first.zarr"), tmp_path / "copy.zarr"
    epoch(make(first, copy))
    assert epoch(make(first, copy)) == described(X)
    shutil.rmtree(first)
    make(source).write_copy(first)
    with pytest.raises(SelectionError, match="is a copy of X_identity="):
        make(first, copy)


@pytest.mark.parametrize("what", ["deleted", "data", "indices", "indptr", "truncated"])
def test_a_copy_that_is_lost_while_it_is_read(source, whole, tmp_path, what):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(whole, copy)
    dataset = make(source, copy, soma_chunk_size=None, shuffle_chunk_count=None, use_eager_fetch=False)
    dataset.set_epoch(1)
    part = copy / "dataset_0"
    if what == "deleted":
        shutil.rmtree(part)
    elif what == "truncated":
        for file in (part / "X" / "data" / "c").iterdir():
            os.truncate(file, file.stat().st_size // 2)
    else:
        shutil.rmtree(part / "X" / what / "c")
    why = "damaged|missing|cannot be opened|deleted"
    with pytest.raises(cellfeed.CellfeedError, match=rf"(dataset_0|copy\.zarr).*({why})"):
        epoch(dataset)
