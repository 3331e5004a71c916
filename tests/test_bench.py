"""The benchmark: its arithmetic, its check of results before timing, its aims, and short runs."""

import csv
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

# Last in the path, so that the blockops under test stays the one that is installed or built there.
sys.path.append(str(Path(__file__).parents[1]))

import bench.__main__ as command  # noqa: E402
from bench import aims, compare, contests, machine, measure, models, providers, report, truth  # noqa: E402
from bench.contests import CONTESTS  # noqa: E402
from blockops.ops.bilinear.cases import bilinear_case, quadratic_case  # noqa: E402
from blockops.ops.center.cases import center_case  # noqa: E402
from blockops.ops.linear_relu.cases import linear_relu_case  # noqa: E402

SMALL = {
    "quadratic": quadratic_case("small", (5,), 4, 3),
    "bilinear": bilinear_case("small", (5,), 4, 6, 3),
    "linear_relu": linear_relu_case("small", (5,), 4, 3),
    "center": center_case("small", (5, 8), -1),
    "model": models.mlp_case("small", 2, 4, 6, 3, source="-"),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def options(*arguments: str):
    threads = str(torch.get_num_threads())
    return command.parse(["--threads", threads, "--seconds", "0.01", "--skip-compile", *arguments])


def entry(op: str, provider: providers.Provider, data: measure.Data | None = None):
    data = data or measure.Data(CONTESTS[op], SMALL[op], torch.float32)
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
        "memory": {"peak": 1, "bound": 2},
        "troubles": {},
        "passes": {name: {"floor_flops": 360, "least_bytes": 48, "times": times}},
    } | about


# ---- rows ----


def test_geometric_mean():
    assert report.geometric_mean([2, 8]) == pytest.approx(4)
    assert report.geometric_mean([0.5, 1, 2]) == pytest.approx(1)
    assert math.isnan(report.geometric_mean([]))


def test_quartiles():
    assert measure.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == [2, 4]
    assert measure.quartiles([7.0]) == [7, 7]


def test_row_compares_with_the_fastest_and_reports_noise():
    others = {
        "einsum": [9.0, 8.0, 7.0],
        "einsum, no opt_einsum": [6.0],
        "x @ W, bmm": [3.0],
        "F.bilinear": [80.0],
    }
    row = report.compare(result("quadratic", [1.0, 4.0], others=others), "train")
    assert row.seconds == pytest.approx(2)
    assert row.noise == pytest.approx(4)
    assert (row.best, row.best_seconds) == ("x @ W, bmm", 3.0)
    assert row.ratios == pytest.approx({"best": 1.5, "einsum": 3, "F.bilinear": 40})
    assert row.flops == pytest.approx(180) and row.bandwidth == pytest.approx(24)


def test_modules_are_compared_with_each_other_and_are_no_best_stock():
    others = {
        "blockops.LinearReLU": [3.0],
        "blockops.LinearReLU again": [12.0],
        "F.relu(F.linear)": [4.0],
        "nn.Sequential": [1.5],
    }
    row = report.compare(result("linear_relu", [2.0, 2.0], others=others), "train")
    assert row.best == "F.relu(F.linear)"
    assert row.ratios == pytest.approx({"best": 2, "eager": 2, "modules": 0.25})
    assert row.noises == pytest.approx({"blockops": 1, "blockops.LinearReLU": 4})
    assert row.noise == 1 and report.noisy(row)


def test_copy_is_a_limit_and_no_peer():
    found = result("center", [2.0, 2.0], others={"x - x.mean": [3.0], "copy_": [1.0]})
    row = report.compare(found, "train")
    assert row.best == "x - x.mean" and row.ratios["copy"] == 0.5
    _, table, *_ = report.sections(record([found]))
    assert table.title == "center: training step, float32"
    shown = dict(zip(table.header, table.rows[0], strict=True))
    assert (shown["of copy bandwidth"], shown["vs eager"]) == ("50%", "1.50x")
    assert (shown["vs compile"], shown["GB/s"]) == ("-", "2.4e-08")


