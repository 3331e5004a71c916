"""The options of a run, and what they ask for."""

import argparse
import itertools
import math
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blockops._cases import Case

from . import curves
from .clocks import CLOCKS, why_missing
from .contests import CONTESTS, Contest, full
from .providers import PASSES, Provider, why_unavailable
from .truth import DTYPES

SECONDS = 0.4
QUICK_SECONDS = 0.02
PARTS = ("cases", "curves", "overhead")
SHORT = {"fwd": "forward", "bwd": "backward"}  # names of passes that are taken as well
USAGE = """\
blockops against what PyTorch offers, every op and case in one run.

python -m bench [options]    measure
python -m bench list         ops, cases and providers, and why one is unavailable
python -m bench report DIR   the tables of a stored run, and its plots, which it draws there
python -m bench compare A B  two stored runs; status 1 where blockops became slower or fails
python -m bench tables       rewrites the tables in README.md and docs/performance.md
"""
EPILOG = """\
Every provider's result and gradients are checked against the op's formula in float64 before
anything is timed; one that is wrong or raises is reported and not timed. Exit status: 1 where that
is one of blockops' own, 2 for wrong arguments, 130 where it was stopped, else 0. --op, --case,
--passes and --parts take several values, with spaces or commas between them.
"""


@dataclass(frozen=True)
class Item:
    """One case to be measured. curve: what it is a point of, see curves.py; threads: 0 for those of
    the options."""

    contest: Contest
    case: Case
    providers: list[Provider]
    passes: list[str]
    curve: dict[str, Any] | None = None
    threads: int = 0


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def parsed(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            what = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"must be a positive {what}, got {text!r}")
        return value

    return parsed


def parser_of_runs() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=USAGE,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--op", nargs="+", metavar="OP", help=f"some of {', '.join(CONTESTS)}; default all")
    add("--case", nargs="+", metavar="NAME", help="cases by name; default all, see list")
    add("--device", default="cpu", metavar="DEVICE", help=f"{' or '.join(CLOCKS)}; default cpu")
    add("--dtype", default="float32", metavar="DTYPE", help=f"{', '.join(DTYPES)}")
    add(
        "--passes",
        nargs="+",
        metavar="PASS",
        help=f"some of {', '.join(PASSES)} ({', '.join(SHORT)} for short); default all",
    )
    add(
        "--parts",
        nargs="+",
        metavar="PART",
        help="some of cases, curves (the time over B, n, m and threads) and overhead (of a call on "
        "a single element); default all, but cases alone with --case or --quick",
    )
    add(
        "--providers",
        nargs="+",
        metavar="TEXT",
        help="beside blockops only those with it in their name, or a column of the tables "
        "(eager, modules, compile, copy, einsum, F.bilinear)",
    )
    add(
        "--quick",
        action="store_true",
        help=f"a glance in seconds: {QUICK_SECONDS} s, no torch.compile, and the smallest case of "
        "each op unless --case names others",
    )
    add("--seconds", type=positive(float), help=f"for a provider and pass; default {SECONDS}")
    add("--minutes", type=positive(float), help="for all: shorter times, then fewer cases of an op")
    add("--threads", type=positive(int), default=torch.get_num_threads(), help="default: torch's")
    add("--fastest", action="store_true", help="take the fastest times, not medians")
    add("--skip-compile", action="store_true", help="leave torch.compile out")
    add("--max-autotune", action="store_true", help="also torch.compile in that mode, slow to make")
    add("--compile-each", action="store_true", help="torch.compile of every stock formulation")
    add("--targets", action="store_true", help="say which of the aims hold")
    add("--out", type=Path, metavar="DIR", help="store results.json, results.md, rows.csv, plots")
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """The options, each of them meaningful, or SystemExit with a sentence that says what is not."""
    parser = parser_of_runs()
    options = parser.parse_args(argv)
    glance = options.quick or options.case
    for name, known in {"op": CONTESTS, "passes": PASSES, "parts": PARTS}.items():
        values = listed(getattr(options, name)) or list(known)
        if name == "passes":
            values = [SHORT.get(value, value) for value in values]
        if unknown := [value for value in values if value not in known]:
            parser.error(f"--{name}: there is no {unknown[0]!r}; there are {', '.join(known)}")
        if name == "parts" and glance and not options.parts:
            values = ["cases"]
        setattr(options, name, values)
    for name, known in {"device": CLOCKS, "dtype": DTYPES}.items():
        if (value := getattr(options, name)) not in known:
            parser.error(f"--{name}: there is no {value!r}; there are {', '.join(known)}")
    if reason := why_missing(options.device):
        parser.error(f"--device: {reason}")
    if options.dtype == "tf32" and options.device == "cpu":
        parser.error("--dtype: tf32 is of CUDA's tensor cores; it needs --device cuda")
    check_names(parser, options)
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        parser.error(f"--out: {options.out} is a file, not a folder")
    options.skip_compile |= options.quick
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    options.deadline = math.inf
    options.command = shlex.join(["python", "-m", "bench", *argv])
    return options


