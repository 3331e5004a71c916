"""What the tests of the benchmark share: small cases, measured or invented results of them."""

import torch

import bench.__main__ as command
from bench import machine, measure, models, providers
from bench.contests import CONTESTS
from blockops.ops.bilinear.cases import bilinear_case, quadratic_case
from blockops.ops.center.cases import center_case
from blockops.ops.linear_relu.cases import linear_relu_case

SMALL = {
    "quadratic": quadratic_case("small", (5,), 4, 3),
    "bilinear": bilinear_case("small", (5,), 4, 6, 3),
    "linear_relu": linear_relu_case("small", (5,), 4, 3),
    "center": center_case("small", (5, 8), -1),
    "model": models.mlp_case("small", 2, 4, 6, 3, source="-"),
}
DTYPES = ["float64", "float32", "bfloat16", "float16"]


def options(*arguments: str):
    threads = str(torch.get_num_threads())
    return command.parse(["--threads", threads, "--seconds", "0.01", "--skip-compile", *arguments])


def entry(op: str, provider: providers.Provider, data: measure.Data | None = None):
    data = data or measure.Data(CONTESTS[op], SMALL[op], "float32")
    return measure.Entry(provider, CONTESTS[op], SMALL[op], data)


def measured(op: str, *some: providers.Provider, passes: str = "forward,train"):
    return measure.measure(CONTESTS[op], SMALL[op], some, options("--passes", passes))


def result(op: str, ours: list[float], name: str = "train", **about) -> dict:
    """What measure gives, with invented times of one round: those of blockops at both ends, and
    the ones of `others`."""
    others = about.pop("others", {})
    seconds = {"blockops": ours[:1], "blockops again": ours[1:]} | others
    times = {label: {"rounds": r, "quartiles": [r[0], r[0]]} for label, r in seconds.items() if r}
    return {
        "op": op,
        "case": "small",
        "size": "",
        "input_bytes": 24,
        "ceiling": 1e9,
        "copy": 1e8,
        "memory": {"peak": 1, "bound": 2},
        "memory_of": {"blockops": 1},
        "troubles": {},
        "passes": {name: {"floor_flops": 360, "least_bytes": 48, "times": times}},
    } | about


def record(results: list[dict]) -> dict:
    return machine.facts() | {
        "command": "python -m bench",
        "threads": 1,
        "dtype": "float32",
        "fastest": False,
        "left_out": [],
        "unavailable": {},
        "stopped": False,
        "not_begun": {},
        "results": results,
    }


def eager(seconds: float, ours: tuple[float, float] = (1.0, 1.0), **about) -> dict:
    return result("center", [*ours], others={"x - x.mean": [seconds]}, **about)
