"""Data, the check of every provider, and times.

Every provider's result and gradients are checked against the formula in float64 before anything is
timed. The providers of a case take turns in rounds, so that drift of the machine hits all of them,
and blockops' stand at both ends of a round: the ratio of the two times is the noise. Each time is
the median of the rounds' medians, or with --fastest the least of all, for a machine that others
use. Where one set of data fits the caches, calls go to several in turn.
"""

import argparse
import contextlib
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from blockops._cases import Case

from . import machine
from .contests import Contest, size
from .providers import OURS, Provider, largest_intermediate
from .truth import Truth, arguments, gradient, train

ROUNDS = 5
BLOCK = 1e-3  # seconds: calls that are shorter are timed together, in blocks that last as long
LONG = 0.3  # seconds: a call that takes longer is made once a round
SLOW = 3.0  # seconds: a provider whose call takes longer is timed with that one call
LARGEST = 4 << 30  # bytes: a provider with a larger intermediate is left out
SETS = 8  # of data, at most
AGAIN = " again"  # after the name of one of ours: its turn at the end of a round
PASSES = {  # and their work and memory traffic, in forward passes
    "forward": (1, 1),
    "forward_grad": (1, 1),
    "backward": (2, 1),
    "train": (3, 2),
}
Call = Callable[[], Any]


