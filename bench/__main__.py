"""blockops against what PyTorch offers, every op and case in one run.

python -m bench [options]    measure
python -m bench list         ops, cases and providers, and why one is unavailable
"""

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from blockops._cases import Case

from . import aims, compare, machine, report
from .contests import CONTESTS, Contest, size, workloads
from .measure import PASSES, ROUNDS, measure
from .providers import Provider, why_unavailable
from .report import Section
from .truth import TOLERANCES

SECONDS = 0.4
QUICK_SECONDS = 0.02
EPILOG = """\
Every provider's result and gradients are checked against the op's formula in float64 before
anything is timed; one that is wrong or raises is reported and not timed. Exit status: 1 where that
is one of blockops' own, 2 for wrong arguments, else 0. --op, --case and --passes take several
values, with spaces or commas between them.
"""
Plan = list[tuple[Contest, Case, list[Provider]]]


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


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--op", nargs="+", metavar="OP", help=f"some of {', '.join(CONTESTS)}; default all")
    add("--case", nargs="+", metavar="NAME", help="cases by name; default all, see list")
    add("--dtype", default="float32", metavar="DTYPE", help=f"{', '.join(TOLERANCES)}")
    add("--passes", nargs="+", metavar="PASS", help=f"some of {', '.join(PASSES)}; default all")
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
    add(
        "--seconds",
        type=positive(float),
        help=f"for each provider and pass; default {SECONDS}",
    )
    add("--threads", type=positive(int), default=torch.get_num_threads(), help="default: torch's")
    add("--fastest", action="store_true", help="take the fastest times, not medians")
    add("--skip-compile", action="store_true", help="leave torch.compile out")
    add("--max-autotune", action="store_true", help="also torch.compile in that mode, slow to make")
    add("--targets", action="store_true", help="say which of the aims hold")
    add("--out", type=Path, metavar="DIR", help="store results.json, results.md, rows.csv there")
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """The options, each of them meaningful, or SystemExit with a sentence that says what is not."""
    parser = arguments()
    options = parser.parse_args(argv)
    some = {"op": CONTESTS, "passes": PASSES}
    for name, known in some.items():
        values = listed(getattr(options, name)) or list(known)
        if unknown := [value for value in values if value not in known]:
            parser.error(f"--{name}: there is no {unknown[0]!r}; there are {', '.join(known)}")
        setattr(options, name, values)
    chosen = [CONTESTS[op] for op in options.op]
    known = dict.fromkeys(case.name for contest in chosen for case in contest.cases)
    options.case = listed(options.case)
    if unknown := [name for name in options.case if name not in known]:
        ops = ", ".join(options.op)
        parser.error(f"--case: {ops} has no case {unknown[0]!r}; there are {', '.join(known)}")
    if options.dtype not in TOLERANCES:
        parser.error(f"--dtype: there is no {options.dtype!r}; there are {', '.join(TOLERANCES)}")
    for text in options.providers or []:
        if not any(matches(text, p, contest) for contest in chosen for p in contest.providers):
            names = dict.fromkeys(p.name for contest in chosen for p in contest.providers)
            parser.error(f"--providers: no name has {text!r} in it; there are {'; '.join(names)}")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        parser.error(f"--out: {options.out} is a file, not a folder")
    options.skip_compile |= options.quick
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    options.command = shlex.join(["python", "-m", "bench", *argv])
    return options


def listed(values: Iterable[str] | None) -> list[str]:
    return [part for value in values or [] for part in value.split(",") if part]


def matches(text: str, provider: Provider, contest: Contest) -> bool:
    return text in provider.name or provider.name in contest.columns.get(text, ())


def left_out(provider: Provider, contest: Contest, options: argparse.Namespace) -> bool:
    """Whether the options leave it out."""
    if provider.ours:
        return False
    if provider.compiled and options.skip_compile:
        return True
    if provider.compiled == "max-autotune" and not options.max_autotune:
        return True
    texts = options.providers
    return texts is not None and not any(matches(text, provider, contest) for text in texts)


def planned(options: argparse.Namespace) -> Plan:
    """What the options ask for. With --quick an op's smallest case stands for all."""
    plan = []
    for op in options.op:
        contest = CONTESTS[op]
        cases = [case for case in contest.cases if case.name in options.case]
        if not options.case:
            smallest = min(contest.cases, key=lambda case: case.flops)
            cases = [smallest] if options.quick else contest.cases
        providers = [p for p in contest.providers if not left_out(p, contest, options)]
        plan += [(contest, case, providers) for case in cases]
    return plan


