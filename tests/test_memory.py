"""The memory of large results that is kept for the next ones."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import support
import torch

import blockops

MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    blockops._library.why_missing is not None, reason=f"{blockops._library.why_missing}"
)


@pytest.fixture(autouse=True)
def nothing_kept():
    support.keep_nothing()
    yield
    support.keep_nothing()


def kept():
    return blockops.info()["memory"]["kept"]


def result(mebibytes):
    """A result of so many MiB, with some values in it."""
    return blockops.center(torch.arange(mebibytes * MIB / 4))


def test_the_next_result_takes_the_memory_of_the_last():
    first, second = result(4), result(4)
    places = {first.data_ptr(), second.data_ptr()}
    assert len(places) == 2 and kept() == 0
    del first, second
    assert kept() == 8 * MIB
    again = [result(4), result(3.75), result(4)]
    assert {again[0].data_ptr(), again[1].data_ptr()} == places
    assert again[2].data_ptr() not in places and kept() == 0


def test_only_what_fits_is_taken():
    place = result(4).data_ptr()
    smaller, larger = result(3.25), result(4.25)
    assert place not in (smaller.data_ptr(), larger.data_ptr()) and kept() == 4 * MIB


def test_small_results_are_left_to_malloc():
    result(0.5)
    assert kept() == 0


@pytest.mark.parametrize("size", [1, 15, 16, 17, 33, 1000, 5000])
def test_small_results_begin_with_a_line(size):
    x = torch.arange(float(size))
    results = [blockops.center(x) for _ in range(20)]
    assert all(y.data_ptr() % 64 == 0 for y in results)
    assert len({y.data_ptr() for y in results}) == 20
    expected = x - (size - 1) / 2
    assert all(torch.equal(y, expected) for y in results)


def test_the_profiler_sees_small_results():
    x = torch.ones(1000)
    sizes = support.allocations(lambda: [blockops.center(x) for _ in range(3)].clear())
    assert sizes.count(4000) == 3 and sizes.count(-4000) == 3 and sum(sizes) == 0


def test_gradients_and_scratch_are_kept_too():
    x = torch.randn(64, 128, requires_grad=True)
    weight = torch.randn(128, 128, 64, requires_grad=True)
    torch.autograd.grad(blockops.quadratic(x, weight).sum(), [x, weight])
    before = kept()
    assert before >= 4 * MIB  # the weight's gradient
    torch.autograd.grad(blockops.quadratic(x, weight).sum(), [x, weight])
    assert kept() == before


def test_the_limit():
    blockops.keep_memory(10 * MIB)
    assert blockops.info()["memory"]["limit"] == 10 * MIB
    first, second, third, huge = result(4), result(5), result(6), result(11)
    places = [tensor.data_ptr() for tensor in (first, second, third)]
    del huge
    assert kept() == 0
    del first
    del second
    assert kept() == 9 * MIB
    del third  # the first goes for it, and the second
    assert kept() == 6 * MIB and result(6).data_ptr() == places[2]
    blockops.keep_memory(5 * MIB)
    assert kept() == 0


def test_the_profiler_sees_it_each_time():
    x = torch.ones(MIB)
    for _ in range(2):
        sizes = support.allocations(lambda: [blockops.center(x) for _ in range(3)].clear())
        assert [size for size in sizes if abs(size) >= MIB].count(4 * MIB) == 3
        assert sum(sizes) == 0 and support.peak(sizes) >= 12 * MIB
    blockops.center(x)
    with torch.profiler.profile(profile_memory=True) as profiler:
        blockops.center(x)  # in kept memory
    sizes = [event.nbytes() for event in profiler.profiler.kineto_results.events()]
    assert 4 * MIB in sizes and -4 * MIB in sizes


def test_a_result_can_be_resized():
    y = result(4)
    values = y.clone()
    y.resize_(2 * MIB)
    assert torch.equal(y[:MIB], values)
    y[MIB:] = 0
    del y
    assert kept() == 12 * MIB


def test_many_threads():
    """Two results that live at once, of one thread or of two, never share memory."""

    def work(thread):
        torch.set_num_threads(1)  # holds for the thread that says it
        means = [4 * thread + size for size in (1, 2, 3, 4)]  # no two results have the same
        inputs = [torch.zeros(size * MIB // 4) for size in (1, 2, 3, 4)]
        for x, mean in zip(inputs, means, strict=True):
            x[0] = mean * x.numel()
        for _ in range(40):
            for _ in range(50):
                blockops.center(inputs[0])
            held = [blockops.center(x) for x in inputs]
            for y, x, mean in zip(held, inputs, means, strict=True):
                assert y.shape == x.shape and (y[1:] == -mean).all(), (thread, mean)
        return True

    with support.threads(1), ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))
    assert kept() <= 6 * 21 * MIB  # what each thread has at once: two times ten, and one


SCARCE = """
import resource, torch, blockops

x = torch.zeros(70 << 20)  # 280 MiB
blockops.center(x[: 50 << 20])
assert blockops.info()["memory"]["kept"] == 200 << 20
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (150 << 20),) * 2)
y = blockops.center(x)
assert y.nbytes == 280 << 20 and blockops.info()["memory"]["kept"] == 0
print("enough")
"""


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="the memory that a process may have is read and limited as Linux does it",
)
def test_memory_that_is_scarce():
    """What is kept goes back to the system before an allocation fails."""
    done = support.run_python(SCARCE)
    assert done.stdout.strip() == "enough", done.stderr


FORK = """
import os, torch, blockops

torch.set_num_threads(1)
x = torch.arange(2.0**20)
expected = blockops.center(x).clone()
child = os.fork()
same = torch.equal(blockops.center(x), expected)
if child == 0:
    os._exit(not same)
assert same and os.waitpid(child, 0)[1] == 0
print("same")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process():
    """As the workers of a data loader are."""
    done = support.run_python(FORK)
    assert done.stdout.strip() == "same", done.stderr


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (-1, ValueError, "keep_memory: limit must be at least 0, got -1"),
        (1e9, TypeError, "keep_memory: limit must be an int, got float"),
        (True, TypeError, "keep_memory: limit must be an int, got bool"),
    ],
)
def test_refusals(limit, error, message):
    with pytest.raises(error) as raised:
        blockops.keep_memory(limit)
    assert str(raised.value) == message
    assert blockops.info()["memory"]["limit"] == support.KEPT_MEMORY


def test_a_limit_beyond_all_memory():
    blockops.keep_memory(1 << 100)
    assert blockops.info()["memory"]["limit"] == sys.maxsize