def test_fastest_round_and_unsteady_medians():
    rounds = result("quadratic", [1.0, 1.0], others={"einsum": [2.0, 8.0, 9.0]})
    row = report.compare(rounds, "train")
    assert (row.ratios["best"], row.unsteady) == (8, 4) and report.noisy(row)
    row = report.compare(rounds, "train", fastest=True)
    assert row.ratios["best"] == 2 and not report.noisy(row)


def test_row_without_rivals_or_without_blockops():
    row = report.compare(result("quadratic", [1.0, 1.0]), "train")
    assert row.ratios == {} and row.best == "-"
    assert report.compare(result("quadratic", [], others={"einsum": [1.0]}), "train") is None


def record(results: list[dict]) -> dict:
    return machine.facts() | {
        "command": "python -m bench",
        "threads": 1,
        "dtype": "float32",
        "fastest": False,
        "left_out": [],
        "results": results,
    }


def test_geometric_means_name_the_worst_case():
    results = [
        result("center", [1.0, 1.0], case=case, others={"x - x.mean": [seconds]})
        for case, seconds in (("one", 8.0), ("two", 2.0))
    ]
    rows = report.rows_of(record(results))
    (line,) = report.means(rows, CONTESTS["center"]).rows
    assert line == ["training step", "2", "4.00x", "4.00x", "-", "-", "two 2.00x"]


def test_work_and_traffic_of_each_pass():
    quadratic = quadratic_case("", (7,), 4, 3)
    pairs = [(i, j) for i in range(4) for j in range(i, 4)]
    assert quadratic.floor_flops == 2 * 7 * 3 * len(pairs)
    bilinear = bilinear_case("", (7,), 4, 6, 3)
    assert bilinear.floor_flops == bilinear.flops == 2 * 7 * 4 * 6 * 3
    case, contest = SMALL["center"], CONTESTS["center"]
    every = options("--passes", "forward,forward_grad,backward,train")
    found = measure.measure(contest, case, [contest.provider("blockops")], every)["passes"]
    forward = {"floor_flops": 2 * 40, "least_bytes": 2 * 40 * 4}  # x read, y written
    factors = {"forward": (1, 1), "forward_grad": (1, 1), "backward": (2, 1), "train": (3, 2)}
    assert found.keys() == factors.keys()
    for name, (work, traffic) in factors.items():
        assert found[name]["floor_flops"] == work * forward["floor_flops"]
        assert found[name]["least_bytes"] == traffic * forward["least_bytes"]


@pytest.mark.parametrize(
    ("op", "text"),
    [
        ("quadratic", "5; 4^2 -> 3"),
        ("bilinear", "5; 4x6 -> 3"),
        ("linear_relu", "5; 4 -> 3"),
        ("center", "5x8, dim -1"),
        ("model", "2; 4 -> 6 -> 3"),
    ],
)
def test_size_of_a_case(op, text):
    assert contests.size(SMALL[op]) == text


def test_cases_of_an_op_have_names_of_their_own_and_a_size():
    for contest in CONTESTS.values():
        assert len({case.name for case in contest.cases}) == len(contest.cases) > 0
        assert all(contests.size(case) for case in contest.cases)


# ---- the check before the timing ----


@pytest.mark.parametrize("op", SMALL)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_provider_is_right(op, dtype):
    data = measure.Data(CONTESTS[op], SMALL[op], dtype)
    for each in CONTESTS[op].providers:
        if not each.compiled and not each.limit:
            found = entry(op, each, data)
            assert found.trouble == "", each.name
            (call,) = found.calls(each.passes[-1], 1)
            tensors = call()
            tensors = tensors if isinstance(tensors, list) else [tensors]
            assert all(t.dtype == dtype for t in tensors)


def off_by_little(call):
    return lambda *args, **kwargs: call(*args, **kwargs) * (1 + 1e-4)


def wrong_gradient(call):
    def wrong(*args, **kwargs):
        *inputs, last = args
        return call(*inputs, last.detach(), **kwargs) + 0 * last.sum()

    return wrong


def wrong_without_grad(call):
    def wrong(*args, **kwargs):
        return call(*args, **kwargs) * (1 if torch.is_grad_enabled() else 2)

    return wrong


def not_a_number(call):
    return lambda *args, **kwargs: call(*args, **kwargs) * math.nan


def other_dtype(call):
    return lambda *args, **kwargs: call(*args, **kwargs).double()


