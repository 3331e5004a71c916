"""Tables of what a benchmark measured, their Markdown, and the rows as CSV."""

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import floors
from .contests import CONTESTS, Contest
from .curves import PASSES as CURVES
from .measure import OVER
from .providers import OURS
from .ranking import (
    NAMES,
    NOISY,
    UNSTEADY,
    Row,
    cases_of,
    compare,
    curves_of,
    exponent,
    highest,
    mean_ratio,
    noisy,
    rows_of,
)

TITLES = {"copy": "of copy bandwidth"}  # of columns; the others are "vs" their name


@dataclass(frozen=True)
class Section:
    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1 or unit == "us":
            return f"{seconds * scale:.3g} {unit}"
    return "-"


def ratio(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}x"


def noise(row: Row) -> str:
    unsteady = f", a median {row.unsteady:.1f}x its fastest round" * (row.unsteady > UNSTEADY)
    others = (
        f", {name} {value - 1:.0%}"
        for name, value in row.noises.items()
        if name != OURS and value > NOISY
    )
    return f"noise {row.noise - 1:.0%}{''.join(others)}{unsteady}"


def lines(result: dict[str, Any], fastest: bool) -> Iterator[str]:
    """A case in short, for whoever waits."""
    for name in result["passes"]:
        row = compare(result, name, fastest)
        if row:
            yield (
                f"{row.op:12}{row.case:16}{NAMES[name]:18}{duration(row.seconds):>9}  "
                f"{ratio(row.ratios.get('best')):>7} {row.best}; {noise(row)}"
            )
    for provider, trouble in result["troubles"].items():
        yield f"{result['op']:12}{result['case']:16}{provider} {trouble}"


def sections(record: dict[str, Any]) -> list[Section]:
    """The tables of a run, but for the aims."""
    results, rows = cases_of(record), rows_of(record)
    tops = highest(record)
    found = [Section("blockops against PyTorch", [], [], about(record, tops))]
    for op, contest in CONTESTS.items():
        for name, title in NAMES.items():
            table = [cells(r, contest, tops) for r in rows if (r.op, r.name) == (op, name)]
            if table:
                found.append(Section(f"{op}: {title}, {record['dtype']}", header(contest), table))
    found += [means(rows, contest) for contest in CONTESTS.values()]
    found += [overhead(record), *growth(record), memory(results)]
    found.append(Section("remarks", ["op", "case", "provider", "what"], [*remarks(record)]))
    return [section for section in found if section.rows or not section.header]


def about(record: dict[str, Any], tops: dict[str, float]) -> str:
    versions = ", ".join(f"{name} {v or 'absent'}" for name, v in record["versions"].items())
    left_out = f"; left out: {', '.join(record['left_out'])}" if record["left_out"] else ""
    commit = f", commit {record['commit']}" if record["commit"] else ""
    gpu = record.get("gpu")
    where = f"{gpu['name']}, {record['cpu']}" if gpu else record["cpu"]
    stopped = "; stopped before its end" * record.get("stopped", False)
    product, copy = rate(tops["ceiling"], " GFLOP/s"), rate(tops["copy"], " GB/s")
    return (
        f"{where}, {record['threads']} threads, load before {record['load']}; {versions}"
        f"{commit}; {record['date']}{left_out}{stopped}; `{record['command']}`. Times are "
        f"{'fastest' if record['fastest'] else 'median'} ones. Ratios are the other's time over "
        "that of blockops in the same round, the median of the rounds: above 1, blockops is "
        "faster. Noise: in about half of the rounds blockops' two times are closer than that; a "
        "ratio inside it has a ~. Best, and einsum, with or without opt_einsum: the one with the "
        "least ratio. modules: nn.Sequential's time over that "
        "of blockops.LinearReLU. GFLOP/s are of the least work there is (i <= j only for one "
        "input), GB/s of what a pass is given read once and what it gives written once. Of "
        f"ceiling: the larger of its shares of a large matrix product's speed{product} and of a "
        f"large copy's{copy}, the fastest beside any case; more than 100% of memory's: the "
        "data were in a cache. Copy bandwidth: into memory that is there already. *: the batch is "
        "cut from its source's."
    )


