"""``experiment_dataloader(device=...)``: the CPU takes the place of a GPU, and runs the same operations."""

import contextlib
import gc
import subprocess
import sys
import threading

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cellfeed
from cellfeed import ExperimentDataPipe, ExperimentDataset, PlanError, experiment_dataloader, inference_dataloader
from cellfeed.loader import dataloader, device_checks
from cellfeed.loader import device as device_module
from cellfeed.loader.device import Ring
from cellfeed.rows.compact import CompactRows
from cellfeed.transforms import Compose, Log1p, NormalizeTotal, SelectGenes
from tests.support.processes import PATIENCE_S
from tests.support.stores import addressed, assert_canonical, labelled_obs, write_experiment

N_OBS, N_VARS = 96, 30
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU"))
DEVICES = ["cpu", CUDA]


def of_all_widths() -> sp.csr_matrix:
    """Values that encode their place; blocks of 8 cells have small counts, large counts, or fractions."""
    X = addressed(N_OBS, N_VARS).toarray()
    block = np.arange(N_OBS) // 8 % 3
    X[block == 0] %= 250
    X[block == 1] *= 10
    X[block == 2] /= 4
    X[5] = X[90] = 0
    return sp.csr_matrix(X)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """One X in several types of values, and an embedding."""
    folder = tmp_path_factory.mktemp("widths")
    X, made = of_all_widths(), {}
    for dtype in ("float32", "int64", "uint8"):
        values = X if dtype == "float32" else sp.csr_matrix(X.toarray() % (256 if dtype == "uint8" else 1e9))
        uri = write_experiment(
            folder / dtype, values, labelled_obs(N_OBS), dtype=np.dtype(dtype), layers=("raw", "other"), extent=4
        )
        cellfeed.write_obsm(uri, "scvi", np.arange(N_OBS), np.arange(N_OBS * 2, dtype=np.float32).reshape(-1, 2))
        made[dtype] = uri
    return made


def negative_square(X):
    """A transform that cellfeed does not know, and that keeps the layout of X."""
    return X * -1.0


GENES = [f"G{k}" for k in range(N_VARS)]
TRANSFORMS = [
    None, None, NormalizeTotal(1e4), Log1p(), Compose(NormalizeTotal(1e4), Log1p()), negative_square,
    Compose(NormalizeTotal(3), SelectGenes(["G7", "G2"], GENES), Log1p()), SelectGenes(["G29", "G0", "G4"], GENES),
]  # fmt: skip

PARAMETERS = st.fixed_dictionaries(
    {
        "transform": st.sampled_from(TRANSFORMS),
        "return_sparse_X": st.booleans(),
        "X_dtype": st.sampled_from(["float32", "float32", "float16", "bfloat16", "stored"]),
        "batch_size": st.integers(1, 40),
        "shuffle": st.booleans(),
        "soma_chunk_size": st.sampled_from([None, 3, 8, 20]),
        "use_eager_fetch": st.booleans(),
        "joinids": st.booleans(),
        "layers": st.sampled_from([(), (), ("other",), ("raw", "other")]),
        "obsm": st.sampled_from([(), ("scvi",)]),
        "obs_values": st.sampled_from([(), ("number", "fraction")]),
        "rank_remainder": st.sampled_from(["drop", "pad", "uneven"]),
        "rank": st.sampled_from([0, 1, 2]),
    }
)


def tensors(minibatch):
    """All tensors of a minibatch, by name."""
    for name, part in minibatch._asdict().items():
        if part is not None:
            yield from ((f"{name}/{k}", v) for k, v in part.items()) if isinstance(part, dict) else [(name, part)]


def bits(tensor):
    """The values of a dense tensor as integers that are in the order of the values, if these are not negative."""
    signed = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    return tensor.view(signed).to(torch.int64)