def raises(call):
    def refuse(*args, **kwargs):
        raise RuntimeError("no such shape\nand more")

    return refuse


HONEST = {
    "quadratic": "F.bilinear",
    "bilinear": "F.bilinear",
    "linear_relu": "F.relu(F.linear)",
    "center": "x - x.mean",
}


@pytest.mark.parametrize("op", HONEST)
@pytest.mark.parametrize(
    ("spoil", "trouble"),
    [
        (off_by_little, "wrong: off by"),
        (wrong_gradient, "wrong: off by"),
        (wrong_without_grad, "wrong: off by"),
        (not_a_number, "wrong: off by inf"),
        (other_dtype, "wrong: its dtype"),
        (raises, "raised RuntimeError: no such shape"),
    ],
)
def test_wrong_provider_is_caught_and_not_timed(op, spoil, trouble):
    honest, ours = CONTESTS[op].provider(HONEST[op]), CONTESTS[op].provider("blockops")
    spoilt = replace(honest, name="spoilt", call=spoil(honest.call))
    found = measured(op, ours, honest, spoilt)
    assert set(found["troubles"]) == {"spoilt"}
    assert found["troubles"]["spoilt"].startswith(trouble)
    assert "and more" not in found["troubles"]["spoilt"]
    for each in found["passes"].values():
        assert set(each["times"]) == {"blockops", "blockops again", HONEST[op]}


class Spoilt(torch.nn.Linear):
    def forward(self, x):
        return torch.relu(super().forward(x)) + 1e-2


def test_wrong_module_is_caught():
    def module(case):
        return Spoilt(*providers.sizes(case))

    spoilt = providers.Provider("spoilt", module=module)
    assert entry("linear_relu", spoilt).trouble.startswith("wrong: off by")


def test_centering_that_leaves_the_mean_in_is_caught():
    def identity(x, dim):
        return x.clone()

    assert entry("center", providers.Provider("spoilt", identity)).trouble.startswith("wrong")


def test_data_to_be_centered_have_a_mean_far_from_zero():
    case = center_case("", (10000,))
    (x,) = truth.arguments(case, torch.float32, 0)
    grad = truth.gradient(case, x.shape, torch.float32, 0)
    assert x.mean() > 0.5 and grad.mean() > 0.5 and not torch.equal(x, grad)


def test_center_may_be_off_by_rounding_of_its_largest_term_only():
    contest, case = CONTESTS["center"], SMALL["center"]
    args = truth.arguments(case, torch.float32, 0)
    found = truth.Truth(contest, case, args)
    y = (args[0].double() - args[0].double().mean(-1, keepdim=True)).float()
    largest = args[0].abs().amax(-1, keepdim=True)
    assert found.error([y]) <= found.tolerance
    assert found.error([y + 1e-7 * largest]) <= found.tolerance
    assert found.error([y + 3e-6 * largest]) > found.tolerance


def test_gradient_is_zero_where_rounding_decides_over_the_relu():
    """and only there; which is what lets two right providers have the same gradients."""
    contest, case = CONTESTS["linear_relu"], linear_relu_case("", (2,), 3, 2, bias=False)
    weight = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, 1.0]])
    x = torch.tensor([[1.0, 1.0 + 1e-7, 5.0], [1.0, 2.0, 3.0]])
    found = truth.Truth(contest, case, [x, weight])
    assert found.grad[0, 0] == 0 and (found.grad.flatten()[1:] != 0).all()
    assert all((scale > 0).all() for scale in found.scales)


def test_numbers_too_small_for_the_digits_of_their_dtype_are_no_errors():
    contest, case = CONTESTS["linear_relu"], linear_relu_case("", (1,), 1, 1, bias=False)
    found = truth.Truth(contest, case, [torch.full((1, 1), 2e-4).half() for _ in range(2)])
    assert 0 < found.values[0].item() < 2**-24  # the least number of float16
    assert found.error([torch.zeros(1, 1).half()]) <= found.tolerance
    assert found.error([torch.full((1, 1), 2**-22).half()]) > found.tolerance


