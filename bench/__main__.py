"""The commands of python -m bench; --help names them."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

from . import aims, compare, machine, ranking, report, tables, terminal
from .clocks import CLOCKS, why_missing
from .contests import CONTESTS, size, workloads
from .measure import measure, raised
from .options import QUICK_SECONDS, Item, parse, planned, reasons
from .providers import OURS, PASSES, why_unavailable
from .report import Section

SHARE = 0.4  # of the time for all that goes into timing; the rest into checks and compiling
STOPPED = 130


def run(options: argparse.Namespace) -> int:
    """1 where one of ours is wrong on a case or fails, 130 where it was stopped, else 0."""
    items = planned(options)
    record = begun(options, items)
    if options.minutes:
        options.deadline = monotonic() + 60 * options.minutes
    try:
        with stoppable():
            measure_all(items, options, record)
    except KeyboardInterrupt:
        record["stopped"] = True
    found = all_tables(record, options.targets)
    if options.out is not None:
        report.store(record, found, options.out)
    terminal.show(found)
    if options.out is not None:
        draw(record, options.out)
    if record["stopped"]:
        return STOPPED
    lacking = any(name.startswith(OURS) for why in record["unavailable"].values() for name in why)
    return int(lacking or any(ranking.failures(result) for result in record["results"]))


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """In it SIGTERM is what an interrupt from the keyboard is: what was measured is kept."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def measure_all(items: list[Item], options: argparse.Namespace, record: dict[str, Any]) -> None:
    """Adds to the record's results, and stores it after each."""
    rounds = CLOCKS[options.device].rounds
    steps = [len(item.providers) + len(item.passes) * rounds for item in items]
    with terminal.Bar(sum(steps)) as bar:
        for i, item in enumerate(items):
            about = f"{item.contest.op} {item.case.name}"

            def step(what: str, about: str = about) -> None:
                bar.advance(f"{about}: {what}")

            bar.stand(sum(steps[:i]), about)
            if monotonic() > options.deadline:
                record["not_begun"].setdefault(item.contest.op, []).append(item.case.name)
                continue
            result = measured(item, items[i:], options, step)
            record["results"].append(result)
            for line in report.lines(result, record["fastest"]):
                bar.line(line)
            if options.out is not None:
                report.store(record, all_tables(record, options.targets), options.out)
        bar.stand(sum(steps), "done")


def begun(options: argparse.Namespace, items: list[Item]) -> dict[str, Any]:
    """The record of a run, without results."""
    offered = {
        (op, p.name)
        for op in options.op
        for p in CONTESTS[op].providers
        if not p.needs and p.device in ("", options.device)
    }
    used = {(item.contest.op, p.name) for item in items for p in item.providers}
    unavailable = reasons(options)
    lacking = {(op, name) for op, why in unavailable.items() for name in why}
    return machine.facts(options.device) | {
        "command": options.command,
        "threads": options.threads,
        "dtype": options.dtype,
        "time_budget": options.seconds,
        "minutes": options.minutes,
        "fastest": options.fastest,
        "left_out": sorted({name for _, name in offered - used - lacking}),
        "unavailable": unavailable,
        "stopped": False,
        "not_begun": {},
        "results": [],
    }


def measured(
    item: Item, left: list[Item], options: argparse.Namespace, step: Callable[[str], None]
) -> dict[str, Any]:
    """measure() of an item, within the time that there is for it; what it raises is a trouble.
    left: the item and those after it."""
    about = {"op": item.contest.op, "case": item.case.name, "size": size(item.case)}
    empty = {"ceiling": None, "copy": None, "memory": None, "memory_of": {}, "passes": {}}
    result = about | empty | {"input_bytes": 0, "troubles": {}}
    seconds = min(options.seconds, affordable(left, options.deadline - monotonic()))
    changed = {
        "seconds": seconds,
        "passes": item.passes,
        "threads": item.threads or options.threads,
    }
    try:
        CLOCKS[options.device].tidy()
        own = argparse.Namespace(**vars(options) | changed)
        result = measure(item.contest, item.case, item.providers, own, step)
    except Exception as error:
        result["troubles"] = {"all": raised(error)}
    return result | ({"curve": item.curve} if item.curve else {})


def affordable(left: list[Item], seconds: float) -> float:
    """Seconds for each provider and pass, where there are so many for all items; not less than a
    glance."""
    turns = sum(len(item.providers) * len(item.passes) for item in left)
    return max(QUICK_SECONDS, SHARE * seconds / max(turns, 1))


def all_tables(record: dict[str, Any], with_aims: bool) -> list[Section]:
    return report.sections(record) + [aims.table(record)] * with_aims


def draw(record: dict[str, Any], folder: Path) -> None:
    if not machine.has("matplotlib"):
        print("matplotlib, which draws the plots, is not installed", file=sys.stderr)
        return
    from . import plots  # only here: measuring does without matplotlib

    print(*plots.draw(record, folder), sep="\n", file=sys.stderr)


def inventory() -> list[Section]:
    """Ops, cases and providers."""
    cases, providers = [], []
    for contest in CONTESTS.values():
        for case in contest.cases:
            batch = "" if case.batch is None else f", batch {case.batch} there"
            cases.append([contest.op, case.name, size(case), case.source + batch])
        for p in contest.providers:
            device = p.device or "cpu"
            why = why_missing(device) or why_unavailable(p, contest.op, device)
            state = f"no: {why}" if why else "yes"
            if (p.needs or p.device) and not why:
                flags = [f"--{option.replace('_', '-')}" for option in p.needs]
                state = "with " + " ".join(flags + [f"--device {p.device}"] * bool(p.device))
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
        parser.add_argument("--plots", type=Path, metavar="DIR", help="draw them there instead")
    else:
        parser.add_argument("folder", type=Path, metavar="DIR", nargs=2, help="the older first")
    options = parser.parse_args(argv)
    try:
        records = [compare.load(folder) for folder in options.folder]
        if name == "report":
            terminal.show(all_tables(records[0], options.targets))
            draw(records[0], options.plots or options.folder[0])
            return 0
        table, worse = compare.compare(*records)
    except ValueError as error:
        parser.error(str(error))
    terminal.show([table])
    return int(worse)


def write_tables(argv: list[str]) -> int:
    """1 where a check found tables that are not those of the results."""
    parser = argparse.ArgumentParser(prog="python -m bench tables", description=tables.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if they drift")
    check = parser.parse_args(argv).check
    changed = tables.rewrite(tables.FILES, check)
    for path in changed:
        print(f"{path} is not what the results say" if check else f"{path} is written anew")
    return int(check and bool(changed))


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["list"]:
        terminal.show(inventory())
        return 0
    if argv[:1] == ["tables"]:
        return write_tables(argv[1:])
    if argv[:1] in (["report"], ["compare"]):
        return stored(argv[0], argv[1:])
    return run(parse(argv))


if __name__ == "__main__":
    sys.exit(main())
