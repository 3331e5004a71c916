"""The benchmark's aims, its command line with short runs, and stored runs."""

import csv
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_support import SMALL, eager, record, result

import bench.__main__ as command
from bench import aims, compare, contests, machine, measure, providers, ranking, report
from bench.contests import CONTESTS
from bench.measure import OVER
from bench.options import parse

# ---- aims ----


def verdict(aim: aims.Aim, *results: dict) -> list[str]:
    text, shown, answer = aims.verdict(aim, ranking.rows_of(record([*results])), results)
    assert text == aim.text
    return [shown, answer]


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


def test_ceiling_aim_is_of_steps_that_arithmetic_bounds():
    tops = {"ceiling": 1e9, "copy": 1e8}

    def verdict_of(seconds: float, flops: float, bytes_moved: float, op: str = "quadratic"):
        found = result(op, [seconds, seconds])
        found["passes"]["train"] |= {"floor_flops": flops, "least_bytes": bytes_moved}
        return aims.ceiling_verdict(ranking.rows_of(record([found])), tops)[1:]

    assert verdict_of(1.0, 5e8, 1e6) == ["small 50%", "NO"]
    assert verdict_of(1.0, 7e8, 1e6) == ["lowest: small 70%", "yes"]
    for other in (
        (1.0, 5e8, 6e7),  # memory bounds it
        (1e-4, 5e4, 1.0),  # the call is as long as the work
        (1.0, 5e8, 1e6, "bilinear"),
    ):
        assert verdict_of(*other) == ["-", "not measured"]


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
        assert set(aim.passes) <= set(providers.PASSES), aim.text
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
        assert tuple(found["passes"]) == tuple(providers.PASSES)
        for name, each in found["passes"].items():
            plain = (p for p in contest.providers if not p.compiled and not p.device)
            expected = {p.name for p in plain if name in p.passes}
            expected |= {p.name + " again" for p in contest.providers if p.ours}
            assert set(each["times"]) == expected
            for times in each["times"].values():
                assert len(times["rounds"]) >= measure.FEWEST
                assert all(value > 0 for value in times["rounds"])
                low, high = times["quartiles"]
                assert 0 < low <= high
        assert found["memory"]["peak"] <= found["memory"]["bound"]
    assert stored["versions"]["torch"] == torch.__version__
    assert "python -m bench --quick --targets" in stored["command"]
    text, printed = (tmp_path / "results.md").read_text(), capsys.readouterr().out
    for op in CONTESTS:
        for title in (ranking.NAMES[name] for name in providers.PASSES):
            assert f"## {op}: {title}, float32" in text and f"{op}: {title}, float32" in printed
    assert "## aims" in text and "| aim | measured | holds |" in text
    with (tmp_path / "rows.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == len(CONTESTS) * len(providers.PASSES)
    for row in rows:
        assert float(row["seconds"]) > 0 and float(row["vs_best"]) > 0
        assert (row["vs_copy"] != "") == (row["op"] == "center")


def test_quick_takes_the_smallest_case_and_no_compiled_provider():
    plan = command.planned(command.parse(["--quick", "--op", "center", "linear_relu"]))
    assert [(item.contest.op, item.case.name) for item in plan] == [
        ("center", "textbook"),
        ("linear_relu", "mlp_output"),
    ]
    assert not any(provider.compiled for item in plan for provider in item.providers)


def test_cases_and_providers_are_chosen_by_name():
    def chosen(*arguments: str) -> list[tuple[str, str, list[str]]]:
        plan = command.planned(command.parse([*arguments]))
        return [(i.contest.op, i.case.name, [p.name for p in i.providers]) for i in plan]

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
    everything = chosen("--skip-compile", "--parts", "cases")
    assert len(everything) == sum(len(contest.cases) for contest in CONTESTS.values())
    assert not any("compiled" in name for _, _, names in everything for name in names)


def test_passes_may_be_named_for_short():
    assert parse(["--passes", "fwd,bwd,train"]).passes == ["forward", "backward", "train"]


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
    missing = {"cpu": "", "cuda": "torch sees no CUDA device"}
    monkeypatch.setattr(command, "why_missing", missing.get)
    assert command.main(["list"]) == 0
    printed = capsys.readouterr().out
    for contest in CONTESTS.values():
        assert contest.op in printed
        assert all(case.name in printed for case in contest.cases)
        assert all(provider.name in printed for provider in contest.providers)
    assert "no: torch.compile needs a C++ compiler; no-such-compiler is not found" in printed
    assert "no: torch sees no CUDA device" in printed and "with --device" not in printed


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


def test_what_was_not_measured_or_wrong_already_is_no_worse():
    late = eager(2.0) | {"troubles": {"blockops": OVER, "compiled": "raised", "copy_": "wrong"}}
    assert not compare.compare(record([eager(2.0)]), record([late]))[1]
    wrong = result("center", [], troubles={"blockops": "wrong: off by 1"})
    section, worse = compare.compare(record([wrong]), record([wrong]))
    assert not worse and section.rows[0][-1] == "wrong: off by 1"


@pytest.mark.parametrize("name", ["all", "reference backend", "blockops, memory"])
def test_whatever_fails_of_blockops_own_is_worse(name):
    failing = eager(2.0) | {"troubles": {name: "raised RuntimeError: no"}}
    section, worse = compare.compare(record([eager(2.0)]), record([failing]))
    assert worse and [row[2] for row in section.rows] == ["training step", name]


def test_two_machines_are_named():
    runs = [record([eager(2.0)]) | {"cpu": cpu} for cpu in ("one", "two")]
    assert "The machines differ: one and two" in compare.compare(*runs)[0].note
    assert "The machines differ" not in compare.compare(runs[0], runs[0])[0].note
    runs[1]["gpu"] = {"name": "a GPU"}
    assert "one and a GPU" in compare.compare(*runs)[0].note


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
    (tmp_path / "e").mkdir()
    gone = json.dumps(record([eager(2.0) | {"op": "cubic"}]))
    (tmp_path / "e" / "results.json").write_text(gone)
    for second, sentence in {
        other: "the runs differ in dtype: float32 and float64",
        str(tmp_path / "e"): "has results of cubic: there is no such op",
        str(tmp_path / "d"): "has no results.json: name a folder that --out stored",
        str(tmp_path / "c"): "is not of python -m bench",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            command.main(["compare", first, second])
        assert stopped.value.code == 2 and sentence in capsys.readouterr().err
