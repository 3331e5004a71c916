"""Rows and tables from what a benchmark measured: in the terminal and as Markdown, the same in
both, and the rows as CSV."""

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .contests import CONTESTS, Contest
from .measure import AGAIN
from .providers import OURS

NAMES = {
    "forward": "forward",
    "forward_grad": "forward with grad",
    "backward": "backward",
    "train": "training step",
}
NOISY = 1.1  # and above it a row's ratios mean little
UNSTEADY = 1.5
TITLES = {"copy": "of copy bandwidth"}  # of columns; the others are "vs" their name
WIDTH = 150  # of tables, where the terminal is narrower


@dataclass(frozen=True)
class Section:
    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Row:
    """blockops on one case and pass; ratios are others' time over that of blockops."""

    op: str
    case: str
    size: str
    name: str  # of the pass
    seconds: float
    quartiles: list[float]
    noises: dict[str, float]  # of each of ours: the ratio of its two times, at least 1
    unsteady: float  # the largest ratio of median to fastest round among those compared
    best: str
    best_seconds: float
    ratios: dict[str, float]  # to "best" and the op's columns, where they were measured
    flops: float  # floor FLOPs a second
    bandwidth: float  # least bytes a second
    input_bytes: int

    @property
    def noise(self) -> float:
        return self.noises[OURS]


def geometric_mean(values: Iterable[float]) -> float:
    """NaN for no values."""
    logs = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logs)) if logs else math.nan


def compare(result: dict[str, Any], name: str, fastest: bool = False) -> Row | None:
    """The row of a case and pass; None where blockops has no time.

    The time of each is the median of its rounds, or the fastest. That of each of ours is the
    geometric mean of its two; a column's is that of the fastest of its providers.
    """
    measured = result["passes"][name]
    contest = CONTESTS[result["op"]]
    rounds = {label: times["rounds"] for label, times in measured["times"].items()}
    times = {label: (min if fastest else statistics.median)(r) for label, r in rounds.items()}
    present = [provider for provider in contest.providers if provider.name in times]
    both = {p.name: [times[p.name], times[p.name + AGAIN]] for p in present if p.ours}
    if OURS not in both:
        return None
    ours = {label: geometric_mean(pair) for label, pair in both.items()}
    ratios, compared = {}, [OURS, OURS + AGAIN]
    peers = [provider.name for provider in present if provider.peer]
    for column, named in ({"best": tuple(peers)} | contest.columns).items():
        rivals = [p for p in present if p.name in named and p.against in ours]
        if rivals:
            rival = min(rivals, key=lambda p: times[p.name])
            ratios[column] = times[rival.name] / ours[rival.against]
            compared.append(rival.name)
    best = min(peers, key=times.__getitem__, default="-")
    return Row(
        op=result["op"],
        case=result["case"],
        size=result["size"],
        name=name,
        seconds=ours[OURS],
        quartiles=measured["times"][OURS]["quartiles"],
        noises={label: max(pair) / min(pair) for label, pair in both.items()},
        unsteady=1 if fastest else max(times[c] / min(rounds[c]) for c in compared),
        best=best,
        best_seconds=times.get(best, math.nan),
        ratios=ratios,
        flops=measured["floor_flops"] / ours[OURS],
        bandwidth=measured["least_bytes"] / ours[OURS],
        input_bytes=result["input_bytes"],
    )


def rows_of(record: dict[str, Any]) -> list[Row]:
    compared = (
        compare(r, name, record["fastest"]) for r in record["results"] for name in r["passes"]
    )
    return [row for row in compared if row]


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1 or unit == "us":
            return f"{seconds * scale:.3g} {unit}"
    return "-"


def ratio(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}x"


def noisy(row: Row) -> bool:
    return max(row.noises.values()) > NOISY or row.unsteady > UNSTEADY


def noise(row: Row) -> str:
    unsteady = f", a median {row.unsteady:.1f}x its fastest round" * (row.unsteady > UNSTEADY)
    others = (
        f", {name} {value - 1:.0%}"
        for name, value in row.noises.items()
        if name != OURS and value > NOISY
    )
    return f"noise {row.noise - 1:.0%}{''.join(others)}{unsteady}"