def run(options: argparse.Namespace) -> int:
    """1 where one of ours is wrong on a case or fails, else 0."""
    plan = planned(options)
    record = begun(options, plan)
    bar = Progress(
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        auto_refresh=False,  # its thread would run while calls are timed
    )
    steps = [len(providers) + len(options.passes) * ROUNDS for _, _, providers in plan]
    with bar:
        task = bar.add_task("", total=sum(steps))
        for i, (contest, case, providers) in enumerate(plan):

            def step(what: str, about: str = f"{contest.op} {case.name}") -> None:
                bar.update(task, advance=1, description=f"{about}: {what}", refresh=True)

            bar.update(task, completed=sum(steps[:i]))
            record["results"].append(measured(contest, case, providers, options, step))
            for line in report.lines(record):
                bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            if options.out is not None:
                report.store(record, tables(record, options.targets), options.out)
        bar.update(task, completed=sum(steps), description="done")
    report.show(tables(record, options.targets))
    troubles = (name for result in record["results"] for name in result["troubles"])
    return int(any(name.startswith(report.OURS) for name in troubles))


def begun(options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """The record of a run, without results."""
    offered = {(contest.op, p.name) for contest, _, _ in plan for p in contest.providers}
    used = {(contest.op, p.name) for contest, _, providers in plan for p in providers}
    return machine.facts() | {
        "command": options.command,
        "threads": options.threads,
        "dtype": options.dtype,
        "time_budget": options.seconds,
        "fastest": options.fastest,
        "left_out": sorted({name for _, name in offered - used}),
        "results": [],
    }


def measured(
    contest: Contest,
    case: Case,
    providers: list[Provider],
    options: argparse.Namespace,
    step: Callable[[str], None],
) -> dict[str, Any]:
    """measure() of the providers that can run here, and the reasons why others cannot."""
    reasons = {provider.name: why_unavailable(provider, contest.op) for provider in providers}
    able = [provider for provider in providers if not reasons[provider.name]]
    result = measure(contest, case, able, options, step)
    result["troubles"] |= {name: f"unavailable: {why}" for name, why in reasons.items() if why}
    return result


def tables(record: dict[str, Any], with_aims: bool) -> list[Section]:
    return report.sections(record) + [aims.table(record)] * with_aims


def inventory() -> list[Section]:
    """Ops, cases and providers."""
    cases, providers = [], []
    for contest in CONTESTS.values():
        for case in contest.cases:
            batch = "" if case.batch is None else f", batch {case.batch} there"
            cases.append([contest.op, case.name, size(case), case.source + batch])
        for p in contest.providers:
            why = why_unavailable(p, contest.op)
            state = f"no: {why}" if why else "yes"
            if p.compiled == "max-autotune" and not why:
                state = "with --max-autotune"
            passes = "all" if p.passes == tuple(PASSES) else ", ".join(p.passes)
            providers.append([contest.op, p.name, passes, state])
    without = [op for op in workloads() if op not in CONTESTS]
    note = f"Without providers: {', '.join(without)}." if without else ""
    return [
        Section("cases", ["op", "case", "size", "source"], cases, note),
        Section("providers", ["op", "provider", "passes", "runs here"], providers),
    ]


def stored(name: str, argv: list[str]) -> int:
    """The commands that read stored runs."""
    parser = argparse.ArgumentParser(prog=f"python -m bench {name}")
    if name == "report":
        parser.add_argument("folder", type=Path, metavar="DIR", nargs=1)
        parser.add_argument("--targets", action="store_true", help="say which of the aims hold")
    else:
        parser.add_argument("folder", type=Path, metavar="DIR", nargs=2, help="the older first")
    options = parser.parse_args(argv)
    try:
        records = [compare.load(folder) for folder in options.folder]
        if name == "report":
            report.show(tables(records[0], options.targets))
            return 0
        table, worse = compare.compare(*records)
    except ValueError as error:
        parser.error(str(error))
    report.show([table])
    return int(worse)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["list"]:
        report.show(inventory())
        return 0
    if argv[:1] in (["report"], ["compare"]):
        return stored(argv[0], argv[1:])
    return run(parse(argv))


if __name__ == "__main__":
    sys.exit(main())
