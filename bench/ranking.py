"""What follows from the times that were measured: ratios, noise, shares, growth."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .contests import CONTESTS
from .measure import AGAIN, GRAPH, quartiles
from .providers import OURS

NAMES = {
    "forward": "forward",
    "forward_grad": "forward with grad",
    "backward": "backward",
    "train": "training step",
}
NAMES |= {name + GRAPH: f"{title}, CUDA graph" for name, title in NAMES.items()}
NOISY = 1.1  # and above it a row's ratios mean little
UNSTEADY = 1.25


@dataclass(frozen=True)
class Row:
    """blockops on one case and pass.

    A ratio is another's time over that of blockops in the same round, the median over the rounds:
    a machine that is slow for longer than a round is slow for both. So it may differ from the
    quotient of the times, each of which is of a round of its own; it does where a provider is in
    one state in some rounds and in another in the others (unsteady).
    """

    op: str
    case: str
    size: str
    name: str  # of the pass
    seconds: float
    quartiles: list[float]
    noises: dict[str, float]  # of each of ours: see band
    unsteady: float  # the largest ratio of median to fastest round among those compared
    best: str
    best_seconds: float
    ratios: dict[str, float]  # to "best" and the op's columns, where they were measured
    times: dict[str, float]  # seconds of each provider
    flops: float  # floor FLOPs a second
    bandwidth: float  # least bytes a second
    input_bytes: int

    @property
    def noise(self) -> float:
        return self.noises[OURS]

    def tells(self, ratio: float) -> bool:
        """Whether a ratio of times is outside the noise."""
        return not 1 / self.noise <= ratio <= self.noise


def geometric_mean(values: Iterable[float]) -> float:
    """NaN for no values."""
    logs = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logs)) if logs else math.nan


def paired(rounds: list[float], both: Iterable[list[float]]) -> float:
    """The median ratio of times of the same round, in which each of ours has two; of an even
    number, as they are as a rule, the geometric mean of the two in the middle."""
    ratios = [a / b for ends in both for a, b in zip(rounds, ends, strict=False)]
    return math.sqrt(statistics.median_low(ratios) * statistics.median_high(ratios))


def band(first: list[float], second: list[float]) -> float:
    """Of the ratio of the two times that one has in a round: its quartile that is farther from 1,
    or 1 over it, so at least 1."""
    ratios = [b / a for a, b in zip(first, second, strict=False)]
    return max(max(quartile, 1 / quartile) for quartile in quartiles(ratios))


def compare(result: dict[str, Any], name: str, fastest: bool = False) -> Row | None:
    """The row of a case and pass; None where blockops has no time.

    The time of each is the median of its rounds, or the fastest; that of each of ours the geometric
    mean of its two. Best, and what stands in a column, is the provider with the least ratio.
    """
    measured = result["passes"][name]
    contest = CONTESTS[result["op"]]
    rounds = {label: times["rounds"] for label, times in measured["times"].items()}
    present = [provider for provider in contest.providers if provider.name in rounds]
    both = {p.name: (rounds[p.name], rounds[p.name + AGAIN]) for p in present if p.ours}
    if OURS not in both:
        return None
    times = {label: (min if fastest else statistics.median)(r) for label, r in rounds.items()}
    ours = {label: geometric_mean([times[label], times[label + AGAIN]]) for label in both}
    against = {
        p.name: paired(rounds[p.name], both[p.against]) for p in present if p.against in both
    }
    ratios, compared = {}, [OURS, OURS + AGAIN]
    peers = [provider.name for provider in present if provider.peer]
    for column, named in ({"best": tuple(peers)} | contest.columns).items():
        if rivals := [label for label in named if label in against]:
            rival = min(rivals, key=against.__getitem__)
            ratios[column] = against[rival]
            compared.append(rival)
    best = min(peers, key=against.__getitem__, default="-")
    return Row(
        op=result["op"],
        case=result["case"],
        size=result["size"],
        name=name,
        seconds=ours[OURS],
        quartiles=measured["times"][OURS]["quartiles"],
        noises={label: band(*pair) for label, pair in both.items()},
        unsteady=max(statistics.median(rounds[c]) / min(rounds[c]) for c in compared),
        best=best,
        best_seconds=times.get(best, math.nan),
        ratios=ratios,
        times=times | ours,
        flops=measured["floor_flops"] / ours[OURS],
        bandwidth=measured["least_bytes"] / ours[OURS],
        input_bytes=result["input_bytes"],
    )


def cases_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The results that are of cases, not of curves."""
    return [result for result in record["results"] if "curve" not in result]


def rows_of(record: dict[str, Any], results: list[dict[str, Any]] | None = None) -> list[Row]:
    """Of the cases, if no results are given."""
    results = cases_of(record) if results is None else results
    compared = (compare(r, name, record["fastest"]) for r in results for name in r["passes"])
    return [row for row in compared if row]


def failures(result: dict[str, Any]) -> list[str]:
    """Those of blockops' own, whatever the backend, that are wrong or raise; "all" where the whole
    case did."""
    own = {p.name for p in CONTESTS[result["op"]].providers if p.ours or p.backend} | {"all"}
    return [
        name
        for name, trouble in result["troubles"].items()
        if name.partition(", ")[0] in own and trouble.startswith(("wrong", "raised"))
    ]


def highest(record: dict[str, Any]) -> dict[str, float]:
    """The ceilings of a run: the fastest product and the fastest copy beside any of its cases."""
    return {
        kind: max((r[kind] for r in record["results"] if r.get(kind)), default=math.nan)
        for kind in ("ceiling", "copy")
    }


def noisy(row: Row) -> bool:
    return max(row.noises.values()) > NOISY or row.unsteady > UNSTEADY


def mean_ratio(rows: Iterable[Row], key: str) -> float:
    return geometric_mean(row.ratios[key] for row in rows if key in row.ratios)


def curves_of(record: dict[str, Any]) -> dict[tuple[str, str], list[tuple[int, list[Row]]]]:
    """By op and what varies: its values, with the rows of each."""
    found: dict[tuple[str, str], list[tuple[int, list[Row]]]] = {}
    for result in record["results"]:
        curve = result.get("curve")
        if curve and curve["over"] != "call":
            if rows := rows_of(record, [result]):
                found.setdefault((result["op"], curve["over"]), []).append((curve["value"], rows))
    return found


def exponent(points: list[tuple[float, float]]) -> float:
    """With which power of the value the seconds grow, over the last three points."""
    logs = [(math.log(value), math.log(seconds)) for value, seconds in points][-3:]
    if len(logs) < 2:
        return math.nan
    return statistics.linear_regression(*zip(*logs, strict=True)).slope
