"""The bilinear family against what PyTorch offers, in one run: python -m bench.bilinear.

Every provider's result and gradients are checked against a float64 einsum before it is timed. The
providers of a case take turns in rounds, so that drift of the machine hits all of them, and
blockops stands at both ends of a round: the ratio of its two times is the noise. Each time is the
median of the rounds' medians, or with --fastest the least of all, for a machine that others use.
"""

import argparse
import contextlib
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's notes, before torch is loaded

import torch
from torch import Tensor

from blockops._cases import Case
from blockops.ops.bilinear.cases import WORKLOADS

from . import machine, report
from .providers import PROVIDERS, Provider, largest_intermediate

ROUNDS = 5
LONG = 0.3  # seconds: a call that takes longer is made once a round
SLOW = 3.0  # seconds: a provider whose call takes longer is timed with that one call
LARGEST = 4 << 30  # bytes: a provider with a larger intermediate is left out
TRIVIAL = 100_000  # FLOPs: below, calls are overhead, and forward is also timed with grad mode on
# Of the sum of the absolute values of an element's terms.
TOLERANCES = {"float64": 1e-13, "float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
Pick = Callable[[list[float]], float]  # which of several times stands for all
PASSES = {"forward": 1, "forward_grad": 1, "train": 3}  # and their work, in forward passes


def train(call: Callable[..., Tensor], args: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    """The result and the gradient of each argument."""
    y = call(*args)
    return [y, *torch.autograd.grad(y, args, grad)]


class Data:
    """A case's arguments, and in float64 its result and gradients (`values`), each with the sum of
    the absolute values of its terms (`scales`), which rounding errors are measured against."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.args = tuple(case.tensors(dtype).values())
        shape = (self.args[0].shape[0], case.shapes["weight"][2 if case.op == "quadratic" else 0])
        self.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        textbook = next(p.call for p in PROVIDERS[case.op] if p.name == "einsum")
        args = tuple(a.double().requires_grad_() for a in self.args)
        self.values = [t.detach() for t in train(textbook, args, self.grad.double())]
        args = tuple(a.double().abs().requires_grad_() for a in self.args)
        self.scales = [t.detach() for t in train(textbook, args, self.grad.double().abs())]

    def leaves(self, provider: Provider) -> tuple[Tensor, ...]:
        """The arguments as the provider takes them."""
        *inputs, weight = self.args
        weight = weight.permute(provider.layout).contiguous()
        return tuple(t.detach().requires_grad_() for t in (*inputs, weight))

    def error(self, provider: Provider, found: list[Tensor]) -> float:
        """The largest error in what `train` gave, or in the result alone, relative to scales."""
        *values, grad_weight = self.values
        *scales, scale = self.scales
        values.append(grad_weight.permute(provider.layout))
        scales.append(scale.permute(provider.layout))
        worst = 0.0
        for a, value, scale in zip(found, values, scales, strict=False):
            if a.shape != value.shape:
                return math.inf
            error = a.detach().double().sub_(value).abs_().div_(scale).max().item()
            worst = max(worst, math.inf if math.isnan(error) else error)
        return worst


def sample(call: Callable[[], object], seconds: float, pick: Pick = statistics.median) -> float:
    """Seconds a call takes: the median, or `pick`, of at least three blocks of calls that last
    about a millisecond; of long calls only one."""
    start = perf_counter()
    call()
    first = perf_counter() - start
    if first > max(seconds, LONG):
        return first
    count = max(1, int(1e-3 / first))
    times: list[float] = []
    while len(times) < 3 or sum(times) * count < seconds:
        start = perf_counter()
        for _ in range(count):
            call()
        times.append((perf_counter() - start) / count)
    return pick(times)


def ceiling(dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of a 1024^3 matrix product."""
    a, b = torch.randn(2, 1024, 1024).to(dtype)
    return 2 * 1024**3 / sample(lambda: a @ b, seconds, pick=min)


def memory(case: Case, data: Data) -> dict[str, int]:
    """Bytes of PyTorch's allocator that a training step of blockops holds at once beyond its
    arguments and result, and the bound on them: packed weight (quadratic only), gradients, 16 MiB.
    """
    provider = PROVIDERS[case.op][0]
    leaves = data.leaves(provider)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        results = train(provider.call, leaves, data.grad)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    n, m = case.shapes["weight"][1:]
    packed = n * (n + 1) // 2 * m if case.op == "quadratic" else 0
    bound = packed * results[0].itemsize + sum(t.nbytes for t in results[1:]) + (16 << 20)
    return {"peak": peak - results[0].nbytes, "bound": bound}


@contextlib.contextmanager
def modes(provider: Provider, name: str) -> Iterator[None]:
    """Grad mode and opt_einsum as the provider has them in the pass."""
    opt_einsum = torch.backends.opt_einsum.flags(enabled=provider.opt_einsum)
    with opt_einsum if "einsum" in provider.name else contextlib.nullcontext():
        with torch.set_grad_enabled(name != "forward"):
            yield


class Entry:
    """A provider on a case, checked: its call for each pass, or the reason why it is not timed."""

    def __init__(self, provider: Provider, case: Case, data: Data) -> None:
        self.provider, self.trouble = provider, ""
        self.slow: dict[str, float] = {}
        dtype = data.grad.dtype
        size = largest_intermediate(case, provider, dtype)
        if size > LARGEST:
            self.trouble = f"left out: its intermediate takes {size / 2**30:.1f} GiB"
            return
        call = torch.compile(provider.call, dynamic=False) if provider.compiled else provider.call
        leaves = data.leaves(provider)
        self.calls: dict[str, Callable[[], object]] = {
            "forward": lambda: call(*leaves),
            "forward_grad": lambda: call(*leaves),
            "train": lambda: train(call, leaves, data.grad),
        }
        try:
            self._check(data, TOLERANCES[str(dtype).removeprefix("torch.")])
        except Exception as error:
            self.trouble = f"raised {type(error).__name__}: {str(error).partition(chr(10))[0]}"

    def _check(self, data: Data, tolerance: float) -> None:
        for name in ("train", "forward"):  # forward without grad may well be other code
            with modes(self.provider, name):
                start = perf_counter()
                found = self.calls[name]()
                seconds = perf_counter() - start
            error = data.error(self.provider, found if name == "train" else [found])
            if not error <= tolerance:
                self.trouble = (
                    f"wrong: off by {error:.1e} of the terms' sum, more than {tolerance:g}"
                )
                return
            if seconds > SLOW and not self.provider.compiled:  # that was the one call
                self.slow[name] = seconds


def measure(case: Case, providers: list[Provider], options: argparse.Namespace) -> dict[str, Any]:
    """All that one case gives, ready for JSON. providers: blockops, then the others."""
    dtype = getattr(torch, options.dtype)
    torch.set_num_threads(options.threads)
    torch._dynamo.reset()
    data = Data(case, dtype)
    entries = {p.name: Entry(p, case, data) for p in providers}
    data.values, data.scales = [], []
    ours = entries["blockops"]
    right = {name: entry for name, entry in entries.items() if not entry.trouble}
    if not ours.trouble:
        right["blockops again"] = ours
    passes = {}
    for name in PASSES:
        trivial = name == "forward_grad" and case.flops < TRIVIAL and "forward" in options.passes
        if name in options.passes or trivial:
            passes[name] = {
                "floor_flops": PASSES[name] * case.floor_flops,
                "seconds": take_turns(right, name, options),
            }
    return {
        "op": case.op,
        "case": case.name,
        "shapes": dict(case.shapes),
        "source_batch": case.batch,
        "ceiling": ceiling(dtype, options.seconds),
        "memory": None if ours.trouble else memory(case, data),
        "troubles": {name: entry.trouble for name, entry in entries.items() if entry.trouble},
        "passes": passes,
    }


def take_turns(
    entries: dict[str, Entry], name: str, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Each entry's seconds a call in each round; one number only where a call is slow, and fewer
    than all rounds, though three, where calls take more than the time there is for them."""
    pick = min if options.fastest else statistics.median
    samples = {
        label: [entry.slow[name]] if name in entry.slow else [] for label, entry in entries.items()
    }
    for _ in range(ROUNDS):
        for label, entry in entries.items():
            taken = samples[label]
            if max(taken, default=0) > SLOW or (
                len(taken) >= 3 and sum(taken) > 2 * options.seconds
            ):
                continue
            with modes(entry.provider, name):
                taken.append(sample(entry.calls[name], options.seconds / ROUNDS, pick))
    return samples


def parse(argv: list[str] | None) -> argparse.Namespace:
    def some_of(choices: list[str]) -> Callable[[str], list[str]]:
        def listed(text: str) -> list[str]:
            if unknown := set(text.split(",")) - set(choices):
                raise argparse.ArgumentTypeError(f"{unknown.pop()!r} is not one of {choices}")
            return text.split(",")

        return listed

    names = [case.name for case in WORKLOADS]
    passes, ops = list(PASSES), list(PROVIDERS)
    parser = argparse.ArgumentParser(
        prog="python -m bench.bilinear",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--case", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    add("--ops", type=some_of(ops), default=ops, help=f"some of {','.join(ops)}; default all")
    add("--passes", type=some_of(passes), default=["forward", "train"], help=",".join(passes))
    add("--dtype", choices=TOLERANCES, default="float32")
    add("--threads", type=int, default=2)
    add("--seconds", type=float, default=0.4, help="for each provider and pass; default 0.4")
    add(
        "--skip",
        nargs="+",
        action="extend",
        default=[],
        metavar="TEXT",
        help="no providers with it in their name",
    )
    add("--skip-compile", dest="skip", action="append_const", const="compiled")
    add("--fastest", action="store_true", help="take the fastest times, not medians")
    add("--targets", action="store_true", help="say which of the aims hold")
    add("--out", type=Path, metavar="DIR", help="store bilinear.json and bilinear.md here")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """1 where blockops is wrong on a case or fails, else 0."""
    options = parse(argv)
    record: dict[str, Any] = machine.facts() | {
        "threads": options.threads,
        "dtype": options.dtype,
        "time_budget": options.seconds,
        "fastest": options.fastest,
        "left_out": options.skip,
        "results": [],
    }
    for case in WORKLOADS:
        if case.name in options.case and case.op in options.ops:
            ours, *others = PROVIDERS[case.op]
            others = [p for p in others if not any(text in p.name for text in options.skip)]
            record["results"].append(measure(case, [ours, *others], options))
            for line in report.lines(record):
                print(line, file=sys.stderr, flush=True)
            if options.out is not None:
                report.store(record, options.targets, options.out)
    report.show(report.sections(record, options.targets))
    return int(any("blockops" in result["troubles"] for result in record["results"]))


if __name__ == "__main__":
    sys.exit(main())
