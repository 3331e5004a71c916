"""How a device is timed, and what else depends on the device.

On the CPU calls are timed in blocks. On CUDA triton's do_bench times each call between two events,
the L2 cache cleared before it, and do_bench_cudagraph many calls in one CUDA graph: without the
cost of launching them, the cache warm.
"""

import functools
import gc
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from . import machine

BLOCK = 1e-3  # seconds: calls that are shorter are timed together, in blocks that last as long
LONG = 12  # times the seconds of a round: a call that takes longer is made once in it, cold
SETS = 8  # of data, at most
Call = Callable[[], Any]
Ready = Callable[[int], list[Call]]  # makes so many calls ready, outside the timing


def timed(calls: Sequence[Call]) -> float:
    start = perf_counter()
    for call in calls:
        call()
    return (perf_counter() - start) / len(calls)


def sample(ready: Ready, seconds: float) -> list[float]:
    """Seconds a call takes, in each of some blocks of calls; of a long call only once."""
    first = timed(ready(1))
    if first > LONG * seconds:
        return [first]
    count = max(1, int(BLOCK / first))
    times: list[float] = []
    while not times or sum(times) * count < seconds:
        times.append(timed(ready(count)))
    return times


class Cpu:
    device = "cpu"
    # Many and short: where the machine is now fast and now slow, as where its cores share their
    # units with those of others, all should meet it at both.
    rounds = 15
    repeats = False  # whether one call is made many times over
    launch_bound = 0.0  # seconds: shorter passes are timed in a CUDA graph as well
    product = 1024  # side of the matrices whose product is the ceiling
    copy = 64 << 20  # bytes: the copy whose bandwidth is the ceiling
    largest = 4 << 30  # bytes: a provider with a larger intermediate is left out

    def sets(self, size: int) -> int:
        """Of data of so many bytes: enough not to stay in the caches, if SETS are."""
        return min(SETS, machine.cache_bytes() // max(size, 1) + 1)

    def times(self, ready: Ready, seconds: float) -> list[float]:
        return sample(ready, seconds)

    def wait(self) -> None:
        """Until all that was begun is done."""

    def tidy(self) -> None:
        """Before a case, so that memory of the last one is given back."""

    def peak(self, step: Callable[[], list[Tensor]]) -> tuple[list[Tensor], int]:
        """What the step gives, and the bytes that it holds at once."""
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            results = step()
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        return results, peak


class Cuda:
    device = "cuda"
    rounds = 5
    repeats = True
    launch_bound = 50e-6
    product = 8192
    copy = 1 << 30

    @functools.cached_property
    def largest(self) -> int:
        return torch.cuda.get_device_properties(0).total_memory // 4

    def sets(self, size: int) -> int:
        return 1  # the cache is cleared instead

    def times(self, ready: Ready, seconds: float) -> list[float]:
        from triton.testing import do_bench

        (call,) = ready(1)
        rep = 1e3 * seconds
        return [t / 1e3 for t in do_bench(call, warmup=rep / 4, rep=rep, return_mode="all")]

    def graph_times(self, ready: Ready, seconds: float) -> list[float]:
        from triton.testing import do_bench_cudagraph

        (call,) = ready(1)
        rep = 1e3 * seconds / 10  # what it does ten times
        return [t / 1e3 for t in do_bench_cudagraph(call, rep=rep, return_mode="all")]

    def wait(self) -> None:
        torch.cuda.synchronize()

    def tidy(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def peak(self, step: Callable[[], list[Tensor]]) -> tuple[list[Tensor], int]:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = step()
        torch.cuda.synchronize()
        return results, torch.cuda.max_memory_allocated() - before


CLOCKS = {"cpu": Cpu(), "cuda": Cuda()}


def why_missing(device: str) -> str:
    """Why there is no such device to be timed; "" where there is."""
    if device == "cpu":
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA in it"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    if not machine.has("triton"):
        return "triton, whose do_bench times the calls, is not installed"
    return ""
