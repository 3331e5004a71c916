"""The benchmark's arithmetic, its check of results before timing, and a short run of it."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

# Last in the path, so that the blockops under test stays the one that is installed or built there.
sys.path.append(str(Path(__file__).parents[1]))

from bench import bilinear, report  # noqa: E402
from bench.providers import PROVIDERS, largest_intermediate  # noqa: E402
from blockops.ops.bilinear.cases import WORKLOADS, bilinear_case, quadratic_case  # noqa: E402

SMALL = {
    "quadratic": quadratic_case("small", (5,), 4, 3),
    "bilinear": bilinear_case("small", (5,), 4, 6, 3),
}


def options(*arguments: str):
    threads = str(torch.get_num_threads())
    return ["--threads", threads, "--seconds", "0.01", "--skip-compile", *arguments]


def provider(op: str, name: str):
    return next(p for p in PROVIDERS[op] if p.name == name)


def result(ours: list[float], **others: list[float]) -> dict:
    seconds = {"blockops": ours[:1], "blockops again": ours[1:]} | others
    return {
        "op": "quadratic",
        "case": "small",
        "shapes": {"x": (2, 3), "weight": (3, 3, 5)},
        "source_batch": None,
        "ceiling": 1e9,
        "memory": {"peak": 1, "bound": 2},
        "troubles": {},
        "passes": {"train": {"floor_flops": 360, "seconds": seconds}},
    }


def test_geometric_mean():
    assert report.geometric_mean([2, 8]) == pytest.approx(4)
    assert report.geometric_mean([0.5, 1, 2]) == pytest.approx(1)
    assert math.isnan(report.geometric_mean([]))


def test_row_compares_with_the_fastest_and_reports_noise():
    others = {
        "einsum": [9.0, 8.0, 7.0],
        "einsum, no opt_einsum": [6.0],
        "x @ W, bmm": [3.0],
        "F.bilinear": [80.0],
    }
    row = report.compare(result([1.0, 4.0], **others), "train")
    assert row.seconds == pytest.approx(2)
    assert row.noise == pytest.approx(4)
    assert (row.best, row.best_seconds) == ("x @ W, bmm", 3.0)
    assert row.ratios == pytest.approx({"best": 1.5, "einsum": 3, "F.bilinear": 40})
    assert row.flops == pytest.approx(180)


def test_fastest_round_and_unsteady_medians():
    rounds = result([1.0, 1.0], einsum=[2.0, 8.0, 9.0])
    row = report.compare(rounds, "train")
    assert (row.ratios["best"], row.unsteady) == (8, 4) and report.noisy(row)
    row = report.compare(rounds, "train", fastest=True)
    assert row.ratios["best"] == 2 and not report.noisy(row)


def test_row_without_rivals_or_without_blockops():
    row = report.compare(result([1.0, 1.0]), "train")
    assert row.ratios == {} and row.best == "-"
    alone = result([1.0, 1.0])
    alone["passes"]["train"]["seconds"] = {"einsum": [1.0]}
    assert report.compare(alone, "train") is None


def test_slower_than_the_best_is_an_aim_missed_unless_within_noise():
    def holds(ours: list[float]) -> str:
        results = [result(ours, einsum=[0.95])]
        rows = [report.compare(r, "train") for r in results]
        (state,) = [r[2] for r in report.targets(rows, results).rows if "no shape" in r[0]]
        return state

    assert holds([0.9, 0.9]) == "yes"
    assert holds([0.9, 1.1]) == "yes, 1 of its rows noisy"
    assert holds([1.0, 1.01]) == "NO"


def test_floor_counts_each_pair_once_and_a_step_three_times():
    case = quadratic_case("", (7,), 4, 3)
    assert case.floor_flops == 2 * 7 * 3 * len([(i, j) for i in range(4) for j in range(i, 4)])
    case = bilinear_case("", (7,), 4, 6, 3)
    assert case.floor_flops == case.flops == 2 * 7 * 4 * 6 * 3
    parsed = bilinear.parse(options("--passes", "forward,train"))
    measured = bilinear.measure(case, PROVIDERS["bilinear"][:1], parsed)["passes"]
    assert measured["forward"]["floor_flops"] == case.floor_flops
    assert measured["train"]["floor_flops"] == 3 * case.floor_flops


@pytest.mark.parametrize("op", SMALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_provider_is_right(op, dtype):
    data = bilinear.Data(SMALL[op], dtype)
    for each in PROVIDERS[op]:
        if not each.compiled:
            entry = bilinear.Entry(each, SMALL[op], data)
            assert entry.trouble == "", each.name
            assert entry.calls["train"]()[0].dtype == dtype


def off_by_little(call):
    return lambda *args: call(*args) * (1 + 1e-4)


def wrong_gradient(call):
    def wrong(*args):
        *inputs, weight = args
        return call(*inputs, weight.detach()) + 0 * weight.sum()

    return wrong


def wrong_without_grad(call):
    return lambda *args: call(*args) * (1 if torch.is_grad_enabled() else 2)


def not_a_number(call):
    return lambda *args: call(*args) * math.nan


def raises(call):
    def refuse(*args):
        raise RuntimeError("no such shape\nand more")

    return refuse


@pytest.mark.parametrize("op", SMALL)
@pytest.mark.parametrize(
    ("spoil", "trouble"),
    [
        (off_by_little, "wrong: "),
        (wrong_gradient, "wrong: "),
        (wrong_without_grad, "wrong: "),
        (not_a_number, "wrong: off by inf"),
        (raises, "raised RuntimeError: no such shape"),
    ],
)
def test_wrong_provider_is_caught_and_not_timed(op, spoil, trouble):
    honest, ours = provider(op, "F.bilinear"), PROVIDERS[op][0]
    spoilt = replace(honest, name="spoilt", call=spoil(honest.call))
    found = bilinear.measure(SMALL[op], [ours, honest, spoilt], bilinear.parse(options()))
    assert set(found["troubles"]) == {"spoilt"}
    assert found["troubles"]["spoilt"].startswith(trouble)
    assert "and more" not in found["troubles"]["spoilt"]
    for measured in found["passes"].values():
        assert set(measured["seconds"]) == {"blockops", "blockops again", "F.bilinear"}


def test_wrong_blockops_gets_no_row(monkeypatch, capsys):
    ours, *others = PROVIDERS["quadratic"]
    spoilt = replace(ours, call=off_by_little(ours.call))
    monkeypatch.setitem(PROVIDERS, "quadratic", [spoilt, *others[:2]])
    assert bilinear.main(options("--case", "textbook", "--targets")) == 1
    printed = capsys.readouterr().out
    assert "wrong: off by" in printed and "forward, float32" not in printed


def test_too_large_an_intermediate_is_left_out(monkeypatch):
    case, outer = SMALL["quadratic"], provider("quadratic", "outer @ W")
    assert largest_intermediate(case, outer, torch.float32) == 5 * 4 * 4 * 4
    monkeypatch.setattr(bilinear, "LARGEST", 319)
    entry = bilinear.Entry(outer, case, bilinear.Data(case, torch.float32))
    assert entry.trouble.startswith("left out")


def test_slow_provider_is_timed_with_one_call(monkeypatch):
    monkeypatch.setattr(bilinear, "SLOW", 0.0)
    providers = [PROVIDERS["bilinear"][0], provider("bilinear", "F.bilinear")]
    found = bilinear.measure(SMALL["bilinear"], providers, bilinear.parse(options()))
    assert all(len(s) == 1 for p in found["passes"].values() for s in p["seconds"].values())


def test_run_end_to_end(tmp_path, capsys):
    assert bilinear.main(options("--case", "textbook", "--targets", "--out", str(tmp_path))) == 0
    record = json.loads((tmp_path / "bilinear.json").read_text())
    (found,) = record["results"]
    assert found["case"] == "textbook" and found["troubles"] == {}
    assert set(found["passes"]) == {"forward", "forward_grad", "train"}
    for measured in found["passes"].values():
        names = {p.name for p in PROVIDERS["quadratic"] if not p.compiled} | {"blockops again"}
        assert set(measured["seconds"]) == names
        assert all(value > 0 for values in measured["seconds"].values() for value in values)
    assert found["memory"]["peak"] <= found["memory"]["bound"]
    assert record["versions"]["torch"] == torch.__version__
    text = (tmp_path / "bilinear.md").read_text()
    for part in ("## forward, float32", "## training step, float32", "| textbook |", "## aims"):
        assert part in text
    assert "geometric means" in capsys.readouterr().out


def test_unknown_pass_is_refused(capsys):
    with pytest.raises(SystemExit):
        bilinear.parse(["--passes", "sideways"])
    assert "'sideways' is not one of" in capsys.readouterr().err


def test_cases_of_the_run_have_names_of_their_own():
    assert len({case.name for case in WORKLOADS}) == len(WORKLOADS)
