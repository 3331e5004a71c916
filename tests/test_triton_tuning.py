"""How the configuration of a Triton kernel is chosen, without a GPU: the kernel only notes what it
is launched with, a stand-in for the driver names a GPU, and runs take as long as the test says."""

import concurrent.futures
import contextlib
import runpy
import time

import pytest
import torch

triton = pytest.importorskip("triton")

from triton import language as tl  # noqa: E402 -- needs triton
from triton.runtime import driver  # noqa: E402 -- needs triton
from triton_on_cpu.compiled import Driver  # noqa: E402 -- needs triton

from blockops import _triton, _triton_kernels  # noqa: E402 -- needs triton
from blockops._triton_kernels import Tuned, bucket, configurations  # noqa: E402 -- needs triton
from blockops.ops.center import triton_kernels as center  # noqa: E402 -- needs triton
from blockops.ops.linear_relu import triton_kernels as linear_relu  # noqa: E402 -- needs triton

TILES = (16, 32, 64, 128, 256, 512)
KEY = ("a key",)


@triton.jit
def kernel(x, TILE: tl.constexpr):
    tl.store(x, TILE)


def cost(key, TILE):
    """The larger, the better; none is for the largest."""
    return None if TILE == TILES[-1] else 1 / TILE


class Runs:
    """Stands in for a kernel's runs and their measurement."""

    def __init__(self):
        self.tiles = []  # those of the launches, in order
        self.measured = []
        self.milliseconds = {}  # by tile, 1 where nothing is said
        self.too_large = ()

    def run(self, *args, grid, warmup, TILE=None, **constants):
        if TILE in self.too_large:
            raise triton.OutOfResources(2, 1, "shared memory")
        self.tiles.append(TILE)

    def measure(self, call, quantiles):
        call()
        self.measured.append(self.tiles[-1])
        return [self.milliseconds.get(self.tiles[-1], 1.0)] * len(quantiles)

    def of(self, tuned, key=KEY):
        """The tiles of the launches that a call makes."""
        before = len(self.tiles)
        tuned((1,), key, None)
        return self.tiles[before:]


@pytest.fixture
def runs(monkeypatch, tmp_path):
    runs = Runs()
    launched = (kernel, linear_relu.product_kernel, linear_relu.add_parts_kernel)
    launched += (center.center_whole_kernel, center.center_sums_kernel)
    for stand_in_for in (*launched, center.center_difference_kernel):
        monkeypatch.setattr(stand_in_for, "run", runs.run)
    monkeypatch.setattr(_triton_kernels, "_milliseconds", runs.measure)
    monkeypatch.setattr(_triton_kernels, "autotune", True)
    monkeypatch.setattr(driver, "_active", Driver(90))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return runs


@pytest.fixture
def untuned(monkeypatch, runs):
    monkeypatch.setattr(_triton_kernels, "autotune", False)


def tuned():
    return Tuned(kernel, configurations("TILE", *[(tile, 4, 2) for tile in TILES]), cost)


# ---- without measurements ----


def test_the_environment_can_forbid_to_measure(monkeypatch):
    for value, expected in (("0", False), ("1", True)):
        monkeypatch.setenv("BLOCKOPS_AUTOTUNE", value)
        assert runpy.run_path(_triton_kernels.__file__)["autotune"] is expected


def test_candidates_are_those_that_suit_the_best_estimate_first():
    candidates = [config.kwargs["TILE"] for config in tuned().candidates(KEY)]
    assert candidates == [256, 128, 64, 32, 16]


def test_the_best_estimate_is_taken(runs, untuned):
    subject = tuned()
    assert [runs.of(subject), runs.of(subject)] == [[256], [256]]
    assert runs.measured == []


def test_a_configuration_that_does_not_fit_is_tried_once(runs, untuned):
    subject = tuned()
    runs.too_large = (256, 128)
    assert runs.of(subject) == [64]
    runs.too_large = ()
    assert runs.of(subject) == [64]


def test_if_none_fits_the_reason_is_raised(runs, untuned):
    runs.too_large = TILES
    with pytest.raises(triton.OutOfResources):
        runs.of(tuned())


# ---- measured ----


def test_the_fastest_of_the_best_estimates_is_taken(runs):
    subject = tuned()
    runs.milliseconds = {16: 0.1, 64: 0.5}  # but 16 is estimated to be the slowest
    assert runs.of(subject)[-1] == 64
    assert runs.measured == [256, 128, 64, 32]
    assert runs.of(subject) == [64]


def test_a_key_is_measured_once(runs):
    subject = tuned()
    for size in range(1, 200):
        runs.of(subject, (bucket(size),))
    assert len(runs.measured) == 4 * len({bucket(size) for size in range(1, 200)})


def linear_relu_of(rows):
    x, weight = torch.empty(rows, 24), torch.empty(40, 24)
    linear_relu.linear_relu(torch.empty(rows, 40), x, weight)


