"""The benchmark's times: rounds, sets of data in turn, what a pass is made of."""

import itertools

import pytest
import torch
from bench_support import SMALL, entry, measured, options

from bench import clocks, machine, measure, providers
from bench.contests import CONTESTS


def turns(entries: dict, name: str, troubles: dict | None = None) -> dict:
    clock, troubles = clocks.CLOCKS["cpu"], {} if troubles is None else troubles
    return measure.take_turns(entries, name, clock.times, options(), troubles)


def test_what_raises_while_it_is_timed_is_reported_and_the_others_go_on():
    contest = CONTESTS["center"]
    ours, stock = (entry("center", contest.provider(n)) for n in ("blockops", "x - x.mean"))
    left = [4]

    def fails(name: str, count: int):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("out of memory\nand more")
        return [lambda: None] * count

    ours.calls = fails
    troubles = {}
    both = {"blockops": ours, "x - x.mean": stock, "blockops again": ours}
    found = turns(both, "forward", troubles)
    assert troubles == {"blockops, forward": "raised RuntimeError: out of memory"}
    assert set(found) == {"x - x.mean"} and len(found["x - x.mean"]["rounds"]) == clocks.Cpu.rounds


def test_backward_is_timed_without_its_forward_pass():
    made = []

    def counted(x, dim):
        made.append(1)
        return x - x.mean(dim, keepdim=True)

    found = entry("center", providers.Provider("counted", counted))
    made.clear()
    calls = found.calls("backward", 3)
    assert len(made) == 3
    gradients = [call() for call in calls]
    assert len(made) == 3 and all(len(g) == 1 and g[0].shape == (5, 8) for g in gradients)


def test_sets_of_data_take_turns_where_one_fits_the_caches(monkeypatch):
    contest, case = CONTESTS["center"], SMALL["center"]
    data = measure.Data(contest, case, "float32")
    assert data.bytes == 2 * 40 * 4
    assert len(data.sets) == clocks.SETS
    seen = []

    def told(x, dim):
        seen.append(x.data_ptr())
        return x - x.mean(dim, keepdim=True)

    found = entry("center", providers.Provider("told", told), data)
    seen.clear()
    for _ in range(2):  # one block goes on where the last one ended
        for call in found.calls("forward", clocks.SETS // 2):
            call()
    assert len(set(seen)) == clocks.SETS
    assert all(len(args[0].unique()) == 40 for args, _ in data.sets)
    monkeypatch.setattr(machine, "cache_bytes", lambda: data.bytes - 1)
    assert len(measure.Data(contest, case, "float32").sets) == 1


@pytest.mark.parametrize(
    ("taken", "seconds", "enough"),
    [
        ([], 0.1, False),
        ([0.01] * 14, 0.1, False),
        ([0.1] * 4, 0.1, False),
        ([0.1] * 5, 0.1, True),
        ([0.1] * 5, 1.0, False),
        ([0.6] * 2, 0.1, False),
        ([0.6] * 3, 0.1, True),
        ([11.0], 20.0, True),
    ],
)
def test_long_calls_have_fewer_rounds(taken, seconds, enough):
    assert measure.enough(taken, seconds) == enough


def test_a_provider_goes_on_with_the_set_after_the_last_one_of_the_provider_before():
    """It would find that one in the cache; and a copy of the parameters would be out of it."""
    contest, case = CONTESTS["linear_relu"], SMALL["linear_relu"]
    data = measure.Data(contest, case, "float32")
    seen = []

    class Told(torch.nn.Linear):
        def forward(self, x):
            return told(x, self.weight, self.bias)

    def told(*args):
        seen.append([t.data_ptr() for t in args])
        return torch.relu(torch.nn.functional.linear(*args))

    some = [
        providers.Provider("function", told),
        providers.Provider("module", module=lambda case: Told(*providers.sizes(case))),
    ]
    found = [entry("linear_relu", provider, data) for provider in some]
    assert [e.trouble for e in found] == ["", ""]
    seen.clear()
    for e in found:
        for call in e.calls("forward", clocks.SETS // 2):
            call()
    assert seen == [[t.data_ptr() for t in args] for args, _ in data.sets]


def test_copy_moves_as_much_as_the_pass_does():
    found = entry("center", CONTESTS["center"].provider("copy_"))
    copies = []
    found.sets = [(lambda: copies.append(1), [], None)]
    found._turns = itertools.repeat(0)
    for name, count in {"forward": 1, "forward_grad": 1, "backward": 1, "train": 2}.items():
        copies.clear()
        (call,) = found.calls(name, 1)
        call()
        assert len(copies) == count, name


def test_ours_stand_at_both_ends_of_a_round(monkeypatch):
    order = []

    def noted(ready, seconds):
        order.append(ready.args[0] and ready.func.__self__.provider.name)
        return [1.0]

    monkeypatch.setattr(clocks, "sample", noted)
    monkeypatch.setattr(clocks.Cpu, "rounds", 2)
    names = ["blockops", "blockops.LinearReLU", "F.relu(F.linear)", "nn.Sequential"]
    some = [CONTESTS["linear_relu"].provider(name) for name in names]
    right = {p.name: entry("linear_relu", p) for p in some}
    again = {name + measure.AGAIN: right[name] for name in names[:2]}
    turns(right | again, "forward")
    assert order == 2 * [*names, *names[:2]]


def test_slow_provider_is_timed_with_one_call(monkeypatch):
    monkeypatch.setattr(measure, "SLOW", 0.0)
    contest = CONTESTS["bilinear"]
    found = measured("bilinear", contest.provider("blockops"), contest.provider("F.bilinear"))
    rounds = [t["rounds"] for p in found["passes"].values() for t in p["times"].values()]
    assert len(rounds) == 6 and all(len(r) == 1 for r in rounds)
    once = entry("bilinear", contest.provider("F.bilinear"))
    assert once.slow.keys() == {"train", "forward"}  # the check's calls were the ones
    taken = turns({"once": once}, "train")["once"]["rounds"]
    assert taken == [once.slow["train"]]


def test_a_model_wants_gradients_of_its_parameters_and_an_op_of_all_its_arguments():
    for op, count in {"model": 4, "linear_relu": 3, "center": 1}.items():
        (step,) = entry(op, CONTESTS[op].provider("blockops")).calls("train", 1)
        assert len(step()) == 1 + count, op