def rate(value: float, unit: str) -> str:
    return "" if math.isnan(value) else f" {value / 1e9:.0f}{unit}"


def header(contest: Contest) -> list[str]:
    columns = ["vs best", *(TITLES.get(column, f"vs {column}") for column in contest.columns)]
    return [
        *("case", "size", "blockops", "best stock", "its name"),
        *columns,
        *("noise", "GFLOP/s", "GB/s", "of ceiling"),
    ]


def cells(row: Row, contest: Contest, tops: dict[str, float]) -> list[str]:
    share, bound = floors.share(row.flops, row.bandwidth, *tops.values())
    return [
        row.case,
        row.size,
        duration(row.seconds),
        duration(row.best_seconds),
        row.best,
        marked(row, "best"),
        *(marked(row, column) for column in contest.columns),
        f"{row.noise - 1:.0%}",
        f"{row.flops / 1e9:.3g}",
        f"{row.bandwidth / 1e9:.3g}",
        "-" if math.isnan(share) else f"{share:.0%} {bound}",
    ]


def marked(row: Row, column: str) -> str:
    """figure() of a column, with a mark where the noise explains it."""
    value = row.ratios.get(column)
    explained = column != "copy" and value is not None and not row.tells(value)
    return figure(column, value) + " ~" * explained


def figure(column: str, value: float | None) -> str:
    """A ratio, or, against the copy, the share of its bandwidth: their bytes are the same."""
    if column != "copy" or value is None or math.isnan(value):
        return ratio(value)
    return f"{value:.0%}"


def overhead(record: dict[str, Any]) -> Section:
    """Microseconds a call, by provider."""
    table = []
    for result in record["results"]:
        if result.get("curve", {}).get("over") != "call":
            continue
        passes = {name: compare(result, name, record["fastest"]) for name in result["passes"]}
        rows = {name: row for name, row in passes.items() if row}
        for provider in CONTESTS[result["op"]].providers:
            times = [
                rows[name].times.get(provider.name) if name in rows else None for name in NAMES
            ]
            if any(times):
                table.append([result["op"], provider.name, *(micro(t) for t in times)])
    used = [i for i, name in enumerate(NAMES) if any(row[2 + i] != "-" for row in table)]
    names = ["op", "provider", *(list(NAMES.values())[i] for i in used)]
    table = [[*row[:2], *(row[2 + i] for i in used)] for row in table]
    note = "Of a call on one element of everything, in microseconds: all that is left is its cost."
    return Section("call overhead", names, table, note)


def micro(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e6 * seconds:.2f}"


def growth(record: dict[str, Any]) -> Iterator[Section]:
    """The time over B, n, m and threads: a table for each op, a line for each value."""
    tables: dict[str, tuple[list[list[str]], list[str]]] = {}
    for (op, over), points in curves_of(record).items():
        table, powers = tables.setdefault(op, ([], []))
        for value, rows in points:
            by_pass = {row.name: row for row in rows}
            cells = [over, str(value)]
            for name in CURVES:
                row = by_pass.get(name)
                cells += [duration(row.seconds), marked(row, "best")] if row else ["-", "-"]
            table.append(cells)
        for name in CURVES:
            line = [
                (value, row.seconds) for value, rows in points for row in rows if row.name == name
            ]
            power = exponent(line)
            if not math.isnan(power):
                powers.append(f"{NAMES[name]} {over}^{power:.1f}")
    for op, (table, powers) in tables.items():
        note = "Of the stock forms those that the columns name. Growth over the last three values: "
        names = ["over", "value"]
        names += [cell for name in CURVES for cell in (NAMES[name], "vs best")]
        yield Section(f"{op}: cost curves", names, table, f"{note}{', '.join(powers) or '-'}.")


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