def lines(record: dict[str, Any]) -> Iterator[str]:
    """The last case in short, for whoever waits."""
    result = record["results"][-1]
    for name in result["passes"]:
        row = compare(result, name, record["fastest"])
        if row:
            yield (
                f"{row.op:12}{row.case:16}{NAMES[name]:18}{duration(row.seconds):>9}  "
                f"{ratio(row.ratios.get('best')):>7} {row.best}; {noise(row)}"
            )
    for provider, trouble in result["troubles"].items():
        yield f"{result['op']:12}{result['case']:16}{provider} {trouble}"


def sections(record: dict[str, Any]) -> list[Section]:
    """The tables of a run, but for the aims."""
    results, rows = record["results"], rows_of(record)
    ceiling = max((r["ceiling"] for r in results if r["ceiling"]), default=math.nan)
    found = [Section("blockops against PyTorch", [], [], about(record, ceiling))]
    for op, contest in CONTESTS.items():
        for name, title in NAMES.items():
            table = [cells(r, contest, ceiling) for r in rows if (r.op, r.name) == (op, name)]
            if table:
                found.append(Section(f"{op}: {title}, {record['dtype']}", header(contest), table))
    found += [means(rows, contest) for contest in CONTESTS.values()]
    found += [memory(results), Section("remarks", ["op", "case", "provider", "what"], [])]
    found[-1].rows.extend(remarks(results, rows))
    return [section for section in found if section.rows or not section.header]


def about(record: dict[str, Any], ceiling: float) -> str:
    versions = ", ".join(f"{name} {v or 'absent'}" for name, v in record["versions"].items())
    left_out = f"; left out: {', '.join(record['left_out'])}" if record["left_out"] else ""
    commit = f", commit {record['commit']}" if record["commit"] else ""
    product = "" if math.isnan(ceiling) else f", {ceiling / 1e9:.0f} GFLOP/s,"
    return (
        f"{record['cpu']}, {record['threads']} threads, load before {record['load']}; {versions}"
        f"{commit}; {record['date']}{left_out}; `{record['command']}`. Ratios are the other's time "
        "over that of blockops: above 1, blockops is faster. Times are "
        f"{'fastest' if record['fastest'] else 'median'} ones; noise is the ratio of blockops' "
        "times at both ends of a round. einsum: the textbook einsum with or without opt_einsum, "
        "whichever is faster. modules: nn.Sequential's time over that of blockops.LinearReLU. "
        "GFLOP/s are of the least work there is (i <= j only for one input); the ceiling"
        f"{product} is that of a 1024^3 matrix product, the fastest of those measured beside each "
        "case. GB/s are of inputs read once and outputs written once; the copy writes into memory "
        "that it has already. *: the batch is cut from its source's."
    )


def header(contest: Contest) -> list[str]:
    columns = ["vs best", *(TITLES.get(column, f"vs {column}") for column in contest.columns)]
    bound = ["GFLOP/s", "of ceiling"] if contest.products else ["GB/s"]
    return ["case", "size", "blockops", "best stock", "its name", *columns, "noise", *bound]


def cells(row: Row, contest: Contest, ceiling: float) -> list[str]:
    return [
        row.case,
        row.size,
        duration(row.seconds),
        duration(row.best_seconds),
        row.best,
        ratio(row.ratios.get("best")),
        *(figure(column, row.ratios.get(column)) for column in contest.columns),
        f"{row.noise - 1:.0%}",
        *(
            [f"{row.flops / 1e9:.3g}", f"{row.flops / ceiling:.0%}"]
            if contest.products
            else [f"{row.bandwidth / 1e9:.3g}"]
        ),
    ]


def figure(column: str, value: float | None) -> str:
    """A ratio, or, against the copy, the share of its bandwidth: their bytes are the same."""
    if column != "copy" or value is None or math.isnan(value):
        return ratio(value)
    return f"{value:.0%}"