def test_wrong_blockops_gets_no_row(monkeypatch, capsys):
    contest = CONTESTS["quadratic"]
    ours, *others = contest.providers
    spoilt = replace(ours, call=off_by_little(ours.call))
    monkeypatch.setitem(CONTESTS, "quadratic", replace(contest, providers=[spoilt, *others[:2]]))
    arguments = ["--op", "quadratic", "--quick", "--targets"]
    assert command.main(arguments) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "wrong: off by" in printed and "quadratic: forward, float32" not in printed
    assert "textbook not ranked" in printed


def test_case_that_a_provider_does_not_serve_is_left_out_with_the_reason():
    contest = CONTESTS["linear_relu"]
    case = linear_relu_case("", (2, 3), 4, 5, bias=False)
    some = [contest.provider("blockops"), contest.provider("_addmm_activation")]
    found = measure.measure(contest, case, some, options("--passes", "forward"))
    expected = {"_addmm_activation": "left out: it needs a bias and a matrix x"}
    assert found["troubles"] == expected


def test_too_large_an_intermediate_is_left_out(monkeypatch):
    case, outer = SMALL["quadratic"], CONTESTS["quadratic"].provider("outer @ W")
    assert providers.largest_intermediate(case, outer, torch.float32) == 5 * 4 * 4 * 4
    monkeypatch.setattr(measure, "LARGEST", 319)
    assert entry("quadratic", outer).trouble.startswith("left out")