def assert_equal(found, expected, ulps=0):
    """Check that minibatches are equal to the bit; X of float32 may differ by some units in the last place."""
    assert type(found) is type(expected)
    expected = dict(tensors(expected))
    assert [name for name, _ in tensors(found)] == list(expected)
    for name, tensor in tensors(found):
        other = expected[name]
        assert (tensor.dtype, tensor.layout, tensor.shape) == (other.dtype, other.layout, other.shape), name
        if tensor.layout == torch.sparse_csr:
            assert_canonical(tensor)
            assert tensor.crow_indices().dtype == other.crow_indices().dtype
            assert torch.equal(tensor.crow_indices(), other.crow_indices())
            assert torch.equal(tensor.col_indices(), other.col_indices())
            tensor, other = tensor.values(), other.values()
        differences = (bits(tensor) - bits(other)).abs()
        assert differences.max().item() <= (ulps if name == "X" else 0) if differences.numel() else True, name


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=200)
@given(
    stored=st.sampled_from(["float32", "float32", "int64", "uint8"]),
    parameters=PARAMETERS,
    genes=st.sampled_from([None, None, ["G3", "G1", "G20"]]),
    resampled=st.booleans(),
)
def test_values_are_those_of_the_cpu_to_the_bit(stores, device, stored, parameters, genes, resampled):
    """Except for a fused logarithm: two correct roundings of it may differ by one unit in the last place."""
    if stored != "float32" and parameters["X_dtype"] == "stored":
        parameters["transform"] = None  # not all work on integers
    if genes is not None:
        parameters["transform"] = Log1p() if parameters["X_dtype"] != "stored" else None
    if parameters["X_dtype"] == "float16":
        parameters["layers"] = ()
    world = {} if parameters["rank"] == 2 else {"world_size": 2}
    parameters["rank"] = parameters["rank"] if world else None

    def make():
        made = ExperimentDataset(
            stores[stored], obs_column_names=["label", "soma_joinid"], seed=1, **parameters, **world
        )
        made = made if genes is None else made.select_genes(genes)
        if resampled and parameters["shuffle"] and parameters["batch_size"] < 10:
            made = made.resample(balance="label", n_obs=100)
        return made

    here, there = make(), make()
    pairs = list(zip(here, experiment_dataloader(there, device=device), strict=True))
    for expected, found in pairs:  # all of them are held until the end of the epoch
        assert found.X.device.type == device
        assert_equal(found.to("cpu"), expected, ulps=1)
    assert here.state_dict() == there.state_dict()
    assert here.stats().effective_batch_sizes == there.stats().effective_batch_sizes


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sparse", [False, True])
def test_counts_that_are_normalised_only_are_equal_to_the_bit(stores, sparse, device):
    for transform in (None, NormalizeTotal(1e4)):
        here, there = (
            ExperimentDataset(stores["int64"], batch_size=7, seed=0, return_sparse_X=sparse, transform=transform)
            for _ in range(2)
        )
        for expected, found in zip(here, experiment_dataloader(there, device=torch.device(device)), strict=True):
            assert_equal(found.to("cpu"), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_columns_beyond_16_bits(tmp_path, device):
    X = sp.csr_matrix(([3.0, 0.5, 7.0], ([0, 1, 1], [69_999, 0, 65_536])), shape=(2, 70_000))
    store = write_experiment(tmp_path / "wide", X, column_extent=70_000)
    for sparse in (False, True):
        dataset = ExperimentDataset(store, shuffle=False, return_sparse_X=sparse)
        (minibatch,) = experiment_dataloader(dataset, device=device)
        assert np.array_equal(minibatch.X.to_dense().cpu(), X.toarray())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sparse", [False, True])
def test_a_tensor_that_is_held_never_changes(store, sparse, device):
    """Rows of the ring are overwritten after three minibatches; tensors of minibatches are not."""
    dataset = ExperimentDataset(store, obs_column_names=["soma_joinid"], batch_size=5, seed=0, return_sparse_X=sparse)
    expected = addressed(100, 30).toarray()
    loader = experiment_dataloader(dataset, device=device)
    held = [minibatch for _ in range(2) for minibatch in loader]
    assert len(held) == 40
    for X, obs in held:
        assert np.array_equal(X.to_dense().cpu(), expected[obs[:, 0].cpu()])


def test_nothing_waits_for_the_device_or_comes_back_from_it(stores):
    """Tensors of the device "meta" have no values, so that an operation that reads one would raise an error."""
    transform = Compose(NormalizeTotal(), Log1p())
    for sparse in (False, True):
        dataset = ExperimentDataset(
            stores["float32"], batch_size=8, transform=transform, return_sparse_X=sparse, obs_values=["number"],
            obsm=["scvi"], layers=["other"], joinids=True, obs_column_names=["label"],
        )  # fmt: skip
        for minibatch in experiment_dataloader(dataset, device="meta"):
            assert {tensor.device.type for _, tensor in tensors(minibatch)} == {"meta"}
        assert dataset.stats().effective_batch_sizes["label"] > 1


def test_other_loaders_take_a_device(store):
    ordered = inference_dataloader(ExperimentDataset(store, batch_size=8, seed=0), device="cpu")
    assert torch.cat([joinids for _, _, joinids in ordered]).tolist() == list(range(100))
    single = experiment_dataloader(ExperimentDataPipe(store), device="meta")
    assert {(X.shape, X.device.type) for X, _ in single} == {((30,), "meta")}


@pytest.mark.slow
@pytest.mark.parametrize("device", ["meta", CUDA])
def test_minibatches_of_workers_are_moved(store, device):
    dataset = ExperimentDataset(store, obs_column_names=["soma_joinid"], batch_size=30, seed=0)
    minibatches = list(experiment_dataloader(dataset, num_workers=1, device=device))
    assert [minibatch.X.device.type for minibatch in minibatches] == [device] * 4


@pytest.mark.parametrize("n_received", range(6))
def test_an_epoch_resumes_where_the_loop_stopped(store, n_received):
    """Minibatches that are ahead of the loop do not count."""

    def make():
        return ExperimentDataset(store, obs_column_names=["soma_joinid"], batch_size=20, seed=0)

    whole = [obs[:, 0].tolist() for _, obs in make()]
    loader = experiment_dataloader(make(), device="cpu")
    minibatches = iter(loader)
    begun = [next(minibatches).obs[:, 0].tolist() for _ in range(min(n_received, 5))]
    resumed = experiment_dataloader(make(), device="cpu")
    resumed.load_state_dict(loader.state_dict())
    if n_received < 5:
        assert begun + [obs[:, 0].tolist() for _, obs in resumed] == whole
    else:
        assert begun == whole


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("how", ["break", "exception", "transform", "garbage"])
def test_no_thread_outlives_its_iterator(store, how, device):
    earlier = set(threading.enumerate())

    def fails(X):
        raise KeyError(how)

    dataset = ExperimentDataset(store, batch_size=2, transform=fails if how == "transform" else None)
    minibatches = iter(experiment_dataloader(dataset, device=device))
    if how == "break":
        for _ in minibatches:
            break
    elif how == "garbage":
        next(minibatches)
    else:
        with pytest.raises(KeyError, match=how):
            for _ in minibatches:
                raise KeyError(how)
    del minibatches
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith("cellfeed") and t not in earlier]


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("eager", [True, False])
def test_an_iterator_that_is_left_does_not_hold_up_the_end_of_the_interpreter(store, eager, device):
    code = f"""
import cellfeed
dataset = cellfeed.ExperimentDataset({store!r}, batch_size=2, use_eager_fetch={eager})
minibatches = iter(cellfeed.experiment_dataloader(dataset, device={device!r}))
print(len(next(minibatches).X))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert (done.stdout, done.stderr) == ("2\n", "")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device='gpu' is not a device of PyTorch; give"),
        (1.5, "device=1.5 is not a device of PyTorch; give"),
        ("cuda", "device='cuda': PyTorch .* finds 0 CUDA devices here; leave device= out"),
        ("mps", r"device='mps' cannot be used in PyTorch \S* \(Could not run .{,90}\); leave device= out"),
    ],
)
def test_devices_that_are_not_there(store, device, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PlanError, match=message):
        experiment_dataloader(ExperimentDataset(store), device=device)


def test_an_index_beyond_the_devices(store, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(PlanError, match="'cuda:2': PyTorch .* finds 2 CUDA devices here; give device='cuda:0' to 'cud"):
        experiment_dataloader(ExperimentDataset(store), device="cuda:2")
    assert experiment_dataloader(ExperimentDataset(store), device="cuda:1").device == torch.device("cuda:1")


def test_a_type_that_the_device_lacks(store, monkeypatch):
    def zeros(*size, dtype, device):
        raise TypeError(f"no {dtype}")

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(
        PlanError, match="'cpu' lacks the type bfloat16 of X .* make the dataset with X_dtype='float32'"
    ):
        experiment_dataloader(ExperimentDataset(store, X_dtype="bfloat16"), device="cpu")


def test_a_layout_that_the_device_lacks(store, monkeypatch):
    def sparse_csr_tensor(*arrays, **options):
        raise NotImplementedError("no CSR. And a hundred lines")

    dataset = ExperimentDataset(store, return_sparse_X=True)
    monkeypatch.setattr(torch, "sparse_csr_tensor", sparse_csr_tensor)
    with pytest.raises(
        PlanError, match=r"'cpu' lacks CSR in .* \(no CSR\); make the dataset with return_sparse_X=False"
    ):
        experiment_dataloader(dataset, device="cpu")


def test_threads_do_not_use_other_devices(store, monkeypatch):
    """Two threads that use "mps" crash PyTorch: minibatches are made on the CPU, and the training loop moves them."""
    kinds = ("cuda", "cpu", "meta", "mps", "xpu")
    assert [device_checks.makes_minibatches(torch.device(kind)) for kind in kinds] == [True] * 3 + [False] * 2
    monkeypatch.setattr(dataloader, "makes_minibatches", lambda device: False)
    threads, move = set(), cellfeed.Minibatch.to
    monkeypatch.setattr(cellfeed.Minibatch, "to", lambda *args: threads.add(threading.current_thread()) or move(*args))
    places = set()
    dataset = ExperimentDataset(store, batch_size=40, seed=0, transform=lambda X: places.add(X.device.type) or X)
    loader = experiment_dataloader(dataset, device="meta")
    assert [(len(X), X.device.type) for X, _ in loader] == [(40, "meta"), (40, "meta"), (20, "meta")]
    assert (places, threads) == ({"cpu"}, {threading.current_thread()})


def test_a_plan_has_the_memory_of_a_device(store):
    """The device need not be there: a plan is made on another machine."""
    dataset = ExperimentDataset(store, batch_size=64, seed=0)
    here, there = dataset.plan(), dataset.plan(device="cuda:7")
    assert (here.pinned_bytes, here.device_bytes) == (0, 0)
    assert "device memory" not in str(here)
    assert there.device_bytes > 3 * 64 * 30 * 4 > there.pinned_bytes > 0
    assert "device memory" in str(there)
    assert "of pinned memory" in str(there)
    on_cpu = dataset.plan(device="cpu")
    assert (on_cpu.pinned_bytes, on_cpu.device_bytes) == (0, there.device_bytes)
    assert experiment_dataloader(dataset, device="cpu").device_memory == (0, there.device_bytes)
    assert experiment_dataloader(dataset).device_memory == (0, 0)
    with pytest.raises(PlanError, match="device='gpu' is not a device of PyTorch; give"):
        dataset.plan(device="gpu")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_error_of_a_transform_names_the_device(store, device):
    """A transform that converts X to NumPy works on the CPU only."""

    def fails(X):
        raise KeyError("own")

    with pytest.raises(KeyError, match="own") as raised:
        next(iter(experiment_dataloader(ExperimentDataset(store, transform=fails), device=device)))
    notes = "".join(getattr(raised.value, "__notes__", []))
    assert notes.startswith("transform got X on device='meta'; if it needs the CPU, give") == (device == "meta")
    assert bool(notes) == (device == "meta")


def test_too_little_memory_of_the_device(store, monkeypatch):
    """The error has both numbers, and the batch size that it proposes is accepted."""
    loader = experiment_dataloader(ExperimentDataset(store, batch_size=64), device="cpu")
    needed = loader.device_memory.device_bytes
    assert needed > 3 * 64 * 30 * 4
    monkeypatch.setattr(device_checks, "free_bytes", lambda device: needed // 2)
    with pytest.raises(
        PlanError, match=r"has .* KiB of free memory, and minibatches of batch_size=64 take .* KiB there.*most 31"
    ):
        next(iter(loader))
    assert loader.dataset.epoch == 0  # an error begins no epoch
    smaller = experiment_dataloader(ExperimentDataset(store, batch_size=31), device="cpu")
    assert next(iter(smaller)).X.shape == (31, 30)


@pytest.mark.parametrize(
    ("transform", "found"), [(lambda X: X.to("meta"), "X on 'meta'"), (lambda X: X.numpy(), "a ndarray")]
)
def test_a_transform_that_moves_tensors_elsewhere(store, transform, found):
    loader = experiment_dataloader(ExperimentDataset(store, transform=transform), device="cpu")
    with pytest.raises(PlanError, match=f"transform returned {found}, but device='cpu': it must return a tensor on"):
        next(iter(loader))


def test_a_chain_of_datapipes_takes_no_device(store):
    with pytest.raises(PlanError, match="device='cpu' with a chain of datapipes"):
        experiment_dataloader(ExperimentDataPipe(store).map(len), device="cpu")


@CUDA.marks[0]
def test_a_gpu_takes_any_layout_of_a_transform(store):
    select = SelectGenes(["G7", "G2", "G3"], GENES)
    for transform, _ in LAYOUTS.values():
        dataset = ExperimentDataset(store, batch_size=7, seed=0, shuffle=False, transform=Compose(select, transform))
        found = [X for X, _ in experiment_dataloader(dataset, device="cuda")]
        assert np.array_equal(
            torch.cat([X.to_dense() for X in found]).cpu(), addressed(100, 30).toarray()[:, [7, 2, 3]]
        )


@CUDA.marks[0]
@pytest.mark.parametrize("sparse", [False, True])
def test_a_gpu_holds_no_more_than_was_said(make_store, sparse):
    """The loop runs ahead of the device, on a stream of its own, and holds one minibatch."""
    dataset = ExperimentDataset(make_store(3000), batch_size=256, seed=0, return_sparse_X=sparse)
    loader = experiment_dataloader(dataset, device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):
            for X, _ in loader:
                X.to_dense().square().sum()
    rounding = 100 * 512  # bytes: PyTorch allocates multiples of 512
    assert torch.cuda.max_memory_allocated() - before <= loader.device_memory.device_bytes + 3 * 256 * 30 * 4 + rounding


# ---------------------------------------------------------------------- streams


class Streams:
    """A device with streams, of which a log is kept. Its work is done at once, in the memory of the CPU."""

    def __init__(self, monkeypatch):
        self.log = []
        self.training = self.stream("training")
        make_empty = torch.empty
        monkeypatch.setattr(device_module, "_has_streams", lambda device: True)
        monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **how: make_empty(*size, **how))
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.stream("feed"))
        monkeypatch.setattr(torch.cuda, "stream", self.within)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.here.stream)
        monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, stream: self.record(t, stream))
        self.here = threading.local()

    def stream(self, name):
        return Stream(name, self.log)

    def record(self, tensor, stream):
        assert tensor.layout == torch.strided  # the function of PyTorch refuses sparse tensors
        self.log.append(("record", stream.name))

    @contextlib.contextmanager
    def within(self, stream):
        self.here.stream = stream
        yield
        self.here.stream = self.training


class Stream:
    def __init__(self, name, log):
        self.name, self.log, self.n_events = name, log, 0

    def record_event(self):
        self.n_events += 1
        event = Event(f"{self.name} {self.n_events}", self.log)
        self.log.append(("event", event.name))
        return event

    def wait_event(self, event):
        self.log.append(("wait", self.name, event.name))


class Event:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def synchronize(self):
        self.log.append(("synchronize", self.name))


@pytest.fixture
def streams(monkeypatch):
    return Streams(monkeypatch)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_order_of_work_on_streams(store, streams, sparse):
    """Each minibatch is made on the stream of the feed, which records an event per copy and per minibatch.

    The stream of the training loop waits for it, and each tensor is recorded there. The feed waits for the work of the
    loop with the minibatch three before, and for a copy from memory that it writes again.
    """
    streams.here.stream = streams.training
    dataset = ExperimentDataset(
        store, batch_size=20, seed=0, return_sparse_X=sparse, use_eager_fetch=False, shuffle=False
    )
    found = [X for X, _ in experiment_dataloader(dataset, device="cpu")]
    assert np.array_equal(torch.cat([X.to_dense() for X in found]), addressed(100, 30).toarray())
    n_tensors = 3 + 1 if sparse else 1 + 1  # X and obs
    received = lambda k: [("wait", "training", f"feed {2 * k}"), *[("record", "training")] * n_tensors]  # noqa: E731
    made = lambda k: [("event", f"feed {2 * k - 1}"), ("event", f"feed {2 * k}")]  # noqa: E731
    left = lambda k: [("event", f"training {k}")]  # noqa: E731
    again = lambda k: [("synchronize", f"training {k}"), ("synchronize", f"feed {2 * k - 1}")]  # noqa: E731
    assert streams.log == [
        *made(1), *received(1), *left(1), *made(2), *received(2), *left(2), *made(3), *received(3), *left(3),
        *again(1), *made(4), *received(4), *left(4), *again(2), *made(5), *received(5), *left(5),
    ]  # fmt: skip


LAYOUTS = {
    "coo": (torch.Tensor.to_sparse, 2), "csr": (torch.Tensor.to_sparse_csr, 3), "csc": (torch.Tensor.to_sparse_csc, 3),
    "bsr": (lambda X: X.to_sparse_bsr((1, 1)), 3), "bsc": (lambda X: X.to_sparse_bsc((1, 1)), 3),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transforms_return_any_layout(store, streams, layout):
    """Each tensor of a sparse one is recorded: its indices and its values."""
    streams.here.stream = streams.training
    transform, n_tensors = LAYOUTS[layout]
    dataset = ExperimentDataset(store, batch_size=100, seed=0, shuffle=False, transform=transform)
    ((X, _),) = experiment_dataloader(dataset, device="cpu")
    assert np.array_equal(X.to_dense(), addressed(100, 30).toarray())
    assert streams.log.count(("record", "training")) == n_tensors + 1  # and obs


def test_the_thread_of_the_feed_never_lacks_an_event(store, streams):
    streams.here.stream = streams.training
    for _ in range(3):
        assert len(list(experiment_dataloader(ExperimentDataset(store, batch_size=1), device="cpu"))) == 100


def test_a_ring_has_three_blocks_that_grow():
    ring = Ring(torch.device("cpu"))
    places = []
    for n_bytes in (100, 100, 100, 100, 50, 120, 200):
        with ring.slot(n_bytes) as block:
            places.append(block.data_ptr())
            assert (block.dtype, block.shape) == (torch.uint8, (n_bytes,))
    assert places[3:6] == places[:3]
    assert len(set(places)) <= 4


def test_rows_without_values():
    offsets = torch.zeros(3, dtype=torch.int32)
    rows = CompactRows(offsets, torch.zeros(0, dtype=torch.uint16), torch.zeros(0, dtype=torch.uint8))
    for made in (rows, rows.scaled(device_module.Scaling(10.0, True))):
        assert made.dense(4, torch.float32).tolist() == [[0] * 4] * 2
        assert made.csr(4, torch.float32).to_dense().tolist() == [[0] * 4] * 2
