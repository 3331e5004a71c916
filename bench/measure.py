"""Data, the check of every provider, and times.

Every provider's result and gradients are checked against the formula in float64 before anything is
timed. The providers of a case take turns in rounds, so that drift of the machine hits all of them,
and blockops' stand at both ends of a round: how far its two times differ tells the noise. Each
time is the median of the rounds' medians, or with --fastest the least of all, for a machine that
others use. Where one set of data fits the caches, calls go to several in turn, those of all
providers in the same memory, but for weights that one keeps in another order: each call to the set
that was used longest ago, so that none meets one that the provider before it has just left in the
cache.
"""

import argparse
import contextlib
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from time import monotonic, perf_counter
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch

import blockops
from blockops._cases import Case

from . import floors
from .clocks import CLOCKS, Call, Cpu, Cuda, Ready
from .contests import Contest, size
from .providers import COMPILED, OURS, Provider, largest_intermediate
from .truth import DTYPES, Truth, arguments, gradient, train

FEWEST = 5  # rounds of a call that is not tedious, however long they take
TEDIOUS = 0.5  # seconds: of a call that takes longer there are three rounds at least
SLOW = 10.0  # seconds: a provider whose call takes longer is timed with that one call
AGAIN = " again"  # after the name of one of ours: its turn at the end of a round
OVER = "not measured: the time for all was over"
GRAPH = ", CUDA graph"  # after the name of a pass: timed without the cost of launches
IN_GRAPHS = ("forward", "forward_grad", "train")  # backward alone is bound to its forward's stream
# The mode of torch.compile that makes CUDA graphs: they go into no other graph, and the memory that
# they hold was allocated before a call.
OWN_GRAPHS = "max-autotune"
Clock = Cpu | Cuda


class Data:
    """What a case is measured with: sets of arguments with a gradient of the result, and the truth
    about the first of them. precision: a key of TOLERANCES."""

    def __init__(
        self, contest: Contest, case: Case, precision: str, clock: Clock = CLOCKS["cpu"]
    ) -> None:
        dtype, device = DTYPES[precision], clock.device
        args = arguments(case, dtype, 0, device)
        self.truth = Truth(contest, case, args, precision)
        self.sets = [(args, self.truth.grad)]
        self._first = [t.clone() for t in (*args, self.truth.grad)]
        self.bytes = sum(t.nbytes for t in (*args, self.truth.grad))
        for seed in range(1, clock.sets(self.bytes)):
            grad = gradient(case, self.truth.grad.shape, dtype, seed, device)
            self.sets.append((arguments(case, dtype, seed, device), grad))
        self.turns = itertools.cycle(range(len(self.sets)))

    def restored(self) -> bool:
        """Whether the first set was written to; it is then what it was, for the next provider."""
        args, grad = self.sets[0]
        pairs = zip((*args, grad), self._first, strict=True)
        changed = [(tensor, was) for tensor, was in pairs if not torch.equal(tensor, was)]
        for tensor, was in changed:
            tensor.copy_(was)
        return bool(changed)


class Entry:
    """A provider on a case, checked: the calls of each pass, or the reason why it is not timed."""

    def __init__(
        self,
        provider: Provider,
        contest: Contest,
        case: Case,
        data: Data,
        clock: Clock = CLOCKS["cpu"],
    ) -> None:
        self.provider, self.case, self.clock = provider, case, clock
        self.without_grad = contest.without_grad
        self.slow: dict[str, float] = {}
        self.trouble = self._left_out(data.truth.dtype)
        if self.trouble:
            return
        try:
            function = provider.call
            if provider.compiled:
                function = torch.compile(function, dynamic=False, **COMPILED[provider.compiled])
            self.sets = [(*self._bind(function, args), grad) for args, grad in data.sets]
            self._turns = data.turns
            if not provider.limit:
                self._check(data.truth)
        except Exception as error:
            self.trouble = raised(error)
        if data.restored():
            self.trouble = "wrong: it writes into its arguments"

    def _left_out(self, dtype: torch.dtype) -> str:
        if lacking := self.provider.refuses(self.case):
            return f"left out: it needs {lacking}"
        size = largest_intermediate(self.case, self.provider, dtype)
        if size > self.clock.largest:
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
            module = self.provider.module(self.case).to(args[0])
            for parameter, values in zip(module.parameters(), args[1:], strict=True):
                parameter.data = values
            call = functools.partial(module, leaves[0])
            leaves[1:] = module.parameters()
        else:
            if self.provider.layout is not None:
                i = names.index("weight")
                weight = args[i].permute(self.provider.layout).contiguous()
                leaves[i] = weight.detach().requires_grad_()
            call = functools.partial(function, *leaves, **self.case.options)
            if self.provider.prepares:
                return function(*args, **self.case.options), []
        return call, [leaf for leaf in leaves if leaf.requires_grad]

    def _check(self, truth: Truth) -> None:
        call, leaves, grad = self.sets[0]
        for name in ("train", "forward"):  # forward without grad may well be other code
            if name not in self.provider.passes:
                continue
            with modes(self.provider, name):
                start = perf_counter()
                found = train(call, leaves, grad) if name == "train" else [call()]
                self.clock.wait()
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
            if seconds > SLOW and not self._compiles():  # that was the one call
                self.slow[name] = seconds

    def _compiles(self) -> bool:
        """Whether its first call may take long for another reason than the work: on a GPU kernels
        are loaded, compiled and tuned."""
        return bool(self.provider.compiled) or self.clock.repeats

    def calls(self, name: str, count: int) -> list[Call]:
        """Of one pass, ready to be made: what comes before it, as the forward pass before backward,
        is done. They go to the sets of data in turn. Each may be made more than once where the
        clock does so."""
        ready = []
        for turn in itertools.islice(self._turns, count):
            call, leaves, grad = self.sets[turn]
            if self.provider.limit:
                ready.append(functools.partial(_twice, call) if name == "train" else call)
            elif name == "backward":
                backward = functools.partial(torch.autograd.grad, call(), leaves, grad)
                # Not in any case: what retains the graph keeps its memory until the next call.
                keep = {"retain_graph": True} if self.clock.repeats else {}
                ready.append(functools.partial(backward, **keep))
            elif name == "train":
                ready.append(functools.partial(train, call, leaves, grad))
            else:
                ready.append(call)
        return ready


