"""Tables from what a benchmark measured: in the terminal and as Markdown, the same in both."""

import json
import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

NAMES = {"forward": "forward", "forward_grad": "forward with grad", "train": "training step"}
NOISY = 1.1  # and above it a row's ratios mean little
UNSTEADY = 1.5
AIMS = [  # the least geometric mean of a ratio
    ("quadratic", "train", "einsum", 3.0),
    ("quadratic", "train", "best", 2.0),
    ("quadratic", "forward", "best", 1.6),
    ("bilinear", "train", "best", 1.2),
    ("bilinear", "train", "F.bilinear", 30.0),
]
OURS = ("blockops", "blockops again")
EINSUM = ("einsum", "einsum, no opt_einsum")
INPUTS = {"quadratic": "one-input", "bilinear": "two-input"}


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
    shape: str
    name: str  # of the pass
    seconds: float
    noise: float  # the ratio of the two times of blockops, at least 1
    unsteady: float  # the largest ratio of median to fastest round among those compared
    best: str
    best_seconds: float
    ratios: dict[str, float]  # to "best", "einsum", "F.bilinear", where they were measured
    flops: float  # floor FLOPs a second


def geometric_mean(values: Iterable[float]) -> float:
    """NaN for no values."""
    logs = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logs)) if logs else math.nan


def compare(result: dict[str, Any], name: str, fastest: bool = False) -> Row | None:
    """The row of a case and pass; None where blockops has no time.

    The time of each is the median of its rounds, or the fastest. blockops' is the geometric mean of
    its two; the textbook einsum's is the faster of those with and without opt_einsum.
    """
    rounds = result["passes"][name]["seconds"]
    times = {label: (min if fastest else statistics.median)(r) for label, r in rounds.items()}
    ours = [times.pop(label) for label in OURS if label in times]
    if not ours:
        return None
    seconds = geometric_mean(ours)
    best = min(times, key=times.__getitem__, default="-")
    einsum = min((e for e in EINSUM if e in times), key=times.__getitem__, default="-")
    rivals = {"best": best, "einsum": einsum, "F.bilinear": "F.bilinear"}
    compared = [r for label, r in rounds.items() if label in (*OURS, best, einsum)]
    return Row(
        op=result["op"],
        case=result["case"],
        shape=shape(result),
        name=name,
        seconds=seconds,
        noise=max(ours) / min(ours),
        unsteady=1 if fastest else max(statistics.median(r) / min(r) for r in compared),
        best=best,
        best_seconds=times.get(best, math.nan),
        ratios={key: times[label] / seconds for key, label in rivals.items() if label in times},
        flops=result["passes"][name]["floor_flops"] / seconds,
    )


def shape(result: dict[str, Any]) -> str:
    """B; n1 x n2 -> m, starred where the batch is cut from its source's."""
    weight = result["shapes"]["weight"]
    (rows, _), *_ = result["shapes"].values()
    n1, n2, m = weight if result["op"] == "quadratic" else (*weight[1:], weight[0])
    size = f"{n1}^2" if result["op"] == "quadratic" else f"{n1}x{n2}"
    return f"{rows}{'*' if result['source_batch'] else ''}; {size} -> {m}"


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1 or unit == "us":
            return f"{seconds * scale:.3g} {unit}"
    return "-"


def ratio(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}x"


def lines(record: dict[str, Any]) -> Iterator[str]:
    """The last case in short, for whoever waits."""
    result = record["results"][-1]
    for name in result["passes"]:
        row = compare(result, name, record["fastest"])
        if row:
            yield (
                f"{row.case:16}{NAMES[name]:18}{duration(row.seconds):>9}  "
                f"{ratio(row.ratios.get('best')):>7} {row.best}; {noise(row)}"
            )
    for provider, trouble in result["troubles"].items():
        yield f"{result['case']:16}{provider} {trouble}"


def noisy(row: Row) -> bool:
    return row.noise > NOISY or row.unsteady > UNSTEADY


def noise(row: Row) -> str:
    unsteady = f", a median {row.unsteady:.1f}x its fastest round" * (row.unsteady > UNSTEADY)
    return f"noise {row.noise - 1:.0%}{unsteady}"


HEADER = "case|B; n -> m|blockops|best stock|its name|vs best|vs einsum|vs F.bilinear"
HEADER += "|noise|GFLOP/s|of ceiling"


def sections(record: dict[str, Any], with_targets: bool) -> list[Section]:
    results = record["results"]
    compared = (compare(r, name, record["fastest"]) for r in results for name in r["passes"])
    rows = [row for row in compared if row]
    ceiling = max((r["ceiling"] for r in results), default=math.nan)
    versions = ", ".join(f"{name} {v or 'absent'}" for name, v in record["versions"].items())
    left_out = f"; left out: {', '.join(record['left_out'])}" if record["left_out"] else ""
    about = (
        f"{record['cpu']}, {record['threads']} threads, load before {record['load']}; {versions}; "
        f"{record['date']}{left_out}. Ratios are the other's time over that of blockops: above 1, "
        f"blockops is faster. Times are {'fastest' if record['fastest'] else 'median'} ones. "
        "einsum: the textbook einsum with or without opt_einsum, whichever is faster. GFLOP/s are "
        "of the least work there is (i <= j only for one input); the ceiling, "
        f"{ceiling / 1e9:.0f} GFLOP/s, is that of a 1024^3 matrix product, the fastest of those "
        "measured beside each case. *: the batch is cut from its source's."
    )
    found = [Section("The bilinear family on the CPU", [], [], about)]
    for name, title in NAMES.items():
        table = [cells(row, ceiling) for row in rows if row.name == name]
        if table:
            found.append(Section(f"{title}, {record['dtype']}", HEADER.split("|"), table))
    found += [means(rows), memory(results)]
    if table := [*remarks(results, rows)]:
        found.append(Section("remarks", ["case", "provider", "what"], table))
    if with_targets:
        found.append(targets(rows, results))
    return found


