"""What differs between Linux and macOS, with a fake of each part of the system that the other one lacks.

These tests run on Linux. They do not replace a run on macOS.
"""

import ctypes
import mmap
import os
import platform
import re
import resource
import sys
from types import SimpleNamespace

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from cellfeed.command import bench
from cellfeed.loader import workers, world
from cellfeed.rows import slabs, streaming
from cellfeed.sources import bundled
from cellfeed.sources.anndata.chunks import packed_chunks, store_files
from cellfeed.sources.anndata.copies import owner
from cellfeed.sources.soma.tiles import zstd


def without(monkeypatch, module, *names):
    """Remove functions that another system lacks."""
    for name in names:
        monkeypatch.delattr(module, name, raising=False)


@pytest.fixture
def fresh():
    """Clear what a process finds out once, before and after a test."""
    cached = (slabs.keep_freed_memory, zstd.find_zstd, packed_chunks.find_library, owner._machine)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


# ---------------------------------------------------------------------- memory


def test_the_allocator_is_configured_on_glibc_only(monkeypatch, fresh):
    """Slabs then come from the heap, and none is kept."""
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))  # as on macOS
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail(f"{name} is loaded"))
    assert slabs.keep_freed_memory() is False
    sizes = []
    kept = list(slabs._free)
    slab = slabs.SlabPool(slabs.SLAB_BYTES, sizes.append).allocate(5)
    del slab
    assert sizes == [slabs.SLAB_BYTES, -slabs.SLAB_BYTES]
    assert list(slabs._free) == kept


@pytest.mark.parametrize("lacks", ["the constant", "huge pages"])
def test_memory_needs_no_huge_pages(monkeypatch, lacks):
    """macOS has no constant for them; some kernels refuse the request."""
    if lacks == "the constant":
        without(monkeypatch, mmap, "MADV_HUGEPAGE")
    else:
        monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345, raising=False)
    region = slabs._new_region()
    assert sum(slab.nbytes for slab in region) == slabs.REGION_BYTES
    region[-1][:] = 7
    assert (region[-1] == 7).all()


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_bytes(monkeypatch, system, unit):
    """Linux reports KiB, macOS bytes."""
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=300))
    assert bench._peak_bytes() == 300 * unit


@pytest.mark.parametrize(
    ("system", "processor", "instructions"),
    [
        ("arm64-apple-darwin", "apple-m1", ("stnp", "dmb")),
        ("x86_64-unknown-linux-gnu", "x86-64-v3", ("vmovnt", "lock|mfence")),
    ],
)
def test_streaming_stores_and_their_fence_exist_on_each_processor(system, processor, instructions):
    """LLVM compiles the intrinsics of ``cellfeed.rows.streaming`` for processors that the test does not run on."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 2), "stream")
    builder = ir.IRBuilder(function.append_basic_block())
    context = SimpleNamespace(get_dummy_value=lambda: None)
    for intrinsic, arguments in ((streaming._stream_line, function.args), (streaming.finish_streams, ())):
        _, generate = intrinsic._defn(None, *arguments)
        generate(context, builder, None, arguments)
    builder.ret_void()
    machine = llvm.Target.from_triple(system).create_target_machine(cpu=processor)
    code = machine.emit_assembly(llvm.parse_assembly(str(module)))
    assert all(re.search(instruction, code) for instruction in instructions)


# ---------------------------------------------------------------------- libraries


@pytest.mark.parametrize(("system", "name"), [("linux", "libzstd.so.1"), ("darwin", "libzstd.1.dylib"), ("aix", None)])
def test_zstd_has_the_name_of_the_system_and_numcodecs_has_it_everywhere(monkeypatch, fresh, system, name):
    monkeypatch.setattr(sys, "platform", system)
    system_names, packaged = [], []
    load = ctypes.CDLL

    def cdll(path):
        if "/" not in path:
            system_names.append(path)
            raise OSError("not found")
        packaged.append(path)
        return load(path)

    monkeypatch.setattr(ctypes, "CDLL", cdll)
    assert zstd.find_zstd().decompress
    assert system_names == [name] * (name is not None)
    assert "numcodecs" in packaged[0]


def test_compiled_modules_of_macos_are_found(monkeypatch, tmp_path):
    """They end in .so there as well."""
    (tmp_path / "blosc.cpython-313-darwin.so").touch()
    (tmp_path / "blosc.py").touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(bundled.importlib.util, "find_spec", lambda package: spec)
    assert list(bundled.bundled_libraries("numcodecs", "blosc.*")) == [str(tmp_path / "blosc.cpython-313-darwin.so")]


def test_chunks_can_be_read_without_pread(monkeypatch, fresh):
    blosc = packed_chunks.find_blosc()
    assert packed_chunks.find_library().pread
    packed_chunks.find_library.cache_clear()
    monkeypatch.setattr(packed_chunks, "find_blosc", lambda: blosc)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert packed_chunks.find_library() == (0, blosc.decompress, blosc.crc32c)


# ---------------------------------------------------------------------- files and processes


def test_files_are_read_without_preadv(monkeypatch, tmp_path):
    without(monkeypatch, os, "preadv", "pread", "posix_fadvise")
    (tmp_path / "c").write_bytes(bytes(range(100)))
    target = np.empty(40, np.uint8)
    store_files.LocalStoreFiles(tmp_path).read("c", 30, target)
    assert target.tolist() == list(range(30, 70))


def test_a_dataset_is_sent_without_memfd(monkeypatch):
    without(monkeypatch, os, "memfd_create")
    with workers._anonymous_file() as file:
        file.write(b"cells")
        file.seek(0)
        assert file.read() == b"cells"


def test_cores_are_counted_without_affinity(monkeypatch):
    without(monkeypatch, os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert world.available_threads() == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert world.available_threads() == 1


def test_without_proc_the_part_of_a_running_process_is_not_taken(monkeypatch, fresh, tmp_path):
    """The part of one that has ended is taken at once; where its number is in use again, after a while."""
    monkeypatch.setattr(owner, "PROC", tmp_path / "no_proc")

    def part(pid, number=0):
        work = tmp_path / f"{owner._machine()}-{pid}-0-{number}.partial"
        work.mkdir()
        return work

    own = owner.new_part(tmp_path)
    assert own.name.startswith(f"{owner._machine()}-{os.getpid()}-0-")
    own.mkdir()
    assert owner.take(own) is None
    running, ended = part(os.getppid()), part(2**23)  # no process has this number
    assert owner.take(running) is None
    assert owner.take(ended) is not None
    os.utime(running, (0, 0))
    assert owner.take(running) is not None


def test_without_proc_processes_of_other_users_run(monkeypatch, tmp_path):
    monkeypatch.setattr(owner, "PROC", tmp_path / "no_proc")

    def kill(pid, signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    assert owner._started(1) == 0
    windows = SimpleNamespace(name="nt", kill=lambda *arguments: pytest.fail("on Windows this ends the process"))
    monkeypatch.setattr(owner, "os", windows)
    assert owner._started(os.getpid()) == 0