def _twice(call: Call) -> None:
    call()
    call()


def raised(error: Exception) -> str:
    return f"raised {type(error).__name__}: {str(error).partition(chr(10))[0]}"


@contextlib.contextmanager
def modes(provider: Provider, name: str) -> Iterator[None]:
    """Grad mode, opt_einsum and backend as the provider has them in the pass."""
    with contextlib.ExitStack() as stack:
        if "einsum" in provider.name:
            planner = torch.backends.opt_einsum  # refuses to be enabled where it is not installed
            enabled = provider.opt_einsum and planner.is_available()
            stack.enter_context(planner.flags(enabled=enabled))
        stack.enter_context(blockops.backend(provider.backend or "auto"))  # BLOCKOPS_BACKEND or not
        stack.enter_context(torch.set_grad_enabled(name != "forward" and not provider.limit))
        yield


def ceilings(contest: Contest, precision: str, clock: Clock, seconds: float) -> dict[str, Any]:
    """FLOPs a second of a matrix product, where products bound the op, and bytes a second that a
    large copy reads and writes."""
    dtype, n = DTYPES[precision], clock.product
    product = None
    if contest.products:
        a, b = torch.randn(2, n, n, device=clock.device).to(dtype)
        call = functools.partial(torch.mm, a, b)
        product = 2 * n**3 / min(clock.times(lambda count: [call] * count, seconds))
    source = torch.randn(clock.copy // dtype.itemsize, device=clock.device).to(dtype)
    call = functools.partial(torch.empty_like(source).copy_, source)
    copy = 2 * source.nbytes / min(clock.times(lambda count: [call] * count, seconds))
    return {"ceiling": product, "copy": copy}


def memory(case: Case, entry: Entry) -> dict[str, int]:
    """Bytes of PyTorch's allocator that a training step holds at once beyond its arguments and
    result (on the CPU those of the calling thread), and the bound on them: the gradients, 16 MiB,
    for quadratic the packed weight, for linear_relu and the model the gradient of z, which has the
    result's size."""
    (step,) = entry.calls("train", 1)
    if kept := blockops.info()["memory"]:  # from before, and maybe larger than what is asked for
        blockops.keep_memory(0)
        blockops.keep_memory(kept["limit"])
    results, peak = entry.clock.peak(step)
    beside = 0 if case.op in ("bilinear", "center") else results[0].nbytes
    if case.op == "quadratic":
        _, n, m = case.shapes["weight"]
        beside = n * (n + 1) // 2 * m * results[0].itemsize
    bound = beside + sum(t.nbytes for t in results[1:]) + (16 << 20)
    return {"peak": peak - results[0].nbytes, "bound": bound}


def memories(
    case: Case, entries: dict[str, Entry], deadline: float, troubles: dict[str, str]
) -> dict[str, Any]:
    """memory() of blockops, and the same bytes of every provider that has a training step, is not
    slow and does not keep memory in graphs."""
    found = {}
    for name, entry in entries.items():
        provider = entry.provider
        has = "train" in provider.passes and not provider.limit and not entry.slow
        has &= provider.compiled != OWN_GRAPHS or not entry.clock.repeats
        if not has or name != OURS and monotonic() > deadline:
            continue
        try:
            with modes(provider, "train"):
                found[name] = memory(case, entry)
        except Exception as error:
            troubles[f"{name}, memory"] = raised(error)
    peaks = {name: each["peak"] for name, each in found.items()}
    return {"memory": found.get(OURS), "memory_of": peaks}


def measure(
    contest: Contest,
    case: Case,
    providers: Sequence[Provider],
    options: argparse.Namespace,
    step: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """All that one case gives, ready for JSON. step: told what is done next."""
    clock = CLOCKS[options.device]
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = options.dtype == "tf32"
    # What a compiled backward pass donates cannot be used again by a call that is repeated.
    functorch.donated_buffer = not clock.repeats
    torch._dynamo.reset()
    data = Data(contest, case, options.dtype, clock)
    entries, troubles = {}, {}
    for provider in providers:
        if monotonic() > options.deadline:
            troubles[provider.name] = OVER
            continue
        step(f"check of {provider.name}")
        entry = Entry(provider, contest, case, data, clock)
        if entry.trouble:
            troubles[provider.name] = entry.trouble
        else:
            entries[provider.name] = entry
    if OVER in troubles.values():  # the best of some is not the best
        troubles |= dict.fromkeys(entries, OVER)
        entries = {}
    sets, elements = len(data.sets), data.truth.grad.numel()
    del data
    times = timings(entries, options, troubles, step)
    try:
        tops = ceilings(contest, options.dtype, clock, options.seconds)
    except Exception as error:  # what was timed is worth keeping
        tops, troubles["ceilings"] = {}, raised(error)
    dtype = DTYPES[options.dtype]
    return {
        "op": case.op,
        "case": case.name,
        "size": size(case),
        "shapes": dict(case.shapes),
        "options": dict(case.options),
        "source_batch": case.batch,
        "input_bytes": math.prod(next(iter(case.shapes.values()))) * dtype.itemsize,
        "sets": sets,
        **tops,
        **memories(case, entries, options.deadline, troubles),
        "troubles": troubles,
        "passes": {
            name: floors.of(case, name.removesuffix(GRAPH), elements, dtype, contest.without_grad)
            | {"times": each}
            for name, each in times.items()
        },
    }


def timings(
    entries: dict[str, Entry],
    options: argparse.Namespace,
    troubles: dict[str, str],
    step: Callable[[str], None],
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """By pass what take_turns() gives; where calls on a GPU are so short that launching them takes
    the time, of the pass in a CUDA graph as well."""
    clock = CLOCKS[options.device]
    again = {name + AGAIN: entry for name, entry in entries.items() if entry.provider.ours}
    found = {}
    for name in options.passes:
        turns = {label: e for label, e in {**entries, **again}.items() if name in e.provider.passes}
        found[name] = take_turns(turns, name, clock.times, options, troubles, step)
        rounds = found[name].get(OURS, {}).get("rounds", [math.inf])
        if name in IN_GRAPHS and min(rounds) < clock.launch_bound:
            able = {n: e for n, e in turns.items() if e.provider.compiled != OWN_GRAPHS}
            found[name + GRAPH] = take_turns(
                able, name, clock.graph_times, options, troubles, step, GRAPH
            )
    return found


def take_turns(
    entries: dict[str, Entry],
    name: str,
    times_of: Callable[[Ready, float], list[float]],
    options: argparse.Namespace,
    troubles: dict[str, str],
    step: Callable[[str], None] = lambda text: None,
    how: str = "",
) -> dict[str, dict[str, list[float]]]:
    """Each entry's seconds a call: of every round, and the quartiles of all blocks. There is one
    round only where a call is slow, and fewer than all where they take more than the time that
    there is for them. One that raises has none; it is added to troubles."""
    pick = min if options.fastest else statistics.median
    rounds: dict[str, list[float]] = {label: [] for label in entries}
    blocks: dict[str, list[float]] = {label: [] for label in entries}
    for label, entry in entries.items():
        if name in entry.slow:
            rounds[label], blocks[label] = [entry.slow[name]], [entry.slow[name]]
    count = CLOCKS[options.device].rounds
    for i in range(count):
        step(f"{name}{how}, round {i + 1} of {count}")
        if i and monotonic() > options.deadline:
            break
        for label in list(rounds):
            taken = rounds.get(label)
            if taken is None:  # its other turn raised in this round
                continue
            if enough(taken, options.seconds):
                continue
            entry = entries[label]
            try:
                with modes(entry.provider, name):
                    ready = functools.partial(entry.calls, name)
                    times = times_of(ready, options.seconds / count)
            except Exception as error:
                who = label.removesuffix(AGAIN)
                troubles[f"{who}, {name}{how}"] = raised(error)
                for gone in (who, who + AGAIN):
                    rounds.pop(gone, None)
                continue
            taken.append(pick(times))
            blocks[label] += times
    return {
        label: {"rounds": taken, "quartiles": quartiles(blocks[label])}
        for label, taken in rounds.items()
    }


def enough(taken: Sequence[float], seconds: float) -> bool:
    """Whether there are no more rounds of what took so long in those that were."""
    longest = max(taken, default=0.0)
    fewest = FEWEST if longest <= TEDIOUS else 3
    return longest > SLOW or (len(taken) >= fewest and sum(taken) > 2 * seconds)


def quartiles(times: Sequence[float]) -> list[float]:
    """The first and the third."""
    if len(times) == 1:
        return [times[0], times[0]]
    first, _, third = statistics.quantiles(times, n=4, method="inclusive")
    return [first, third]
