"""Two stored runs side by side: what became faster, and what slower beyond noise."""

import json
import math
from pathlib import Path
from typing import Any

from .contests import CONTESTS
from .ranking import NAMES, Row, failures, rows_of
from .report import Section, duration, ratio

SLACK = 1.05  # a change up to it is none, however quiet the machine was
ALIKE = ("device", "dtype", "threads", "fastest")  # what two runs must have in common


def load(folder: Path) -> dict[str, Any]:
    """The record of a stored run; ValueError says what is wrong with the folder."""
    path = folder / "results.json"
    try:
        record = json.loads(path.read_text())
    except OSError:
        raise ValueError(f"{folder} has no results.json: name a folder that --out stored") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(record, dict) or not record.keys() >= {"results", "command", *ALIKE}:
        raise ValueError(f"{path} is not of python -m bench")
    if gone := {result["op"] for result in record["results"]} - CONTESTS.keys():
        raise ValueError(f"{path} has results of {', '.join(sorted(gone))}: there is no such op")
    return record


def change(before: Row, after: Row) -> tuple[float, float, float]:
    """How many times as fast blockops became, by its time and against the best stock form of the
    same run (NaN where there is none), and what noise alone may do."""
    by_time = before.seconds / after.seconds
    both = "best" in before.ratios and "best" in after.ratios
    against = after.ratios["best"] / before.ratios["best"] if both else math.nan
    return by_time, against, max(SLACK, before.noise * after.noise)


def verdict(before: Row, after: Row) -> str:
    """One of slower, faster and "". A machine that became slower slows the stock forms as well:
    only what changed by its time and against the best of them has changed."""
    by_time, against, noise = change(before, after)
    figures = [value for value in (by_time, against) if not math.isnan(value)]
    if max(figures) < 1 / noise:
        return "slower"
    return "faster" if min(figures) > noise else ""


def failed(record: dict[str, Any]) -> list[tuple[tuple[str, str, str], str]]:
    """Op, case and name of each of blockops' own that is wrong or raises, with what it says."""
    return [
        ((result["op"], result["case"], name), result["troubles"][name])
        for result in record["results"]
        for name in failures(result)
    ]


def where(record: dict[str, Any]) -> str:
    """The machine of a run, by what it computed on."""
    gpu = record.get("gpu")
    return gpu["name"] if gpu else record.get("cpu", "unknown")


def compare(first: dict[str, Any], second: dict[str, Any]) -> tuple[Section, bool]:
    """The table, and whether anything is slower, or wrong where it was right. ValueError where the
    two cannot be compared."""
    for name in ALIKE:
        if first[name] != second[name]:
            raise ValueError(f"the runs differ in {name}: {first[name]} and {second[name]}")
    before, after = ({(r.op, r.case, r.name): r for r in rows_of(run)} for run in (first, second))
    table, worse = [], False
    for key in [key for key in before if key in after]:
        old, new = before[key], after[key]
        by_time, against, noise = change(old, new)
        found = verdict(old, new)
        worse |= found == "slower"
        about = [old.op, old.case, NAMES[old.name], duration(old.seconds), duration(new.seconds)]
        table.append([*about, ratio(by_time), ratio(against), f"{noise - 1:.0%}", found])
    known = {failure for failure, _ in failed(first)}
    for failure, trouble in failed(second):
        worse |= failure not in known
        table.append([*failure, *["-"] * 5, trouble])
    alone = len(before.keys() ^ after.keys())
    note = (
        "Above 1, blockops became faster: by its time, and against the best stock form of the same "
        "run. It is slower or faster where both say so by more than the noise of the two runs, "
        f"at least {SLACK - 1:.0%}. Rows that only one run has: {alone}."
    )
    places = [where(run) for run in (first, second)]
    if places[0] != places[1]:
        note += f" The machines differ: {places[0]} and {places[1]}; times then say little."
    names = ["op", "case", "pass", "before", "after", "by time", "against best", "noise", ""]
    return Section("two runs", names, table, note), worse
