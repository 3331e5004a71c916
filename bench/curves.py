"""How the time of a call grows with B, n, m and threads, and what it is where there is no work."""

from collections.abc import Iterator

from blockops._cases import Case
from blockops.ops.bilinear.cases import bilinear_case, quadratic_case
from blockops.ops.center.cases import center_case
from blockops.ops.linear_relu.cases import linear_relu_case

PASSES = ("forward", "train")
# Each curve varies one of these and holds the others.
BASES = {
    "quadratic": {"B": 256, "n": 64, "m": 64},
    "bilinear": {"B": 256, "n": 64, "m": 64},
    "linear_relu": {"B": 128, "n": 512, "m": 512},
    "center": {"B": 4096, "n": 1024},
}
VALUES = {
    "B": (1, 4, 16, 64, 256, 1024, 4096),
    "n": (4, 8, 16, 32, 64, 128, 256),
    "m": (1, 4, 16, 64, 256, 1024),
}


def case_of(op: str, name: str, B: int, n: int, m: int = 1) -> Case:
    """B rows of n features (both inputs of bilinear) to m outputs; of center, B rows."""
    if op == "quadratic":
        return quadratic_case(name, (B,), n, m)
    if op == "bilinear":
        return bilinear_case(name, (B,), n, n, m)
    if op == "linear_relu":
        return linear_relu_case(name, (B,), n, m)
    return center_case(name, (B, n), -1)


def points(op: str, threads: int) -> Iterator[tuple[str, int, Case]]:
    """What varies, its value, and the case. threads: the most; of one or none there is no curve."""
    base = BASES.get(op)
    if base is None:
        return
    for over in base:
        for value in VALUES[over]:
            yield over, value, case_of(op, f"{over}={value}", **base | {over: value})
    counts = [2**i for i in range(threads.bit_length())]
    for count in counts if threads > 1 else []:
        yield "threads", count, case_of(op, f"threads={count}", **base)


def overhead(op: str) -> list[Case]:
    """One element of everything: all time is the call's."""
    return [case_of(op, "one element", 1, 1)] if op in BASES else []