def check_names(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Of cases and providers."""
    chosen = [CONTESTS[op] for op in options.op]
    known = dict.fromkeys(case.name for contest in chosen for case in contest.cases)
    options.case = listed(options.case)
    if unknown := [name for name in options.case if name not in known]:
        ops = ", ".join(options.op)
        parser.error(f"--case: {ops} has no case {unknown[0]!r}; there are {', '.join(known)}")
    for text in options.providers or []:
        if not any(matches(text, p, contest) for contest in chosen for p in contest.providers):
            names = dict.fromkeys(p.name for contest in chosen for p in contest.providers)
            parser.error(f"--providers: no name has {text!r} in it; there are {'; '.join(names)}")


def listed(values: Iterable[str] | None) -> list[str]:
    return [part for value in values or [] for part in value.split(",") if part]


def matches(text: str, provider: Provider, contest: Contest) -> bool:
    return text in provider.name or provider.name in contest.columns.get(text, ())


def left_out(provider: Provider, contest: Contest, options: argparse.Namespace) -> bool:
    """Whether the options leave it out."""
    if provider.ours:
        return False
    if provider.device not in ("", options.device):
        return True
    if provider.compiled and options.skip_compile:
        return True
    if not all(getattr(options, option) for option in provider.needs):
        return True
    texts = options.providers
    return texts is not None and not any(matches(text, provider, contest) for text in texts)


def reasons(options: argparse.Namespace) -> dict[str, dict[str, str]]:
    """By op the providers that the options ask for but that cannot run here, and why."""
    found: dict[str, dict[str, str]] = {}
    for op in options.op:
        for p in CONTESTS[op].providers:
            why = why_unavailable(p, op, options.device)
            if why and not left_out(p, CONTESTS[op], options):
                found.setdefault(op, {})[p.name] = why
    return found


def planned(options: argparse.Namespace) -> list[Item]:
    """What the options ask for, the ops in turns and the curves after all cases, so that a run that
    is stopped has of each the same part. With --quick an op's smallest case stands for all.
    Providers that cannot run here are not in it."""
    turns = itertools.zip_longest(*(of_op(CONTESTS[op], options) for op in options.op))
    items = [item for turn in turns for item in turn if item is not None]
    return sorted(items, key=lambda item: item.curve is not None and item.curve["over"] != "call")


def of_op(contest: Contest, options: argparse.Namespace) -> Iterator[Item]:
    providers = [
        p
        for p in contest.providers
        if not left_out(p, contest, options) and not why_unavailable(p, contest.op, options.device)
    ]
    if "overhead" in options.parts:
        plain = [p for p in providers if not p.limit]
        for case in curves.overhead(contest.op):
            yield Item(contest, case, plain, options.passes, {"over": "call", "value": 1})
    if "cases" in options.parts:
        cases = [case for case in contest.cases if case.name in options.case]
        if not options.case:
            smallest = min(contest.cases, key=lambda case: case.flops)
            cases = [smallest] if options.quick else contest.cases
        for case in cases:
            yield Item(
                contest, full(case) if options.device == "cuda" else case, providers, options.passes
            )
    if "curves" in options.parts:
        named = {name for names in contest.columns.values() for name in names}
        few = [p for p in providers if p.ours or p.name in named and not p.compiled]
        passes = [name for name in curves.PASSES if name in options.passes]
        threads = options.threads if options.device == "cpu" else 0
        for over, value, case in curves.points(contest.op, threads):
            count = value if over == "threads" else 0
            yield Item(contest, case, few, passes, {"over": over, "value": value}, count)
