"""What is aimed at, and whether a run's rows hold it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import floors, models, ranking
from .floors import FAMILY
from .providers import OURS, PASSES
from .ranking import NAMES, Row, mean_ratio, noisy
from .report import Section, noise, ratio

ALL = tuple(PASSES)
WITH_FORWARD = ("forward", "forward_grad", "train")
LARGE = 64e6  # bytes of input
CEILING = 0.6
FLOOR = 1e-4  # seconds of arithmetic at the ceiling: of less the call is too large a part


@dataclass(frozen=True)
class Aim:
    """A ratio of the others' time to that of blockops is at least so much.

    against: which of Row.ratios. mean: the geometric mean of the rows, else every row. case: the
    only one, or all; input_bytes: none with smaller inputs. within_noise: a row that falls short by
    no more than its noise holds.
    """

    text: str
    ops: tuple[str, ...]
    passes: tuple[str, ...]
    against: str
    least: float
    case: str = ""
    input_bytes: float = 0
    mean: bool = False
    within_noise: bool = False

    def covers(self, op: str, case: str, input_bytes: int) -> bool:
        return op in self.ops and self.case in ("", case) and input_bytes >= self.input_bytes


def mean_aim(op: str, name: str, against: str, least: float) -> Aim:
    text = f"{op} {NAMES[name]}, geometric mean vs {against} at least {least:g}x"
    return Aim(text, (op,), (name,), against, least, mean=True)


def floor_aim(text: str, ops: tuple[str, ...], passes: tuple[str, ...], to: str, x: float) -> Aim:
    return Aim(f"{text}, outside noise", ops, passes, to, x, within_noise=True)


def large_aim(name: str, least: float) -> Aim:
    text = f"center {NAMES[name]}, 64 MB and more, at least {least:g}x eager"
    return Aim(text, ("center",), (name,), "eager", least, input_bytes=LARGE)


AIMS = [
    mean_aim("quadratic", "train", "einsum", 3.0),
    mean_aim("quadratic", "train", "best", 2.5),
    mean_aim("quadratic", "forward", "best", 1.6),
    mean_aim("bilinear", "train", "best", 1.3),
    mean_aim("bilinear", "train", "F.bilinear", 30.0),
    Aim(
        "quadratic training step: no case below 1.1x of the best",
        ("quadratic",),
        ("train",),
        "best",
        1.1,
    ),
    floor_aim(
        "quadratic and bilinear: no shape slower than the best", FAMILY, WITH_FORWARD, "best", 1
    ),
    Aim(
        "quadratic, textbook size, forward with grad at least 2x einsum",
        ("quadratic",),
        ("forward_grad",),
        "einsum",
        2.0,
        case="textbook",
    ),
    Aim(
        "linear_relu modules, mlp_hidden, forward with grad and training step at most 0.65 of "
        "nn.Sequential's time",
        ("linear_relu",),
        ("forward_grad", "train"),
        "modules",
        1 / 0.65,
        case="mlp_hidden",
    ),
    Aim(
        "textbook MLP, forward with grad and training step at most 0.8 of nn.Sequential's time",
        (models.OP,),
        ("forward_grad", "train"),
        "nn.Sequential",
        1 / 0.8,
        case="textbook_mlp",
    ),
    floor_aim(
        "linear_relu forward, forward with grad, training step: no case below 1.0x of eager",
        ("linear_relu",),
        WITH_FORWARD,
        "eager",
        1.0,
    ),
    mean_aim("linear_relu", "train", "eager", 1.15),
    large_aim("forward", 1.2),
    large_aim("backward", 2.0),
    large_aim("train", 1.7),
    Aim("center, textbook size, at least 1.5x eager", ("center",), ALL, "eager", 1.5, "textbook"),
    floor_aim("center: no case below 1.0x of eager", ("center",), ALL, "eager", 1.0),
]


def verdict(aim: Aim, rows: Iterable[Row], results: Iterable[dict[str, Any]]) -> list[str]:
    """The aim, what was measured, and whether it holds. A case that it covers and on which one of
    ours is wrong or fails is one that it misses."""
    covered = [r for r in rows if r.name in aim.passes and aim.against in r.ratios]
    group = [r for r in covered if aim.covers(r.op, r.case, r.input_bytes)]
    wrong = [
        f"{r['case']} not ranked"
        for r in results
        if aim.covers(r["op"], r["case"], r["input_bytes"])
        and any(name.startswith((OURS, "all")) for name in ranking.failures(r))
    ]
    if not group and not wrong:
        return [aim.text, "-", "not measured"]
    if aim.mean:
        value = mean_ratio(group, aim.against)
        holds = value >= aim.least
        measured = [f"{ratio(value)}, cases: {len(group)}"]
    else:
        short = [r for r in group if r.ratios[aim.against] < aim.least]
        missed = [f"{named(r, aim)}, {noise(r)}" for r in short]
        holds = all(
            aim.within_noise and r.ratios[aim.against] * r.noise >= aim.least for r in short
        )
        measured = missed
        if group and not missed:
            lowest = min(group, key=lambda r: r.ratios[aim.against])
            measured = [f"lowest of {len(group)}: {named(lowest, aim)}"]
    answer = "yes" if holds and not wrong else "NO"
    shaky = sum(noisy(r) for r in group)
    answer += f", {shaky} of {len(group)} rows noisy" * (shaky > 0)
    return [aim.text, "; ".join(measured + wrong), answer]


def named(row: Row, aim: Aim) -> str:
    return f"{row.case} {NAMES[row.name]} {ratio(row.ratios[aim.against])}"


def memory_verdict(results: Iterable[dict[str, Any]]) -> list[str]:
    kept = [r for r in results if r["op"] in FAMILY and r["memory"]]
    over = [r["case"] for r in kept if r["memory"]["peak"] > r["memory"]["bound"]]
    answer = ("NO" if over else "yes") if kept else "not measured"
    text = "quadratic and bilinear: extra memory within its bound"
    return [text, ", ".join(over) or ("all" if kept else "-"), answer]


def ceiling_verdict(rows: Iterable[Row], tops: dict[str, float]) -> list[str]:
    """Of the training steps that arithmetic bounds, and not the call."""
    shares = {}
    for row in rows:
        share, bound = floors.share(row.flops, row.bandwidth, *tops.values())
        if (row.op, row.name, bound) == ("quadratic", "train", "arithmetic"):
            if share * row.seconds >= FLOOR:
                shares[row.case] = share
    short = [f"{case} {share:.0%}" for case, share in shares.items() if share < CEILING]
    lowest = min(shares, key=shares.__getitem__, default="")
    shown = "; ".join(short) or (f"lowest: {lowest} {shares[lowest]:.0%}" if shares else "-")
    answer = ("NO" if short else "yes") if shares else "not measured"
    text = f"quadratic training step: {CEILING:.0%} of the ceiling where arithmetic bounds it"
    return [text, shown, answer]


def table(record: dict[str, Any]) -> Section:
    rows, results = ranking.rows_of(record), ranking.cases_of(record)
    verdicts = [verdict(aim, rows, results) for aim in AIMS]
    verdicts.append(ceiling_verdict(rows, ranking.highest(record)))
    verdicts.append(memory_verdict(results))
    return Section("aims", ["aim", "measured", "holds"], verdicts)