def linear_relu_backward_of(rows):
    x, weight, y = torch.empty(rows, 24), torch.empty(40, 24), torch.empty(rows, 40)
    results = torch.empty_like(x), torch.empty_like(weight), torch.empty(40)
    linear_relu.linear_relu_backward(results, y, x, weight, y)


def center_of(rows):
    x = torch.empty(rows, 300)
    center.center(torch.empty_like(x), x, [0])


@pytest.mark.parametrize("call", [linear_relu_of, linear_relu_backward_of, center_of])
def test_a_growing_batch_is_measured_once_for_each_power_of_two(runs, monkeypatch, call):
    for subject in (linear_relu.product, center.whole, center.sums_in_parts, center.difference):
        monkeypatch.setattr(subject, "_chosen", {})
    counts = []
    for rows in (1025, 1100, 1900, 2048, 2049, 4096):
        call(rows)
        counts.append(len(runs.measured))
    assert 0 < counts[0] == counts[3] < counts[4] == counts[5]


def test_what_does_not_fit_is_not_taken(runs):
    runs.too_large, runs.milliseconds = (128, 64), {128: 0.1, 32: 0.5}
    assert runs.of(tuned())[-1] == 32
    assert runs.measured == [256, 32]


def test_if_nothing_measured_fits_the_next_does(runs):
    runs.too_large = (256, 128, 64, 32)
    assert runs.of(tuned()) == [16]


def test_without_memory_to_measure_with_the_estimate_holds(runs, monkeypatch):
    def measure(call, quantiles):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(_triton_kernels, "_milliseconds", measure)
    assert runs.of(tuned()) == [256]


def test_nothing_is_measured_while_a_graph_is_captured(runs, monkeypatch):
    subject, capturing = tuned(), [True]
    runs.milliseconds = {64: 0.5}
    monkeypatch.setattr(_triton_kernels, "_gpu_model", lambda: "a model")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    assert runs.of(subject) == [256]
    assert runs.measured == []
    capturing[0] = False
    assert runs.of(subject)[-1] == 64  # measured now
    capturing[0] = True
    assert runs.of(subject) == [64]  # as it was outside of the graph


def test_one_thread_measures_at_a_time_and_the_others_take_what_it_found(runs, monkeypatch):
    subject, measuring = tuned(), []

    def measure(call, quantiles):
        assert not measuring
        measuring.append(True)
        time.sleep(0.01)
        measuring.pop()
        return runs.measure(call, quantiles)

    monkeypatch.setattr(_triton_kernels, "_milliseconds", measure)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(subject, (1,), KEY, None) for _ in range(4)]:
            future.result()
    assert len(runs.measured) == 4


class TimedDriver(Driver):
    """Of a GPU whose clock says 10 ms more when its cache was overwritten. It is its own interface,
    as torch.cuda is: what PyTorch has for events."""

    now = 0.0

    def get_device_interface(self):
        return self

    def synchronize(self):
        pass

    def get_empty_cache_for_benchmark(self):
        pass

    def clear_cache(self, cache):
        self.now += 10

    def Event(self, enable_timing):
        return TimedEvent(self)


class TimedEvent:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.at = self.device.now

    def elapsed_time(self, end):
        return end.at - self.at


def test_what_is_measured_is_the_kernel_alone(monkeypatch):
    device = TimedDriver(90)
    monkeypatch.setattr(driver, "_active", device)

    def call():
        device.now += 0.25

    assert _triton_kernels._milliseconds(call, (0.5, 0.2, 0.8)) == [0.25] * 3


# ---- on disk ----


def test_measurements_are_found_again_on_disk(runs):
    runs.milliseconds = {64: 0.5}
    runs.of(tuned())
    runs.measured.clear()
    assert runs.of(tuned())[-1] == 64  # of an instance that has measured nothing
    assert runs.measured == []


@pytest.mark.parametrize("change", ["key", "model", "architecture", "candidates"])
def test_on_disk_only_what_is_alike_is_found(runs, monkeypatch, change):
    runs.of(tuned())
    runs.measured.clear()
    subject, key = tuned(), KEY
    if change == "key":
        key = ("another key",)
    elif change == "model":
        monkeypatch.setattr(_triton_kernels, "_gpu_model", lambda: "another model")
    elif change == "architecture":
        monkeypatch.setattr(driver, "_active", Driver(80))
    else:
        subject.configs = subject.configs[1:-2]
    runs.of(subject, key)
    assert runs.measured


def test_kernels_are_launched_on_the_arguments_device(monkeypatch):
    inside, seen = [], []

    @contextlib.contextmanager
    def device_of(tensor):
        inside.append(tensor)
        yield
        inside.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(center, "center", lambda y, x: seen.extend(inside))
    x = torch.ones(3)
    assert _triton._kernel("center", "center")(x).shape == x.shape
    assert len(seen) == 1 and seen[0] is x
    assert not inside
