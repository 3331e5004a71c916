"""The benchmark: its arithmetic, and its check of results before timing."""

import math
from dataclasses import replace

import pytest
import torch
from bench_support import DTYPES, SMALL, entry, measured, options, record, result

import bench.__main__ as command
from bench import clocks, contests, floors, measure, providers, ranking, report, truth
from bench.contests import CONTESTS
from blockops.ops.bilinear.cases import bilinear_case, quadratic_case
from blockops.ops.center.cases import center_case
from blockops.ops.linear_relu.cases import linear_relu_case

# ---- rows ----


def test_geometric_mean():
    assert ranking.geometric_mean([2, 8]) == pytest.approx(4)
    assert ranking.geometric_mean([0.5, 1, 2]) == pytest.approx(1)
    assert math.isnan(ranking.geometric_mean([]))


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
    row = ranking.compare(result("quadratic", [1.0, 4.0], others=others), "train")
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
    row = ranking.compare(result("linear_relu", [2.0, 2.0], others=others), "train")
    assert row.best == "F.relu(F.linear)"
    assert row.ratios == pytest.approx({"best": 2, "eager": 2, "modules": 0.25})
    assert row.noises == pytest.approx({"blockops": 1, "blockops.LinearReLU": 4})
    assert row.noise == 1 and ranking.noisy(row)


def test_copy_is_a_limit_and_no_peer():
    found = result("center", [2.0, 2.0], others={"x - x.mean": [3.0], "copy_": [1.0]})
    row = ranking.compare(found, "train")
    assert row.best == "x - x.mean" and row.ratios["copy"] == 0.5
    _, table, *_ = report.sections(record([found]))
    assert table.title == "center: training step, float32"
    shown = dict(zip(table.header, table.rows[0], strict=True))
    assert (shown["of copy bandwidth"], shown["vs eager"]) == ("50%", "1.50x")
    assert (shown["vs compile"], shown["GB/s"]) == ("-", "2.4e-08")


def test_fastest_round_and_unsteady_medians():
    own = {"blockops": [1.0, 1.0, 1.0], "blockops again": [1.0, 1.0, 1.0]}
    rounds = result("quadratic", [1.0, 1.0], others=own | {"einsum": [2.0, 8.0, 9.0]})
    row = ranking.compare(rounds, "train")
    assert (row.best_seconds, row.unsteady) == (8, 4) and ranking.noisy(row)
    row = ranking.compare(rounds, "train", fastest=True)
    assert (row.best_seconds, row.unsteady) == (2, 4) and ranking.noisy(row)


@pytest.mark.parametrize("fastest", [False, True])
def test_a_ratio_is_of_times_of_the_same_round(fastest):
    """So that a machine that is slow for some rounds, or fast for one call, changes none."""
    slow = [1.0, 3.0, 3.0, 9.0, 1.0]
    others = {
        "blockops": [4 * s for s in slow],
        "blockops again": [4 * s for s in slow[:4]] + [7.0],
        "F.relu(F.linear)": [6 * s for s in slow[:4]] + [0.1],
        "relu_(F.linear)": [5 * s for s in slow],
        "nn.Sequential": [20.0],
    }
    row = ranking.compare(result("linear_relu", [1.0, 1.0], others=others), "train", fastest)
    assert row.ratios == pytest.approx({"best": 1.25, "eager": 1.5})
    assert row.best == "relu_(F.linear)"


@pytest.mark.parametrize("turned", [False, True])
def test_the_noise_is_that_of_a_quarter_of_the_rounds(turned):
    both = [[2.0] * 5, [2.0, 2.2, 2.4, 1.0, 2.0]]
    assert ranking.band(*(both[::-1] if turned else both)) == pytest.approx(1.1)
    both = [[2.0] * 5, [2.0, 1.6, 1.0, 2.0, 2.0]]
    assert ranking.band(*(both[::-1] if turned else both)) == pytest.approx(1.25)


def test_row_without_rivals_or_without_blockops():
    row = ranking.compare(result("quadratic", [1.0, 1.0]), "train")
    assert row.ratios == {} and row.best == "-"
    assert ranking.compare(result("quadratic", [], others={"einsum": [1.0]}), "train") is None


def test_geometric_means_name_the_worst_case():
    results = [
        result("center", [1.0, 1.0], case=case, others={"x - x.mean": [seconds]})
        for case, seconds in (("one", 8.0), ("two", 2.0))
    ]
    rows = ranking.rows_of(record(results))
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
    assert {name: (f["floor_flops"], f["least_bytes"]) for name, f in found.items()} == {
        "forward": (80, 320),  # x read, y written
        "forward_grad": (80, 320),
        "backward": (80, 320),  # the same pass over the gradient
        "train": (160, 640),
    }


# x, W and y of 5 rows, 4 features and 3 outputs; x1, x2, W, y with 6 more features; x, W, b and y;
# of the model x, its four parameters and y.
ELEMENTS = {
    "quadratic": (20, 48, 15),
    "bilinear": (20, 30, 72, 15),
    "linear_relu": (20, 12, 3, 15),
    "model": (8, 24, 6, 18, 3, 6),
}