def remarks(results: list[dict[str, Any]], rows: list[Row]) -> Iterator[list[str]]:
    """What is not ranked and why, what was timed in short, and where the machine was not quiet."""
    for r in results:
        yield from ([r["case"], provider, why] for provider, why in r["troubles"].items())
        for name, measured in r["passes"].items():
            for provider, seconds in measured["seconds"].items():
                if len(seconds) == 1:
                    yield [r["case"], provider, f"{NAMES[name]} timed with one call"]
    for row in rows:
        if noisy(row):
            yield [row.case, "", f"{NAMES[row.name]}: not a quiet machine, {noise(row)}"]


def cells(row: Row, ceiling: float) -> list[str]:
    return [
        row.case,
        row.shape,
        duration(row.seconds),
        duration(row.best_seconds),
        row.best,
        *(ratio(row.ratios.get(key)) for key in ("best", "einsum", "F.bilinear")),
        f"{row.noise - 1:.0%}",
        f"{row.flops / 1e9:.3g}",
        f"{row.flops / ceiling:.0%}",
    ]


def means(rows: list[Row]) -> Section:
    table = []
    for op, inputs in INPUTS.items():
        for name, title in NAMES.items():
            group = [row for row in rows if (row.op, row.name) == (op, name)]
            if group:
                worst = min(group, key=lambda row: row.ratios.get("best", math.inf))
                mean = (ratio(mean_ratio(group, key)) for key in ("einsum", "best", "F.bilinear"))
                lowest = f"{worst.case} {ratio(worst.ratios.get('best'))}"
                table.append([f"{inputs}, {title}", str(len(group)), *mean, lowest])
    header = ["geometric means", "cases", "vs einsum", "vs best", "vs F.bilinear", "worst vs best"]
    return Section("geometric means", header, table)


def mean_ratio(rows: Iterable[Row], key: str) -> float:
    return geometric_mean(row.ratios[key] for row in rows if key in row.ratios)


def memory(results: list[dict[str, Any]]) -> Section:
    table = [
        [r["case"], *(f"{r['memory'][key] / 2**20:.2f}" for key in ("peak", "bound"))]
        + ["yes" if r["memory"]["peak"] <= r["memory"]["bound"] else "NO"]
        for r in results
        if r["memory"]
    ]
    note = (
        "Peak beyond arguments and output, of PyTorch's allocator; the bound is the packed weight "
        "(one-input only), the gradients and 16 MiB."
    )
    header = ["case", "peak MiB", "bound MiB", "within"]
    return Section("extra memory of a training step", header, table, note)


def targets(rows: list[Row], results: list[dict[str, Any]]) -> Section:
    """What is aimed at, what was measured, and whether it holds."""
    table = []

    def state(aim: str, measured: str, holds: bool | None, basis: Iterable[Row] = ()) -> None:
        answer = {True: "yes", False: "NO", None: "not measured"}[holds]
        shaky = sum(noisy(row) for row in basis)
        table.append([aim, measured, answer + f", {shaky} of its rows noisy" * (shaky > 0)])

    for op, name, key, least in AIMS:
        group = [r for r in rows if (r.op, r.name) == (op, name) and key in r.ratios]
        mean = mean_ratio(group, key)
        text = f"{INPUTS[op]} {NAMES[name]}, geometric mean vs {key} at least {least:g}x"
        state(text, ratio(mean), mean >= least if group else None, group)
    slower = [r for r in rows if r.ratios.get("best", math.inf) < 1]
    wrong = [f"{r['case']} not ranked" for r in results if "blockops" in r["troubles"]]
    named = [f"{r.case} {NAMES[r.name]} {ratio(r.ratios['best'])}, {noise(r)}" for r in slower]
    holds = not wrong and all(r.ratios["best"] * r.noise >= 1 for r in slower)
    text = "no shape slower than the best, outside noise"
    state(text, "; ".join(named + wrong) or "none", holds if rows or wrong else None, rows)
    textbook = [r for r in rows if (r.case, r.name) == ("textbook", "forward_grad")]
    value = mean_ratio(textbook, "einsum")
    text = "textbook size, forward with grad at least 2x einsum"
    state(text, ratio(value), None if math.isnan(value) else value >= 2, textbook)
    kept = [r for r in results if r["memory"]]
    over = [r["case"] for r in kept if r["memory"]["peak"] > r["memory"]["bound"]]
    state("extra memory within its bound", ", ".join(over) or "all", not over if kept else None)
    return Section("aims", ["aim", "measured", "holds"], table)


def show(found: list[Section]) -> None:
    console = Console(highlight=False)
    if console.width < 150:
        console = Console(highlight=False, width=150)
    for section in found:
        if section.header:
            table = Table(title=section.title, title_justify="left", title_style="bold")
            for i, name in enumerate(section.header):
                numeric = all(row[i][:1].isdigit() or row[i] == "-" for row in section.rows)
                table.add_column(name, justify="right" if numeric and i > 1 else "left")
            for row in section.rows:
                table.add_row(*row)
            console.print(table)
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


def store(record: dict[str, Any], with_targets: bool, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bilinear.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "bilinear.md").write_text(markdown(sections(record, with_targets)))