class Data:
    """What a case is measured with: sets of arguments with a gradient of the result, and the truth
    about the first of them."""

    def __init__(self, contest: Contest, case: Case, dtype: torch.dtype) -> None:
        args = arguments(case, dtype, 0)
        self.truth = Truth(contest, case, args)
        self.sets = [(args, self.truth.grad)]
        self.bytes = sum(t.nbytes for t in (*args, self.truth.grad))
        count = min(SETS, machine.cache_bytes() // max(self.bytes, 1) + 1)
        for seed in range(1, count):
            grad = gradient(case, self.truth.grad.shape, dtype, seed)
            self.sets.append((arguments(case, dtype, seed), grad))


class Entry:
    """A provider on a case, checked: the calls of each pass, or the reason why it is not timed."""

    def __init__(self, provider: Provider, contest: Contest, case: Case, data: Data) -> None:
        self.provider, self.case = provider, case
        self.without_grad = contest.without_grad
        self.slow: dict[str, float] = {}
        self.trouble = self._left_out(data.truth.dtype)
        if self.trouble:
            return
        try:
            function = provider.call
            if provider.compiled:
                function = torch.compile(function, dynamic=False, mode=provider.compiled)
            self.sets = [(*self._bind(function, args), grad) for args, grad in data.sets]
            self._turns = itertools.cycle(self.sets)
            if not provider.limit:
                self._check(data.truth)
        except Exception as error:
            self.trouble = f"raised {type(error).__name__}: {str(error).partition(chr(10))[0]}"

    def _left_out(self, dtype: torch.dtype) -> str:
        if lacking := self.provider.refuses(self.case):
            return f"left out: it needs {lacking}"
        size = largest_intermediate(self.case, self.provider, dtype)
        if size > LARGEST:
            return f"left out: its intermediate takes {size / 2**30:.1f} GiB"
        return ""

    def _bind(
        self, function: Callable[..., Tensor] | None, args: Sequence[Tensor]
    ) -> tuple[Call, list[Tensor]]:
        """A call of the provider without arguments, and the tensors whose gradients it gives."""
        if self.provider.limit:
            copy = torch.empty_like(args[0])
            return functools.partial(copy.copy_, args[0]), []
        names = list(self.case.shapes)
        wants = [name not in self.without_grad for name in names]
        leaves = [a.detach().requires_grad_(want) for a, want in zip(args, wants, strict=True)]
        if self.provider.module is not None:
            module = self.provider.module(self.case).to(args[0].dtype)
            with torch.no_grad():
                for parameter, values in zip(module.parameters(), args[1:], strict=True):
                    parameter.copy_(values)
            call = functools.partial(module, leaves[0])
            leaves[1:] = module.parameters()
        else:
            if self.provider.layout is not None:
                i = names.index("weight")
                weight = args[i].permute(self.provider.layout).contiguous()
                leaves[i] = weight.detach().requires_grad_()
            call = functools.partial(function, *leaves, **self.case.options)
        return call, [leaf for leaf in leaves if leaf.requires_grad]

    def _check(self, truth: Truth) -> None:
        call, leaves, grad = self.sets[0]
        for name in ("train", "forward"):  # forward without grad may well be other code
            if name not in self.provider.passes:
                continue
            with modes(self.provider, name):
                start = perf_counter()
                found = train(call, leaves, grad) if name == "train" else [call()]
                seconds = perf_counter() - start
            if any(t.dtype != truth.dtype for t in found):
                self.trouble = f"wrong: its dtype is not {truth.dtype}"
                return
            error = truth.error(found, self.provider.layout)
            if not error <= truth.tolerance:
                self.trouble = (
                    f"wrong: off by {error:.1e} of its scale, more than {truth.tolerance:g}"
                )
                return
            if seconds > SLOW and not self.provider.compiled:  # that was the one call
                self.slow[name] = seconds

    def calls(self, name: str, count: int) -> list[Call]:
        """Of one pass, ready to be made: what comes before it, as the forward pass before backward,
        is done. They go to the sets of data in turn."""
        ready = []
        for call, leaves, grad in itertools.islice(self._turns, count):
            if self.provider.limit:
                ready.append(functools.partial(_twice, call) if name == "train" else call)
            elif name == "backward":
                ready.append(functools.partial(torch.autograd.grad, call(), leaves, grad))
            elif name == "train":
                ready.append(functools.partial(train, call, leaves, grad))
            else:
                ready.append(call)
        return ready


def _twice(call: Call) -> None:
    call()
    call()


@contextlib.contextmanager
def modes(provider: Provider, name: str) -> Iterator[None]:
    """Grad mode and opt_einsum as the provider has them in the pass."""
    opt_einsum = torch.backends.opt_einsum.flags(enabled=provider.opt_einsum)
    with opt_einsum if "einsum" in provider.name else contextlib.nullcontext():
        with torch.set_grad_enabled(name != "forward" and not provider.limit):
            yield


def timed(calls: Sequence[Call]) -> float:
    start = perf_counter()
    for call in calls:
        call()
    return (perf_counter() - start) / len(calls)


def sample(ready: Callable[[int], list[Call]], seconds: float) -> list[float]:
    """Seconds a call takes, in each of at least three blocks of calls; of a long call only once.

    ready: makes so many calls ready, outside the timing.
    """
    first = timed(ready(1))
    if first > max(seconds, LONG):
        return [first]
    count = max(1, int(BLOCK / first))
    times: list[float] = []
    while len(times) < 3 or sum(times) * count < seconds:
        times.append(timed(ready(count)))
    return times


def ceiling(dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of a 1024^3 matrix product."""
    a, b = torch.randn(2, 1024, 1024).to(dtype)
    return (
        2
        * 1024**3
        / min(sample(lambda count: [functools.partial(torch.mm, a, b)] * count, seconds))
    )


def memory(case: Case, entry: Entry) -> dict[str, int]:
    """Bytes of PyTorch's allocator that a training step holds at once beyond its arguments and
    result, and the bound on them: the gradients, 16 MiB, for quadratic the packed weight, for
    linear_relu and the model the gradient of z, which has the result's size."""
    (step,) = entry.calls("train", 1)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        results = step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    beside = 0 if case.op in ("bilinear", "center") else results[0].nbytes
    if case.op == "quadratic":
        _, n, m = case.shapes["weight"]
        beside = n * (n + 1) // 2 * m * results[0].itemsize
    bound = beside + sum(t.nbytes for t in results[1:]) + (16 << 20)
    return {"peak": peak - results[0].nbytes, "bound": bound}


def measure(
    contest: Contest,
    case: Case,
    providers: Sequence[Provider],
    options: argparse.Namespace,
    step: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """All that one case gives, ready for JSON. step: told what is done next."""
    dtype = getattr(torch, options.dtype)
    torch.set_num_threads(options.threads)
    torch._dynamo.reset()
    data = Data(contest, case, dtype)
    entries = {}
    for provider in providers:
        step(f"check of {provider.name}")
        entries[provider.name] = Entry(provider, contest, case, data)
    sets, held = len(data.sets), data.bytes
    del data
    right = {name: entry for name, entry in entries.items() if not entry.trouble}
    again = {name + AGAIN: entry for name, entry in right.items() if entry.provider.ours}
    passes = {}
    for name in options.passes:
        work, traffic = PASSES[name]
        turns = {label: e for label, e in {**right, **again}.items() if name in e.provider.passes}
        passes[name] = {
            "floor_flops": work * case.floor_flops,
            "least_bytes": traffic * held,
            "times": take_turns(turns, name, options, step),
        }
    return {
        "op": case.op,
        "case": case.name,
        "size": size(case),
        "shapes": dict(case.shapes),
        "options": dict(case.options),
        "source_batch": case.batch,
        "input_bytes": math.prod(next(iter(case.shapes.values()))) * dtype.itemsize,
        "sets": sets,
        "ceiling": ceiling(dtype, options.seconds) if contest.products else None,
        "memory": memory(case, right[OURS]) if OURS in right else None,
        "troubles": {name: entry.trouble for name, entry in entries.items() if entry.trouble},
        "passes": passes,
    }


def take_turns(
    entries: dict[str, Entry],
    name: str,
    options: argparse.Namespace,
    step: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, list[float]]]:
    """Each entry's seconds a call: of every round, and the quartiles of all blocks. There is one
    round only where a call is slow, and fewer than all, though three, where calls take more than
    the time there is for them."""
    pick = min if options.fastest else statistics.median
    rounds: dict[str, list[float]] = {label: [] for label in entries}
    blocks: dict[str, list[float]] = {label: [] for label in entries}
    for label, entry in entries.items():
        if name in entry.slow:
            rounds[label], blocks[label] = [entry.slow[name]], [entry.slow[name]]
    for i in range(ROUNDS):
        step(f"{name}, round {i + 1} of {ROUNDS}")
        for label, entry in entries.items():
            taken = rounds[label]
            if max(taken, default=0) > SLOW or (
                len(taken) >= 3 and sum(taken) > 2 * options.seconds
            ):
                continue
            with modes(entry.provider, name):
                times = sample(functools.partial(entry.calls, name), options.seconds / ROUNDS)
            taken.append(pick(times))
            blocks[label] += times
    return {
        label: {"rounds": rounds[label], "quartiles": quartiles(blocks[label])} for label in entries
    }


def quartiles(times: Sequence[float]) -> list[float]:
    """The first and the third."""
    if len(times) == 1:
        return [times[0], times[0]]
    first, _, third = statistics.quantiles(times, n=4, method="inclusive")
    return [first, third]
