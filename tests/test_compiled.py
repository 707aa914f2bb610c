"""A cache of compiled code that cannot be used costs time only."""

from __future__ import annotations

import errno
import importlib.util
import multiprocessing
import threading
import warnings

import pytest
from numba.core import config
from numba.core.caching import IndexDataCacheFile
from numba.core.compiler_lock import global_compiler_lock

from cellfeed.rows import compiled
from tests.support.processes import PATIENCE_S

KERNEL = """from cellfeed.rows.compiled import compiled


@compiled
def triple(x):
    return {factor} * x
"""

CALLER = """from cellfeed.rows.compiled import compiled
from triples import triple


@compiled
def triple_and_one(x):
    return triple(x) + 1
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for modules and one for their compiled code; no warning or log message was issued before."""
    monkeypatch.setattr(compiled, "_warned", threading.Event())
    monkeypatch.setattr(compiled, "_logged", threading.Event())
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "triples.py").write_text(KERNEL.format(factor=3))
    (tmp_path / "callers.py").write_text(CALLER)
    return tmp_path


def load(path, monkeypatch):
    """Import a module as a new process does."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(importlib.import_module("sys").modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


def n_loaded(kernel):
    return sum(kernel.stats.cache_hits.values())


def test_compiled_code_is_kept_for_later_processes(folder, monkeypatch):
    assert load(folder / "triples.py", monkeypatch).triple(2) == 6
    again = load(folder / "triples.py", monkeypatch).triple
    assert again(2) == 6
    assert n_loaded(again) == 1


def test_compilation_is_logged_once(folder, monkeypatch, caplog):
    """A user who waits for the first minibatch can learn why, and later processes are silent."""
    caplog.set_level("INFO", "cellfeed")
    kernels = [load(folder / f"{name}.py", monkeypatch) for name in ("triples", "callers")]
    assert (kernels[0].triple(2), kernels[1].triple_and_one(2)) == (6, 7)
    assert [record.message.split(",")[0] for record in caplog.records] == ["compiling kernels"]
    monkeypatch.setattr(compiled, "_logged", threading.Event())
    assert load(folder / "triples.py", monkeypatch).triple(2) == 6
    assert len(caplog.records) == 1


def test_without_a_folder_that_can_be_written_kernels_compile_and_one_warning_names_the_setting(folder, monkeypatch):
    """As in a read-only image where the user has no home."""
    (folder / "file").touch()
    (folder / "__pycache__").touch()
    monkeypatch.setattr(config, "CACHE_DIR", str(folder / "file" / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    with pytest.warns(UserWarning, match="set NUMBA_CACHE_DIR to a folder that can be written") as caught:
        kernels = [load(folder / f"{name}.py", monkeypatch) for name in ("triples", "callers")]
    assert (kernels[0].triple(2), kernels[1].triple_and_one(2)) == (6, 7)
    assert len(caught) == 1


def test_on_a_full_disk_kernels_compile_with_one_warning(folder, monkeypatch):
    def full(self, path):
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(IndexDataCacheFile, "_open_for_write", full)
    triple = load(folder / "triples.py", monkeypatch).triple
    with pytest.warns(UserWarning, match="No space left on device.*NUMBA_CACHE_DIR") as caught:
        assert (triple(2), triple(2.5)) == (6, 7.5)
    assert len(caught) == 1


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("kept", [0, 0.5])
def test_broken_files_of_the_cache_are_replaced(folder, monkeypatch, suffix, kept):
    """A disk that was full or a machine that lost its power leaves files of no bytes, or of some."""
    load(folder / "triples.py", monkeypatch).triple(2)
    for path in (folder / "cache").rglob(f"*.{suffix}"):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * kept)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(folder / "triples.py", monkeypatch).triple(2) == 6
        again = load(folder / "triples.py", monkeypatch).triple
        assert again(2) == 6
    assert n_loaded(again) == 1


def test_processes_that_compile_for_different_types_at_the_same_time_do_not_exchange_their_code(folder, monkeypatch):
    """The second one has read the index before the first one writes it, and writes its files in the middle of this."""
    first, second, later = (load(folder / "triples.py", monkeypatch).triple for _ in range(3))
    save = IndexDataCacheFile._save_data

    def save_after_the_other(files, name, data):
        monkeypatch.setattr(IndexDataCacheFile, "_save_data", save)
        with monkeypatch.context() as patch:
            patch.setattr(IndexDataCacheFile, "_load_index", lambda files: {})
            assert second(2.5) == 7.5
        save(files, name, data)

    monkeypatch.setattr(IndexDataCacheFile, "_save_data", save_after_the_other)
    assert first(2) == 6
    assert (later(2), later(2.5)) == (6, 7.5)


def test_a_kernel_is_compiled_anew_if_a_kernel_that_it_calls_has_changed(folder, monkeypatch):
    """The two may be in different files; compiled code holds both."""
    monkeypatch.setattr(compiled, "__file__", str(folder / "compiled.py"))
    compiled._sources.cache_clear()
    try:
        load(folder / "triples.py", monkeypatch)
        assert load(folder / "callers.py", monkeypatch).triple_and_one(2) == 7
        (folder / "triples.py").write_text(KERNEL.format(factor=5))
        compiled._sources.cache_clear()
        load(folder / "triples.py", monkeypatch)
        assert load(folder / "callers.py", monkeypatch).triple_and_one(2) == 11
    finally:
        compiled._sources.cache_clear()


def test_a_child_forked_while_another_thread_compiles_can_compile(folder, monkeypatch):
    """A lock that a thread of the parent holds is never released in the child."""
    kernel = load(folder / "triples.py", monkeypatch).triple
    held = threading.Event()

    def compile_for_a_while():
        with global_compiler_lock:
            held.set()
            threading.Event().wait(0.2)

    thread = threading.Thread(target=compile_for_a_while)
    thread.start()
    held.wait()
    child = multiprocessing.get_context("fork").Process(target=kernel, args=(2,))
    child.start()
    child.join(PATIENCE_S)
    hangs = child.is_alive()
    child.kill()
    thread.join()
    assert not hangs
    assert child.exitcode == 0


def test_kernels_compile_where_a_user_debugs_own_functions(folder, monkeypatch):
    """``NUMBA_DISABLE_JIT=1`` is for the user's functions; Python cannot read memory by its address."""
    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    triple = load(folder / "triples.py", monkeypatch).triple
    assert (triple(2), len(triple.signatures), config.DISABLE_JIT) == (6, 1, 1)