def test_without_a_compiler_torch_compile_is_unavailable_and_says_why(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    arguments = ["--op", "center", "--case", "textbook", "--passes", "forward", "--seconds", "0.01"]
    assert command.main(arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "unavailable: torch.compile needs a C++ compiler" in printed
    assert "x - x.mean" in printed


# ---- times ----


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
    data = measure.Data(contest, case, torch.float32)
    assert data.bytes == 2 * 40 * 4
    assert len(data.sets) == measure.SETS
    seen = []

    def told(x, dim):
        seen.append(x.data_ptr())
        return x - x.mean(dim, keepdim=True)

    found = entry("center", providers.Provider("told", told), data)
    seen.clear()
    for _ in range(2):  # one block goes on where the last one ended
        for call in found.calls("forward", measure.SETS // 2):
            call()
    assert len(set(seen)) == measure.SETS
    assert all(len(args[0].unique()) == 40 for args, _ in data.sets)
    monkeypatch.setattr(machine, "cache_bytes", lambda: data.bytes - 1)
    assert len(measure.Data(contest, case, torch.float32).sets) == 1


def test_copy_moves_as_much_as_the_pass_does():
    found = entry("center", CONTESTS["center"].provider("copy_"))
    copies = []
    found.sets = [(lambda: copies.append(1), [], None)]
    found._turns = iter(found.sets * 4)
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

    monkeypatch.setattr(measure, "sample", noted)
    monkeypatch.setattr(measure, "ROUNDS", 2)
    names = ["blockops", "blockops.LinearReLU", "F.relu(F.linear)", "nn.Sequential"]
    some = [CONTESTS["linear_relu"].provider(name) for name in names]
    right = {p.name: entry("linear_relu", p) for p in some}
    again = {name + measure.AGAIN: right[name] for name in names[:2]}
    measure.take_turns(right | again, "forward", options())
    assert order == 2 * [*names, *names[:2]]


def test_slow_provider_is_timed_with_one_call(monkeypatch):
    monkeypatch.setattr(measure, "SLOW", 0.0)
    contest = CONTESTS["bilinear"]
    found = measured("bilinear", contest.provider("blockops"), contest.provider("F.bilinear"))
    rounds = [t["rounds"] for p in found["passes"].values() for t in p["times"].values()]
    assert len(rounds) == 6 and all(len(r) == 1 for r in rounds)
    once = entry("bilinear", contest.provider("F.bilinear"))
    assert once.slow.keys() == {"train", "forward"}  # the check's calls were the ones
    taken = measure.take_turns({"once": once}, "train", options())["once"]["rounds"]
    assert taken == [once.slow["train"]]


def test_a_model_wants_gradients_of_its_parameters_and_an_op_of_all_its_arguments():
    for op, count in {"model": 4, "linear_relu": 3, "center": 1}.items():
        (step,) = entry(op, CONTESTS[op].provider("blockops")).calls("train", 1)
        assert len(step()) == 1 + count, op


# ---- aims ----


def verdict(aim: aims.Aim, *results: dict) -> list[str]:
    text, shown, answer = aims.verdict(aim, report.rows_of(record([*results])), results)
    assert text == aim.text
    return [shown, answer]


def eager(seconds: float, ours: tuple[float, float] = (1.0, 1.0), **about) -> dict:
    return result("center", [*ours], others={"x - x.mean": [seconds]}, **about)


def test_aim_at_every_row_is_missed_unless_within_noise():
    floor = aims.floor_aim("floor", ("center",), ("train",), "eager", 1.0)

    def holds(*ours: float) -> str:
        return verdict(floor, eager(0.95, ours))[1]

    assert holds(0.9, 0.9) == "yes"
    assert holds(0.9, 1.1) == "yes, 1 of 1 rows noisy"
    assert holds(1.0, 1.01) == "NO"
    strict = replace(floor, within_noise=False)
    assert verdict(strict, eager(0.95, (0.9, 1.1)))[1].startswith("NO")


def test_aim_at_a_mean():
    aim = aims.mean_aim("center", "train", "eager", 2.0)
    assert verdict(aim, eager(1.0), eager(4.0)) == ["2.00x, cases: 2", "yes"]
    assert verdict(aim, eager(1.0), eager(3.9))[1] == "NO"
    assert verdict(aim, eager(9.0, name="forward")) == ["-", "not measured"]


def test_aim_covers_its_op_pass_case_and_size_only():
    large = aims.large_aim("train", 1.7)
    assert verdict(large, eager(1.0)) == ["-", "not measured"]
    assert verdict(large, eager(1.6, input_bytes=64e6))[1] == "NO"
    assert verdict(large, eager(1.8, input_bytes=64e6))[1] == "yes"
    assert verdict(replace(large, ops=("linear_relu",)), eager(1.6, input_bytes=64e6))[0] == "-"
    textbook = replace(large, case="textbook", input_bytes=0)
    assert verdict(textbook, eager(1.0), eager(1.8, case="textbook"))[1] == "yes"


@pytest.mark.parametrize(
    ("case", "op", "part", "ours"),
    [
        ("mlp_hidden", "linear_relu", 0.65, "blockops.LinearReLU"),
        ("textbook_mlp", "model", 0.8, "blockops"),
    ],
)
def test_aim_in_parts_of_a_time(case, op, part, ours):
    (aim,) = (a for a in aims.AIMS if a.case == case)
    assert f"at most {part} of nn.Sequential's time" in aim.text

    def holds(seconds: float) -> str:
        times = {"blockops": [0.1], "blockops again": [0.1], "nn.Sequential": [1.0]}
        times |= {ours: [seconds], f"{ours} again": [seconds]}
        return verdict(aim, result(op, [], case=case, others=times))[1]

    assert holds(part - 0.01) == "yes"
    assert holds(part + 0.01) == "NO"


def test_aim_is_missed_where_blockops_is_wrong():
    aim = aims.mean_aim("center", "train", "eager", 2.0)
    wrong = result("center", [], case="two", troubles={"blockops": "wrong: off by 1"})
    assert verdict(aim, eager(9.0), wrong) == ["9.00x, cases: 1; two not ranked", "NO"]
    assert verdict(aim, wrong)[1] == "NO"
    other = result("center", [], case="two", troubles={"compiled": "raised"})
    assert verdict(aim, eager(9.0), other)[1] == "yes"


def test_memory_aim():
    over = result("quadratic", [1.0, 1.0], memory={"peak": 3, "bound": 2})
    assert aims.memory_verdict([over])[1:] == ["small", "NO"]
    assert aims.memory_verdict([result("quadratic", [1.0, 1.0])])[1:] == ["all", "yes"]
    assert aims.memory_verdict([result("center", [1.0, 1.0])])[1:] == ["-", "not measured"]


def test_aims_speak_of_what_there_is():
    """A misspelt op, pass, case or column would stay "not measured" for ever."""
    for aim in aims.AIMS:
        for op in aim.ops:
            contest = CONTESTS[op]
            assert aim.against == "best" or aim.against in contest.columns, aim.text
            assert not aim.case or contest.case(aim.case), aim.text
        assert set(aim.passes) <= set(measure.PASSES), aim.text
    for contest in CONTESTS.values():
        names = [p.name for p in contest.providers]
        assert names[0] == "blockops" and len(set(names)) == len(names)
        assert {p.against for p in contest.providers} <= set(names)
        for named in contest.columns.values():
            assert set(named) <= set(names)


# ---- the command ----


def test_quick_run_of_every_op_stores_what_it_measured(tmp_path, capsys):
    threads = str(torch.get_num_threads())
    arguments = ["--quick", "--targets", "--threads", threads, "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [found["op"] for found in stored["results"]] == list(CONTESTS)
    for found in stored["results"]:
        contest = CONTESTS[found["op"]]
        assert found["troubles"] == {}
        assert tuple(found["passes"]) == tuple(measure.PASSES)
        for name, each in found["passes"].items():
            expected = {p.name for p in contest.providers if not p.compiled and name in p.passes}
            expected |= {p.name + " again" for p in contest.providers if p.ours}
            assert set(each["times"]) == expected
            for times in each["times"].values():
                assert len(times["rounds"]) >= 3 and all(value > 0 for value in times["rounds"])
                low, high = times["quartiles"]
                assert 0 < low <= high
        assert found["memory"]["peak"] <= found["memory"]["bound"]
    assert stored["versions"]["torch"] == torch.__version__
    assert "python -m bench --quick --targets" in stored["command"]
    text, printed = (tmp_path / "results.md").read_text(), capsys.readouterr().out
    for op in CONTESTS:
        for title in report.NAMES.values():
            assert f"## {op}: {title}, float32" in text and f"{op}: {title}, float32" in printed
    assert "## aims" in text and "| aim | measured | holds |" in text
    with (tmp_path / "rows.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == len(CONTESTS) * len(measure.PASSES)
    for row in rows:
        assert float(row["seconds"]) > 0 and float(row["vs_best"]) > 0
        assert (row["vs_copy"] != "") == (row["op"] == "center")


def test_quick_takes_the_smallest_case_and_no_compiled_provider():
    plan = command.planned(command.parse(["--quick", "--op", "center", "linear_relu"]))
    assert [(contest.op, case.name) for contest, case, _ in plan] == [
        ("center", "textbook"),
        ("linear_relu", "mlp_output"),
    ]
    assert not any(provider.compiled for _, _, some in plan for provider in some)


def test_cases_and_providers_are_chosen_by_name():
    def chosen(*arguments: str) -> list[tuple[str, str, list[str]]]:
        plan = command.planned(command.parse([*arguments]))
        return [(contest.op, case.name, [p.name for p in some]) for contest, case, some in plan]

    ours = ["blockops", "blockops.LinearReLU"]
    linear = ["--op", "linear_relu", "--case", "images,wide_1"]
    assert chosen(*linear, "--providers", "eager", "modules") == [
        ("linear_relu", case, [*ours, "F.relu(F.linear)", "nn.Sequential"])
        for case in ("wide_1", "images")
    ]
    ((_, _, names),) = chosen("--case", "images", "--providers", "compile")
    assert names == [*ours, "compiled"]
    ((_, _, names),) = chosen("--case", "images", "--providers", "compile", "--max-autotune")
    assert names == [*ours, "compiled", "compiled, max-autotune"]
    everything = chosen("--skip-compile")
    assert len(everything) == sum(len(contest.cases) for contest in CONTESTS.values())
    assert not any("compiled" in name for _, _, names in everything for name in names)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--op", "cubic"], "--op: there is no 'cubic'; there are quadratic, bilinear"),
        (["--op", "center", "--case", "digits"], "--case: center has no case 'digits'; there are"),
        (["--passes", "sideways"], "--passes: there is no 'sideways'; there are forward,"),
        (["--dtype", "int8"], "--dtype: there is no 'int8'; there are float64"),
        (["--providers", "jax"], "--providers: no name has 'jax' in it; there are blockops;"),
        (["--seconds", "0"], "--seconds: must be a positive number, got '0'"),
        (["--threads", "two"], "--threads: must be a positive whole number, got 'two'"),
        (["--out", __file__], "is a file, not a folder"),
        (["lists"], "unrecognized arguments: lists"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


def test_list_shows_every_op_case_and_provider(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert command.main(["list"]) == 0
    printed = capsys.readouterr().out
    for contest in CONTESTS.values():
        assert contest.op in printed
        assert all(case.name in printed for case in contest.cases)
        assert all(provider.name in printed for provider in contest.providers)
    assert "no: torch.compile needs a C++ compiler; no-such-compiler is not found" in printed


def test_every_op_with_workloads_is_measured_or_listed_as_without_providers(monkeypatch, capsys):
    cases = contests.workloads()
    assert set(cases) >= {"quadratic", "bilinear", "linear_relu", "center"}
    cases["novel"] = [replace(SMALL["center"], op="novel")]
    monkeypatch.setattr(command, "workloads", lambda: cases)
    assert command.main(["list"]) == 0
    (note,) = (line for line in capsys.readouterr().out.splitlines() if "Without" in line)
    assert note.startswith("Without providers:") and "novel" in note


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_commit_is_that_of_the_checkout_and_not_of_one_around_it(monkeypatch, tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "--no-gpg-sign", "-m", "."], check=True)
    monkeypatch.setattr(machine.blockops, "__file__", str(tmp_path / "blockops" / "__init__.py"))
    assert len(machine.commit()) == 40
    (tmp_path / "site").mkdir()
    installed = tmp_path / "site" / "blockops" / "__init__.py"
    monkeypatch.setattr(machine.blockops, "__file__", str(installed))
    assert machine.commit() is None


# ---- stored runs ----


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (eager(2.0), eager(2.0), ""),
        (eager(2.0), eager(2.0, (1.04, 1.04)), ""),
        (eager(2.0), eager(2.0, (1.1, 1.1)), "slower"),
        (eager(2.0), eager(2.2, (1.1, 1.1)), ""),  # the machine is slower
        (eager(2.0), eager(2.0, (1.0, 1.21)), ""),  # and noise
        (eager(2.0, (1.0, 1.21)), eager(2.0, (1.25, 1.25)), ""),
        (eager(2.0), eager(2.0, (0.9, 0.9)), "faster"),
        (result("center", [1.0, 1.0]), result("center", [2.0, 2.0]), "slower"),  # no peer
    ],
)
def test_slower_is_what_noise_does_not_explain(before, after, expected):
    section, worse = compare.compare(record([before]), record([after]))
    assert [row[-1] for row in section.rows] == [expected]
    assert worse == (expected == "slower")


def test_case_that_became_wrong_is_worse():
    wrong = result("center", [], troubles={"blockops": "wrong: off by 1"})
    section, worse = compare.compare(record([eager(2.0)]), record([wrong]))
    assert worse and section.rows[0][-1] == "wrong: off by 1"
    assert "Rows that only one run has: 1." in section.note


def store(folder: Path, **about) -> str:
    report.store(record([eager(2.0)]) | about, [], folder)
    return str(folder)


def test_compare_command_ends_with_what_it_found(tmp_path, capsys):
    first, slow = store(tmp_path / "a"), store(tmp_path / "b", results=[eager(2.0, (1.5, 1.5))])
    assert command.main(["compare", first, slow]) == 1
    assert "0.67x" in capsys.readouterr().out
    assert command.main(["compare", slow, first]) == 0
    assert "faster" in capsys.readouterr().out


def test_report_command_shows_the_tables_of_a_stored_run(tmp_path, capsys):
    assert command.main(["report", store(tmp_path), "--targets"]) == 0
    printed = capsys.readouterr().out
    for part in ("center: training step, float32", "2.00x", "aims", "not measured"):
        assert part in printed


def test_folders_that_cannot_be_compared_are_refused(tmp_path, capsys):
    first, other = store(tmp_path / "a"), store(tmp_path / "b", dtype="float64")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "results.json").write_text("{}")
    for second, sentence in {
        other: "the runs differ in dtype: float32 and float64",
        str(tmp_path / "d"): "has no results.json: name a folder that --out stored",
        str(tmp_path / "c"): "is not of python -m bench",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            command.main(["compare", first, second])
        assert stopped.value.code == 2 and sentence in capsys.readouterr().err
