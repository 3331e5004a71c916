"""Cost curves, call overhead and plots."""

import math

import pytest
import torch
from bench_support import eager, measured, options, record, result

import bench.__main__ as command
from bench import curves, ranking, report
from bench.contests import CONTESTS
from bench.options import planned


def point(over: str, value: int, seconds: float) -> dict:
    curve = {"over": over, "value": value}
    return eager(2.0, (seconds, seconds), case=f"{over}={value}", curve=curve)


# ---- curves and overhead ----


def test_a_curve_varies_one_size_and_holds_the_others():
    found = list(curves.points("bilinear", 4))
    assert [value for over, value, _ in found if over == "threads"] == [1, 2, 4]
    shapes = {(over, value): case.shapes for over, value, case in found}
    assert shapes["m", 16] == {"x1": (256, 64), "x2": (256, 64), "weight": (16, 64, 64)}
    assert shapes["n", 8] == {"x1": (256, 8), "x2": (256, 8), "weight": (64, 8, 8)}
    assert shapes["B", 4096]["x2"] == (4096, 64)
    assert {over for over, _, _ in curves.points("center", 1)} == {"B", "n"}
    assert list(curves.points("model", 4)) == [] == curves.overhead("model")


def test_overhead_is_of_a_single_element():
    for op in curves.BASES:
        (case,) = curves.overhead(op)
        assert all(math.prod(shape) == 1 for shape in case.shapes.values())


def test_growth_is_the_slope_of_the_last_three_points():
    assert ranking.exponent([(1, 7.0), (2, 3.0), (4, 12.0), (8, 48.0)]) == pytest.approx(2)
    assert math.isnan(ranking.exponent([(1, 7.0)]))


def test_curves_have_tables_of_their_own_and_are_no_cases():
    run = record([eager(4.0), *(point("B", value, value / 1e3) for value in (1, 2, 4))])
    assert [row.case for row in ranking.rows_of(run)] == ["small"]
    (table,) = report.growth(run)
    assert table.title == "center: cost curves" and "training step B^1.0" in table.note
    assert table.rows[1] == ["B", "2", "-", "-", "2 ms", "1000.00x"]
    (means,) = (s for s in report.sections(run) if s.title == "center: geometric means")
    assert means.rows[0][1:3] == ["1", "4.00x"]


def test_overhead_has_a_line_for_each_provider():
    run = record(
        [eager(2e-6, (1e-6, 1e-6), case="one element", curve={"over": "call", "value": 1})]
    )
    table = report.overhead(run)
    assert table.header == ["op", "provider", "training step"]
    assert table.rows == [["center", "blockops", "1.00"], ["center", "x - x.mean", "2.00"]]


def test_parts_of_a_run():
    def chosen(*arguments: str) -> list[tuple[str, int]]:
        plan = planned(options("--op", "center", *arguments))
        kinds = [(item.curve or {"over": "case"})["over"] for item in plan]
        return sorted((kind, kinds.count(kind)) for kind in set(kinds))

    cases = len(CONTESTS["center"].cases)
    lengths = [("B", len(curves.VALUES["B"])), ("n", len(curves.VALUES["n"]))]
    assert chosen("--threads", "2") == [
        lengths[0],
        ("call", 1),
        ("case", cases),
        lengths[1],
        ("threads", 2),
    ]
    assert chosen("--parts", "overhead") == [("call", 1)]
    assert chosen("--quick") == [("case", 1)]
    assert chosen("--case", "rows", "square") == [("case", 2)]
    with pytest.raises(SystemExit):
        options("--parts", "curve")


def test_a_point_over_threads_is_measured_with_so_many(monkeypatch):
    plan = planned(options("--op", "center", "--parts", "curves", "--threads", "2"))
    seen = []

    def noted(contest, case, some, own, step):
        seen.append((case.name, own.threads, own.passes))
        return result("center", [1.0, 1.0])

    monkeypatch.setattr(command, "measure", noted)
    for item in plan:
        command.measured(item, [item], options("--threads", "2"), print)
    assert ("threads=1", 1, ["forward", "train"]) in seen
    assert {threads for name, threads, _ in seen if "threads" not in name} == {2}


# ---- plots ----


def test_each_plot_is_drawn_where_there_are_data_for_it(tmp_path):
    plots = pytest.importorskip("bench.plots", reason="there is no matplotlib")
    run = record([eager(4.0, input_bytes=9), eager(0.5, case="slow", name="forward")])
    names = {path.name for path in plots.draw(run, tmp_path / "a")}
    assert names == {"speedup-center.png", "roofline.png", "memory.png"}
    run["results"] += [point(over, value, value / 1e3) for over in "Bn" for value in (1, 2)]
    written = plots.draw(run, tmp_path / "b")
    assert {path.name for path in written} == names | {"curves-center.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert plots.draw(record([]), tmp_path / "c") == []


def test_a_run_without_ceilings_or_peers_has_plots_too(tmp_path):
    """Runs of before the copy was measured, and providers that all failed."""
    plots = pytest.importorskip("bench.plots", reason="there is no matplotlib")
    older = {key: value for key, value in eager(2.0).items() if key not in ("copy", "memory_of")}
    alone = result("quadratic", [1.0, 1.0], memory=None)
    names = {path.name for path in plots.draw(record([older, alone]), tmp_path)}
    assert names == {"speedup-center.png", "roofline.png", "memory.png"}


def test_plots_of_other_passes_and_of_curves_with_holes(tmp_path):
    plots = pytest.importorskip("bench.plots", reason="there is no matplotlib")
    points = [point("B", value, value / 1e3) for value in (1, 2)]
    other = point("n", 4, 1.0)
    other["passes"] = {"forward": other["passes"].pop("train")}
    for name in ("backward", "forward, CUDA graph"):
        run = record([eager(2.0, name=name), *points, other])
        names = {path.name for path in plots.draw(run, tmp_path)}
        assert {"speedup-center.png", "roofline.png", "curves-center.png"} <= names


def test_bars_are_pale_within_the_noise():
    plots = pytest.importorskip("bench.plots", reason="there is no matplotlib")
    rows = ranking.rows_of(record([eager(1.05, (1.0, 1.21)), eager(2.0, case="clear")]))
    figure = plots.speedups("center", rows, record([]))
    (axes,) = figure.axes
    bars = [patch for patch in axes.patches if patch.get_width()]
    assert bars[0].get_facecolor() != bars[1].get_facecolor()
    assert bars[1].get_x() + bars[1].get_width() == pytest.approx(2)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["small", "clear"]


def test_peers_memory_is_measured_beside_that_of_blockops():
    contest = CONTESTS["center"]
    some = [contest.provider(name) for name in ("blockops", "x - x.mean", "copy_")]
    found = measured("center", *some)
    assert set(found["memory_of"]) == {"blockops", "x - x.mean"}
    assert found["memory"]["peak"] == found["memory_of"]["blockops"] >= 0
    assert found["memory_of"]["x - x.mean"] >= 5 * 8 * torch.float32.itemsize
    table = report.memory([found])
    assert table.header[-1] == "leanest stock MiB" and table.rows[0][-1] == "0.00"