def memory(results: list[dict[str, Any]]) -> Section:
    table = [
        [r["op"], r["case"], *(f"{r['memory'][key] / 2**20:.2f}" for key in ("peak", "bound"))]
        + ["yes" if r["memory"]["peak"] <= r["memory"]["bound"] else "NO", leanest(r)]
        for r in results
        if r["memory"]
    ]
    note = (
        "Peak beyond arguments and output, of PyTorch's allocator, on the CPU in the calling "
        "thread; the bound is the gradients and 16 MiB, for quadratic the packed weight, for "
        "linear_relu and the model grad_z."
    )
    names = ["op", "case", "peak MiB", "bound MiB", "within", "leanest stock MiB"]
    return Section("extra memory of a training step", names, table, note)


def leanest(result: dict[str, Any]) -> str:
    """The least peak of a stock form."""
    known = result.get("memory_of", {})
    peers = [p.name for p in CONTESTS[result["op"]].providers if p.peer and p.name in known]
    return f"{min(known[name] for name in peers) / 2**20:.2f}" if peers else "-"


def remarks(record: dict[str, Any]) -> Iterator[list[str]]:
    """What is not ranked and why, what was timed in short, and where the machine was not quiet."""
    for op, why in record.get("unavailable", {}).items():
        yield from ([op, "all", name, f"unavailable: {reason}"] for name, reason in why.items())
    for op, names in record.get("not_begun", {}).items():
        yield [op, f"{len(names)} cases", "all", f"{OVER}: {', '.join(names)}"]
    for r in record["results"]:
        yield from ([r["op"], r["case"], *trouble] for trouble in r["troubles"].items())
        for name, measured in r["passes"].items():
            for provider, times in measured["times"].items():
                if len(times["rounds"]) == 1:
                    yield [r["op"], r["case"], provider, f"{NAMES[name]} timed with one round"]
    for row in rows_of(record):
        if noisy(row):
            yield [row.op, row.case, "", f"{NAMES[row.name]}: not a quiet machine, {noise(row)}"]


def markdown(found: list[Section]) -> str:
    parts = []
    for level, section in zip(["#", *["##"] * len(found)], found, strict=False):
        parts.append(f"{level} {section.title}\n")
        if section.header:
            rows = ([cell.replace("|", "\\|") for cell in row] for row in section.rows)
            table = [section.header, ["---"] * len(section.header), *rows]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in table) + "\n")
        if section.note:
            parts.append(section.note + "\n")
    return "\n".join(parts)


def as_csv(record: dict[str, Any]) -> str:
    """A line for each case, point of a curve, and pass."""
    columns = ["best", *dict.fromkeys(c for contest in CONTESTS.values() for c in contest.columns)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["op", "case", "size", "pass", "seconds", "quartile_1", "quartile_3", "noise", "best"]
    names += ["best_seconds", *(f"vs_{column}" for column in columns), "flops", "bytes_a_second"]
    writer.writerow([*names, "of_ceiling", "bound_by"])
    tops = highest(record)
    for row in rows_of(record, record["results"]):
        about_row = [row.op, row.case, row.size, row.name, row.seconds, *row.quartiles, row.noise]
        ratios = (row.ratios.get(column, "") for column in columns)
        rates = [row.flops, row.bandwidth, *floors.share(row.flops, row.bandwidth, *tops.values())]
        writer.writerow([*about_row, row.best, row.best_seconds, *ratios, *rates])
    return text.getvalue()


def store(record: dict[str, Any], found: list[Section], folder: Path) -> None:
    """results.json with all that was measured, results.md with the tables, rows.csv. Each is there
    whole or as it was before, whenever the run ends."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "results.json": json.dumps(record, indent=1) + "\n",
        "results.md": markdown(found),
        "rows.csv": as_csv(record),
    }
    for name, text in texts.items():
        (folder / f"{name}.new").write_text(text, "utf-8")
        (folder / f"{name}.new").replace(folder / name)