@pytest.mark.parametrize(
    ("op", "forward", "backward", "read_backward", "written_backward"),
    [
        ("quadratic", 2 * 5 * 3 * 10, 2 * 5 * (2 * 10 * 3 + 4 * 4), (20, 48, 15), (20, 48)),
        ("bilinear", 2 * 5 * 24 * 3, 2 * 5 * 24 * (2 * 3 + 2), (20, 30, 72, 15), (20, 30, 72)),
        ("linear_relu", 2 * 5 * 4 * 3, 2 * 2 * 5 * 4 * 3, (20, 12, 3, 15, 15), (20, 12, 3)),
        (
            "model",
            2 * 2 * (4 * 6 + 6 * 3),
            2 * 2 * (4 * 6 + 2 * 6 * 3),  # no gradient of the input
            (8, 24, 6, 18, 3, 6),
            (24, 6, 18, 3),
        ),
    ],
)
def test_floors_of_ops_with_products(op, forward, backward, read_backward, written_backward):
    case, without_grad = SMALL[op], CONTESTS[op].without_grad
    moved = {"forward": sum(ELEMENTS[op]), "backward": sum(read_backward + written_backward)}
    moved["train"] = moved["forward"] + moved["backward"]
    work = {"forward": forward, "backward": backward, "train": forward + backward}
    for name in work:
        assert floors.flops(case, name) == work[name]
        for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
            found = floors.traffic(case, name, ELEMENTS[op][-1], dtype, without_grad)
            assert found == size * moved[name]


def test_floor_of_a_single_output():
    """Backward: W x for each input, and the product for the weight."""
    assert floors.flops(quadratic_case("", (7,), 4, 1), "backward") == 2 * 7 * (4 * 4 + 10)
    assert floors.flops(bilinear_case("", (7,), 4, 6, 1), "backward") == 2 * 7 * (24 * 2 + 24)


def test_share_of_the_ceiling_is_that_of_what_bounds_the_pass():
    assert floors.share(50.0, 10.0, 100.0, 100.0) == (0.5, "arithmetic")
    assert floors.share(50.0, 80.0, 100.0, 100.0) == (0.8, "memory")
    assert floors.share(50.0, 80.0, 100.0, math.nan) == (0.5, "arithmetic")
    share, bound = floors.share(50.0, 80.0, math.nan, math.nan)
    assert math.isnan(share) and bound == ""


def test_ceilings_count_what_they_do(monkeypatch):
    """One second each: a product's multiplications and sums, a copy's reads and writes."""
    clock = clocks.Cpu()
    monkeypatch.setattr(clock, "product", 8, raising=False)
    monkeypatch.setattr(clock, "copy", 640, raising=False)
    monkeypatch.setattr(clock, "times", lambda ready, seconds: [2.0, 1.0])
    found = measure.ceilings(CONTESTS["quadratic"], "float32", clock, 0.0)
    assert found == {"ceiling": 2 * 8**3, "copy": 2 * 640}
    assert measure.ceilings(CONTESTS["center"], "float32", clock, 0.0)["ceiling"] is None


def test_a_ratio_inside_the_noise_is_marked():
    row = ranking.compare(result("center", [1.0, 1.21], others={"x - x.mean": [1.2]}), "train")
    assert not row.tells(row.ratios["best"]) and report.marked(row, "best") == "1.09x ~"
    row = ranking.compare(result("center", [1.0, 1.0], others={"x - x.mean": [0.9]}), "train")
    assert row.tells(row.ratios["best"]) and report.marked(row, "best") == "0.90x"


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
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_provider_is_right(op, dtype):
    data = measure.Data(CONTESTS[op], SMALL[op], dtype)
    for each in CONTESTS[op].providers:
        if not each.compiled and not each.limit and not each.device:
            found = entry(op, each, data)
            assert found.trouble == "", each.name
            (call,) = found.calls(each.passes[-1], 1)
            tensors = call()
            tensors = tensors if isinstance(tensors, list) else [tensors]
            assert all(t.dtype == truth.DTYPES[dtype] for t in tensors)


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


@pytest.mark.parametrize(("off", "right"), [(0.5, True), (3.0, False)])
def test_the_bound_is_that_of_the_dtype(off, right):
    honest = CONTESTS["quadratic"].provider("F.bilinear")
    for dtype in ("float64", "bfloat16"):
        factor = 1 + off * truth.TOLERANCES[dtype]

        def scaled(x, w, factor=factor):
            return (honest.call(x.double(), w.double()) * factor).to(x.dtype)

        data = measure.Data(CONTESTS["quadratic"], SMALL["quadratic"], dtype)
        found = entry("quadratic", replace(honest, call=scaled), data)
        assert (found.trouble == "") == right, found.trouble


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
    monkeypatch.setattr(clocks.Cpu, "largest", 319)
    assert entry("quadratic", outer).trouble.startswith("left out")


def test_without_a_compiler_torch_compile_is_unavailable_and_says_why(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    arguments = ["--op", "center", "--case", "textbook", "--passes", "forward", "--seconds", "0.01"]
    assert command.main(arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "unavailable: torch.compile needs a C++ compiler" in printed
    assert "x - x.mean" in printed
