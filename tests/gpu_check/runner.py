"""Runs checks one after the other, each as a process with a time limit, and reports on all of them
after each one: a crash or a hang costs that check alone, and a run that is cut off leaves what it
had."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
# A check's exit status, where it could not be run. The last line of what it prints is the reason;
# also of one that passed, and of one that failed, the last line says most.
STATUS_NOT_RUN = 77


@dataclass
class Check:
    name: str
    what: str  # it shows, in a few words
    limit: float  # in seconds
    needed: bool = False  # by all that come after it


@dataclass
class Outcome:
    name: str
    what: str
    outcome: str = NOT_RUN
    reason: str = "the run ended before it"
    seconds: float = 0.0
    log: str = ""


def run_all(
    checks: Iterable[Check],
    command: Callable[[Check], list[str]],
    out: Path,
    facts: Mapping[str, Any],
    budget: float,
    environment: Mapping[str, str] | None = None,
    show: Callable[[str], None] = print,
) -> list[Outcome]:
    """The outcome of every check, within `budget` seconds; report.json and report.md in `out`."""
    end = time.monotonic() + budget
    checks = list(checks)
    outcomes = [Outcome(check.name, check.what) for check in checks]
    (out / "logs").mkdir(parents=True, exist_ok=True)
    write(out, facts, outcomes)
    lacking = None
    for check, outcome in zip(checks, outcomes, strict=True):
        left = end - time.monotonic()
        if lacking is not None:
            outcome.reason = f"it needs {lacking}"
        elif left <= 0:
            outcome.reason = f"the {budget:.0f} seconds for all checks were over"
        else:
            outcome.log = f"logs/{check.name}.txt"
            run_one(command(check), out / outcome.log, check.limit, left, environment, outcome)
        if check.needed and outcome.outcome != PASSED:
            lacking = check.name
        write(out, facts, outcomes)
        words = f"{outcome.outcome:8} {outcome.seconds:6.1f} s  {outcome.name}"
        show(f"{words}: {outcome.reason}" if outcome.reason else words)
    return outcomes


def run_one(
    command: list[str],
    log: Path,
    limit: float,
    left: float,
    environment: Mapping[str, str] | None,
    outcome: Outcome,
) -> None:
    begin = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=log.parent,  # python -m looks for modules there first
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # so that what it has started can be ended with it
        )
        try:
            status = process.wait(min(limit, left))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end_group(process)
    outcome.seconds = round(time.monotonic() - begin, 1)
    said = last_line(log)
    if status is None and left < limit:
        outcome.reason = f"cut off after {left:.0f} s, at the end of the time for all checks"
    elif status is None:
        outcome.outcome, outcome.reason = FAILED, f"still running after {limit:.0f} s: {said}"
    elif status == 0:
        outcome.outcome, outcome.reason = PASSED, said
    elif status == STATUS_NOT_RUN:
        outcome.reason = said
    elif status < 0:
        name = signal.Signals(-status).name
        outcome.outcome, outcome.reason = FAILED, f"ended by {name}: {said}"
    else:
        outcome.outcome, outcome.reason = FAILED, said or f"exit status {status}"


def end_group(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip()[:500] if lines else ""


# ---- the report ----


def write(out: Path, facts: Mapping[str, Any], outcomes: list[Outcome]) -> None:
    """Both files; each is there whole or as it was before."""
    record = {**facts, "checks": [asdict(outcome) for outcome in outcomes]}
    texts = {"report.json": json.dumps(record, indent=1), "report.md": markdown(facts, outcomes)}
    for name, text in texts.items():
        (out / f"{name}.new").write_text(text + "\n")
        (out / f"{name}.new").replace(out / name)


def count(outcomes: Iterable[Outcome]) -> str:
    given = [outcome.outcome for outcome in outcomes]
    return ", ".join(f"{given.count(kind)} {kind}" for kind in (PASSED, FAILED, NOT_RUN))


def markdown(facts: Mapping[str, Any], outcomes: list[Outcome]) -> str:
    def row(*cells: Any) -> str:
        return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"

    lines = ["# The CUDA kernels on a GPU", "", count(outcomes), "", row("", ""), row("---", "---")]
    lines += [row(name, value) for name, value in facts.items()]
    lines += ["", row("check", "shows", "outcome", "s", "", "log"), row(*["---"] * 6)]
    lines += [row(o.name, o.what, o.outcome, o.seconds, o.reason, o.log) for o in outcomes]
    return "\n".join(lines)