def means(rows: list[Row], contest: Contest) -> Section:
    table = []
    for name, title in NAMES.items():
        group = [row for row in rows if (row.op, row.name) == (contest.op, name)]
        if group:
            worst = min(group, key=lambda row: row.ratios.get("best", math.inf))
            figures = (figure(c, mean_ratio(group, c)) for c in ("best", *contest.columns))
            lowest = f"{worst.case} {ratio(worst.ratios.get('best'))}"
            table.append([title, str(len(group)), *figures, lowest])
    columns = (TITLES.get(column, f"vs {column}") for column in contest.columns)
    names = ["pass", "cases", "vs best", *columns, "worst vs best"]
    return Section(f"{contest.op}: geometric means", names, table)


def mean_ratio(rows: Iterable[Row], key: str) -> float:
    return geometric_mean(row.ratios[key] for row in rows if key in row.ratios)


def memory(results: list[dict[str, Any]]) -> Section:
    table = [
        [r["op"], r["case"], *(f"{r['memory'][key] / 2**20:.2f}" for key in ("peak", "bound"))]
        + ["yes" if r["memory"]["peak"] <= r["memory"]["bound"] else "NO"]
        for r in results
        if r["memory"]
    ]
    note = (
        "Peak beyond arguments and output, of PyTorch's allocator; the bound is the gradients and "
        "16 MiB, for quadratic the packed weight, for linear_relu and the model grad_z."
    )
    names = ["op", "case", "peak MiB", "bound MiB", "within"]
    return Section("extra memory of a training step", names, table, note)


def remarks(results: list[dict[str, Any]], rows: list[Row]) -> Iterator[list[str]]:
    """What is not ranked and why, what was timed in short, and where the machine was not quiet."""
    for r in results:
        yield from ([r["op"], r["case"], *trouble] for trouble in r["troubles"].items())
        for name, measured in r["passes"].items():
            for provider, times in measured["times"].items():
                if len(times["rounds"]) == 1:
                    yield [r["op"], r["case"], provider, f"{NAMES[name]} timed with one call"]
    for row in rows:
        if noisy(row):
            yield [row.op, row.case, "", f"{NAMES[row.name]}: not a quiet machine, {noise(row)}"]


def show(found: list[Section]) -> None:
    console = Console(highlight=False)
    if console.width < WIDTH:
        console = Console(highlight=False, width=WIDTH)
    for section in found:
        if section.header:
            table = Table(title=section.title, title_justify="left", title_style="bold")
            for i, name in enumerate(section.header):
                numeric = all(row[i][:1].isdigit() or row[i] == "-" for row in section.rows)
                table.add_column(name, justify="right" if numeric and i > 1 else "left")
            for row in section.rows:
                table.add_row(*row)
            console.print(table, markup=False)
        if section.note:
            console.print(section.note, markup=False)
        console.print()


def markdown(found: list[Section]) -> str:
    parts = []
    for level, section in zip(["#", *["##"] * len(found)], found, strict=False):
        parts.append(f"{level} {section.title}\n")
        if section.header:
            table = [section.header, ["---"] * len(section.header), *section.rows]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in table) + "\n")
        if section.note:
            parts.append(section.note + "\n")
    return "\n".join(parts)


def as_csv(rows: list[Row]) -> str:
    columns = ["best", *dict.fromkeys(c for contest in CONTESTS.values() for c in contest.columns)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["op", "case", "size", "pass", "seconds", "quartile_1", "quartile_3", "noise", "best"]
    names += ["best_seconds", *(f"vs_{column}" for column in columns), "flops", "bytes_a_second"]
    writer.writerow(names)
    for row in rows:
        about_row = [row.op, row.case, row.size, row.name, row.seconds, *row.quartiles, row.noise]
        ratios = (row.ratios.get(column, "") for column in columns)
        writer.writerow([*about_row, row.best, row.best_seconds, *ratios, row.flops, row.bandwidth])
    return text.getvalue()


def store(record: dict[str, Any], found: list[Section], folder: Path) -> None:
    """results.json with all that was measured, results.md with the tables, rows.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "results.md").write_text(markdown(found))
    (folder / "rows.csv").write_text(as_csv(rows_of(record)))
