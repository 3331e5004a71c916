"""What keeps the benchmark fair: every provider meets the same data, modes and clock."""

import contextlib
import inspect
from dataclasses import replace

import pytest
import torch
from bench_support import SMALL, entry, measured, options

import blockops
from bench import clocks, measure, providers
from bench.contests import CONTESTS
from bench.options import planned
from blockops import _dispatch

# ---- data ----


def writes_into_its_input(x, dim):
    y = x - x.mean(dim, keepdim=True)
    x.detach().zero_()
    return y


class WritesIntoItsGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dim):
        ctx.dim = dim
        return x - x.mean(dim, keepdim=True)

    @staticmethod
    def backward(ctx, grad):
        return grad.sub_(grad.mean(ctx.dim, keepdim=True)), None


@pytest.mark.parametrize("call", [writes_into_its_input, WritesIntoItsGradient.apply])
def test_what_writes_into_its_arguments_is_wrong_and_harms_no_other(call):
    spoilt = providers.Provider("spoilt", call)
    honest = CONTESTS["center"].provider("x - x.mean")
    found = measured("center", spoilt, honest)
    assert found["troubles"] == {"spoilt": "wrong: it writes into its arguments"}
    assert set(found["passes"]["train"]["times"]) == {honest.name}


# ---- modes ----


def test_einsum_is_measured_without_opt_einsum_too(monkeypatch):
    """As it is where only torch is installed: torch refuses to enable it then."""
    asked = []

    class Planner:
        enabled = False

        def is_available(self):
            return False

        def flags(self, enabled):
            asked.append(enabled)
            return contextlib.nullcontext()

    monkeypatch.setattr(torch.backends, "opt_einsum", Planner())
    assert entry("quadratic", CONTESTS["quadratic"].provider("einsum")).trouble == ""
    assert asked and not any(asked)


def test_blockops_is_measured_as_auto_whatever_the_environment_says():
    seen = []

    def noted(x, dim):
        seen.append(_dispatch.active_backend())
        return x - x.mean(dim, keepdim=True)

    with blockops.backend("reference"):
        assert entry("center", providers.Provider("blockops", noted)).trouble == ""
    assert set(seen) == {"auto"}


def test_blockops_is_what_auto_takes_where_there_are_no_native_kernels(monkeypatch):
    refused = {"native": "the native backend has no kernel"}
    monkeypatch.setattr(_dispatch, "why_not", lambda backend, *about: refused.get(backend))
    ours = CONTESTS["center"].provider("blockops")
    assert providers.why_unavailable(ours, "center", "cuda") == ""
    refused["triton"] = "there is no triton"
    assert providers.why_unavailable(ours, "center", "cuda") == refused["native"]
    assert providers.why_unavailable(ours, "center", "cpu") == refused["native"]


# ---- clocks ----


@pytest.fixture
def repeating(monkeypatch):
    """A clock that makes one call many times over, as that of a GPU."""
    clock = clocks.Cpu()
    monkeypatch.setattr(clock, "repeats", True, raising=False)
    return clock


def test_a_first_call_that_compiles_kernels_is_not_the_time(repeating, monkeypatch):
    monkeypatch.setattr(measure, "SLOW", 0.0)
    contest, case = CONTESTS["center"], SMALL["center"]
    data = measure.Data(contest, case, "float32", repeating)
    stock = contest.provider("x - x.mean")
    assert measure.Entry(stock, contest, case, data, repeating).slow == {}
    assert measure.Entry(stock, contest, case, data).slow.keys() == {"train", "forward"}


def test_memory_that_graphs_keep_is_not_compared(repeating):
    contest, case = CONTESTS["center"], SMALL["center"]
    stock = contest.provider("x - x.mean")
    entries = {
        name: entry("center", replace(stock, name=name)) for name in ("kept in graphs", "plain")
    }
    graphs = entries["kept in graphs"]
    graphs.provider = replace(graphs.provider, compiled=measure.OWN_GRAPHS)
    for clock, names in ((clocks.Cpu(), {"kept in graphs", "plain"}), (repeating, {"plain"})):
        graphs.clock = clock
        troubles = {}
        found = measure.memories(case, entries, float("inf"), troubles)
        assert found["memory_of"].keys() == names and troubles == {}


def test_a_call_much_longer_than_its_time_is_made_once_a_round(monkeypatch):
    made = []

    def timed(calls):
        made.append(len(calls))
        return 0.05

    monkeypatch.setattr(clocks, "timed", timed)

    def ready(count):
        return [lambda: None] * count

    assert clocks.sample(ready, 0.004) == [0.05] and made == [1]
    made.clear()
    assert clocks.sample(ready, 0.01) == [0.05] and made == [1, 1]  # the first to warm the caches
    made.clear()
    assert clocks.sample(ready, 0.1) == [0.05] * 2 and made == [1, 1, 1]


def test_the_peak_is_of_what_is_held_at_once():
    def step():
        first = torch.empty(1000, dtype=torch.uint8)
        del first
        second, third = (torch.empty(700, dtype=torch.uint8) for _ in range(2))
        del second
        return [third]

    results, peak = clocks.Cpu().peak(step)
    assert peak == 1400 and results[0].nbytes == 700


def test_triton_takes_what_its_clocks_are_given():
    testing = pytest.importorskip("triton.testing", reason="there is no triton")
    inspect.signature(testing.do_bench).bind(print, warmup=1.0, rep=1.0, return_mode="all")
    inspect.signature(testing.do_bench_cudagraph).bind(print, rep=1.0, return_mode="all")


# ---- order ----


def test_all_cases_come_before_any_curve():
    plan = planned(options("--op", "quadratic", "center"))
    kinds = [bool(item.curve) and item.curve["over"] != "call" for item in plan]
    assert kinds == sorted(kinds) and set(kinds) == {False, True}
