"""Runs that are stopped, short of time or on a GPU, for which there is a stand-in."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_support import SMALL, eager, entry, measured, options, record, result

import bench.__main__ as command
import bench.options
from bench import clocks, contests, machine, measure, providers, report, truth
from bench.contests import CONTESTS
from blockops import _dispatch
from blockops.ops.bilinear.cases import WORKLOADS

ROOT = Path(__file__).parents[1]
QUICK = ["--op", "center", "quadratic", "--quick", "--passes", "forward"]


# ---- stopped, and short of time ----


def test_a_run_that_is_interrupted_keeps_what_it_measured(monkeypatch, tmp_path, capsys):
    begun = []

    def interrupted(contest, case, *rest):
        begun.append(contest.op)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return eager(2.0)

    monkeypatch.setattr(command, "measure", interrupted)
    assert command.main([*QUICK, "--out", str(tmp_path)]) == 130
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["stopped"] and [r["op"] for r in stored["results"]] == ["center"]
    assert "stopped before its end" in (tmp_path / "results.md").read_text()
    assert "2.00x" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_terminated_process_leaves_its_results(tmp_path):
    arguments = ["--op", "center", "--case", "textbook", "square", "--seconds", "0.01"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *arguments, "--skip-compile", "--out", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 120
        while not (tmp_path / "results.json").exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    stored = json.loads((tmp_path / "results.json").read_text())
    assert process.returncode == 130 and stored["stopped"]
    assert [r["case"] for r in stored["results"]] == ["textbook"]
    assert "center: geometric means" in printed.decode()


def test_a_case_that_raises_is_reported_and_the_others_go_on(monkeypatch, capsys):
    def fails(contest, case, *rest):
        if contest.op == "center":
            raise RuntimeError("no memory\nat all")
        return result("quadratic", [1.0, 1.0])

    monkeypatch.setattr(command, "measure", fails)
    assert command.main(QUICK) == 1
    printed = capsys.readouterr().out
    assert "raised RuntimeError: no memory" in printed and "at all" not in printed
    assert "quadratic: training step" in printed


@pytest.mark.parametrize("what", ["ceilings", "memory"])
def test_times_are_kept_where_what_comes_after_them_raises(monkeypatch, what):
    def fails(*rest):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(measure, what, fails)
    found = measured("center", CONTESTS["center"].provider("blockops"), passes="forward")
    name = {"ceilings": "ceilings", "memory": "blockops, memory"}[what]
    assert found["troubles"] == {name: "raised OutOfMemoryError: no memory"}
    assert len(found["passes"]["forward"]["times"]["blockops"]["rounds"]) >= measure.FEWEST
    assert report.sections(record([found]))


def test_without_time_left_a_case_is_not_begun_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(command, "measure", lambda *rest: pytest.fail("it was begun"))
    assert command.main([*QUICK, "--minutes", "1e-9"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "not measured: the time for all was over: textbook" in printed


def test_providers_and_rounds_end_with_the_time(monkeypatch):
    own = options("--passes", "forward")
    contest, case = CONTESTS["center"], SMALL["center"]
    some = [contest.provider("blockops"), contest.provider("x - x.mean")]
    begin = time.monotonic()
    own.deadline = begin - 1
    found = measure.measure(contest, case, some, own)
    assert found["troubles"] == {p.name: measure.OVER for p in some}
    checked = {"blockops": entry("center", some[0])}
    times = clocks.CLOCKS["cpu"].times
    rounds = measure.take_turns(checked, "forward", times, own, {})["blockops"]["rounds"]
    assert len(rounds) == 1


def test_a_case_whose_peers_were_not_all_begun_is_not_ranked(monkeypatch):
    """Else the best would be that of those that came first."""
    own = options("--passes", "forward")
    contest = CONTESTS["center"]
    some = [contest.provider(name) for name in ("blockops", "x - x.mean", "reference backend")]
    ticks = iter([0.0, 0.0, 2.0])
    monkeypatch.setattr(measure, "monotonic", lambda: next(ticks, 3.0))
    own.deadline = 1.0
    found = measure.measure(contest, SMALL["center"], some, own)
    assert found["troubles"] == {p.name: measure.OVER for p in some}
    assert found["passes"]["forward"]["times"] == {}
    assert found["memory"] is None and report.sections(record([found]))


def test_time_is_shared_by_what_is_left():
    plan = bench.options.planned(options("--op", "center", "--parts", "cases"))
    turns = sum(len(item.providers) * len(item.passes) for item in plan)
    assert command.affordable(plan, 60.0) == pytest.approx(command.SHARE * 60 / turns)
    assert command.affordable(plan[-1:], 60.0) > command.affordable(plan, 60.0)
    assert command.affordable(plan, 0.0) == bench.options.QUICK_SECONDS


def test_ops_take_turns_so_that_a_stopped_run_has_of_each():
    plan = bench.options.planned(options("--parts", "cases"))
    first = [item.contest.op for item in plan[: len(CONTESTS)]]
    assert sorted(first) == sorted(CONTESTS)


def test_a_stored_file_is_whole_or_as_it_was(monkeypatch, tmp_path):
    report.store(record([eager(2.0)]), [], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "results.md", "rows.csv"}
    before = (tmp_path / "results.json").read_text()

    def cut_off(path, text, *rest):
        with path.open("w") as file:
            file.write(text[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", cut_off)
    with pytest.raises(KeyboardInterrupt):
        report.store(record([eager(3.0)]), [], tmp_path)
    assert (tmp_path / "results.json").read_text() == before


def test_without_rich_a_run_prints_plainly(monkeypatch, capsys):
    has = machine.has
    monkeypatch.setattr(machine, "has", lambda package: package != "rich" and has(package))
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(command, "measure", lambda *rest: eager(2.0))
    assert command.main(QUICK) == 0
    captured = capsys.readouterr()
    assert "| training step | 2 | 2.00x |" in captured.out
    assert "center      small" in captured.err


def test_a_bar_in_a_text_is_none_of_a_table():
    section = report.Section("t", ["a"], [["x | y"]])
    assert "| x \\| y |" in report.markdown([section])


# ---- backends and packages ----


def test_a_backend_serves_its_provider_and_no_other():
    seen = []

    def noted(x, dim):
        seen.append(_dispatch.active_backend())
        return x - x.mean(dim, keepdim=True)

    some = [
        providers.Provider("blockops", noted),
        providers.Provider("reference backend", noted, backend="reference"),
    ]
    assert measured("center", *some)["troubles"] == {}
    assert set(seen) == {"auto", "reference"} and _dispatch.active_backend() == "auto"


def test_a_run_without_blockops_fails_and_says_why(monkeypatch, capsys):
    monkeypatch.setattr(_dispatch, "why_not", lambda backend, *about: "it is not compiled")
    monkeypatch.setattr(command, "measure", lambda *rest: result("center", []))
    assert command.main(["--op", "center", "--quick"]) == 1
    assert "unavailable: it is not compiled" in " ".join(capsys.readouterr().out.split())


def test_a_wrong_backend_fails_the_run_and_is_no_stock_form(monkeypatch, capsys):
    contest = CONTESTS["center"]
    ours, _, reference, *others = contest.providers
    assert reference.backend and not reference.peer
    spoilt = replace(reference, call=lambda x, dim: x.clone())
    changed = replace(contest, providers=[ours, spoilt, *others])
    monkeypatch.setitem(CONTESTS, "center", changed)
    assert command.main(["--op", "center", "--quick", "--passes", "forward"]) == 1
    assert "wrong: off by" in capsys.readouterr().out


class Contraction:
    """nvmath's TernaryContraction, as far as it is used."""

    planned = False

    def __init__(self, expression, *operands):
        self.expression, self.operands = expression, operands

    def plan(self):
        self.planned = True

    def execute(self):
        assert self.planned
        return torch.einsum(self.expression, *self.operands)


@pytest.mark.parametrize("op", ["quadratic", "bilinear"])
@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_cutensor_is_planned_once_and_checked(monkeypatch, op, factor):
    made = []

    class Counted(Contraction):
        def __init__(self, *about):
            made.append(1)
            super().__init__(*about)

        def execute(self):
            return factor * super().execute()

    module = types.ModuleType("nvmath.tensor")
    module.TernaryContraction = Counted
    monkeypatch.setitem(sys.modules, "nvmath", types.ModuleType("nvmath"))
    monkeypatch.setitem(sys.modules, "nvmath.tensor", module)
    contest = CONTESTS[op]
    found = measured(op, contest.provider("blockops"), contest.provider("cuTENSOR"))
    assert len(made) == clocks.SETS
    if factor == 1:
        assert found["troubles"] == {} and "cuTENSOR" in found["passes"]["forward"]["times"]
        assert "cuTENSOR" not in found["passes"]["train"]["times"]
    else:
        assert found["troubles"]["cuTENSOR"].startswith("wrong: off by")


@pytest.mark.parametrize("op", ["quadratic", "bilinear"])
def test_flag_gems_gets_the_weight_as_torch_has_it(monkeypatch, op):
    module = types.ModuleType("flag_gems")
    module.bilinear = torch.nn.functional.bilinear
    monkeypatch.setitem(sys.modules, "flag_gems", module)
    contest = CONTESTS[op]
    found = measured(op, contest.provider("blockops"), contest.provider("FlagGems"))
    assert found["troubles"] == {} and "FlagGems" in found["passes"]["forward"]["times"]


def test_torch_compile_knows_what_it_is_asked_for():
    for how in providers.COMPILED.values():
        torch.compile(lambda x: x, dynamic=False, **how)
    with pytest.raises(RuntimeError):
        torch.compile(lambda x: x, options={"triton.no_such_option": True})


def test_a_package_that_is_not_there_is_named(monkeypatch):
    cutensor = CONTESTS["quadratic"].provider("cuTENSOR")
    assert providers.why_unavailable(cutensor, "quadratic") == "it is for cuda tensors"
    monkeypatch.setattr(machine, "has", lambda package: False)
    why = providers.why_unavailable(cutensor, "quadratic", "cuda")
    assert why == "the package nvmath is not installed"
    compiled = CONTESTS["center"].provider("compiled")
    assert "needs triton" in providers.why_unavailable(compiled, "center", "cuda")


def test_torch_compile_of_each_is_there_for_who_asks():
    def compiled(*arguments: str) -> set[str]:
        own = bench.options.parse(["--op", "linear_relu", "--case", "images", *arguments])
        (item,) = bench.options.planned(own)
        return {p.name.removeprefix("compiled") for p in item.providers if p.compiled}

    others = {" relu_(F.linear)", " _addmm_activation"}
    assert compiled() == {""}
    assert compiled("--max-autotune") == {"", ", max-autotune"}
    assert compiled("--compile-each") == {""} | others
    slow = {f"{name}, max-autotune" for name in {""} | others}
    assert compiled("--compile-each", "--max-autotune") == {""} | others | slow


# ---- a GPU ----


class Gpu(clocks.Cuda):
    """Its calls run on the CPU, as often as do_bench would make them."""

    device = "cpu"
    product, copy, largest = 8, 640, 1 << 30
    graphs = 0

    def times(self, ready, seconds):
        (call,) = ready(1)
        return [clocks.timed([call]) for _ in range(3)]

    def graph_times(self, ready, seconds):
        self.graphs += 1
        return self.times(ready, seconds)

    def wait(self):
        pass

    def tidy(self):
        pass

    peak = clocks.Cpu.peak


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose CUDA device is the CPU."""
    found = Gpu()
    monkeypatch.setitem(clocks.CLOCKS, "cuda", found)
    monkeypatch.setattr(bench.options, "why_missing", lambda device: "")
    monkeypatch.setattr(machine, "gpu", lambda: {"name": "a GPU"})
    serves = {"triton": "there is no triton"}
    monkeypatch.setattr(_dispatch, "why_not", lambda backend, *about: serves.get(backend))
    return found


def test_a_run_on_a_gpu(gpu, tmp_path, capsys):
    gpu.launch_bound = 10.0  # all is
    arguments = ["--device", "cuda", "--op", "center", "--case", "textbook", "--skip-compile"]
    assert command.main([*arguments, "--seconds", "0.01", "--out", str(tmp_path)]) == 0
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["device"] == "cuda" and stored["gpu"]["name"] == "a GPU"
    assert stored["unavailable"] == {"center": {"triton backend": "there is no triton"}}
    (found,) = stored["results"]
    graphs = {name for name in found["passes"] if name.endswith("CUDA graph")}
    assert graphs == {f"{name}, CUDA graph" for name in ("forward", "forward_grad", "train")}
    assert found["passes"]["train, CUDA graph"]["least_bytes"] == 4 * 5 * 4
    text, printed = (tmp_path / "results.md").read_text(), capsys.readouterr().out
    for part in ("a GPU", "training step, CUDA graph", "unavailable: there is no triton"):
        assert part in text and part in printed


def test_only_what_launching_bounds_is_timed_in_a_graph(gpu):
    contest = CONTESTS["center"]
    own = options("--passes", "forward", "--device", "cuda")
    ours = [contest.provider("blockops")]
    gpu.launch_bound = 0.0
    found = measure.measure(contest, SMALL["center"], ours, own)
    assert set(found["passes"]) == {"forward"} and gpu.graphs == 0


def test_what_cannot_be_captured_keeps_its_other_time(gpu):
    contest = CONTESTS["center"]
    gpu.launch_bound = 10.0

    def fails(ready, seconds):
        gpu.graphs += 1
        if gpu.graphs == 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return gpu.times(ready, seconds)

    gpu.graph_times = fails
    own = options("--passes", "forward", "--device", "cuda")
    some = [contest.provider(name) for name in ("blockops", "x - x.mean")]
    found = measure.measure(contest, SMALL["center"], some, own)
    assert list(found["troubles"]) == ["x - x.mean, forward, CUDA graph"]
    assert "x - x.mean" in found["passes"]["forward"]["times"]
    assert set(found["passes"]["forward, CUDA graph"]["times"]) == {"blockops", "blockops again"}


def test_a_backward_pass_can_be_made_again_on_a_gpu(gpu):
    contest, case = CONTESTS["quadratic"], SMALL["quadratic"]
    for provider in (contest.provider("blockops"), contest.provider("compiled einsum")):
        provider = replace(provider, compiled="")
        data = measure.Data(contest, case, "float32", gpu)
        found = measure.Entry(provider, contest, case, data, gpu)
        assert len(data.sets) == 1 and found.trouble == ""
        (call,) = found.calls("backward", 1)
        assert all(torch.equal(a, b) for a, b in zip(call(), call(), strict=True))


def test_times_of_triton_are_milliseconds(monkeypatch):
    asked = []

    def do_bench(call, **about):
        asked.append(about)
        call()
        return [2.0, 3.0]

    testing = types.ModuleType("triton.testing")
    testing.do_bench = testing.do_bench_cudagraph = do_bench
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    monkeypatch.setitem(sys.modules, "triton.testing", testing)
    calls = []

    def ready(count):
        return [lambda: calls.append(1)] * count

    assert clocks.Cuda().times(ready, 0.1) == [0.002, 0.003]
    assert clocks.Cuda().graph_times(ready, 0.1) == [0.002, 0.003]
    assert asked == [
        {"warmup": 25.0, "rep": 100.0, "return_mode": "all"},
        {"rep": 10.0, "return_mode": "all"},
    ]
    assert len(calls) == 2


def test_the_batch_is_cut_for_the_cpu_alone(gpu):
    (snap,) = (case for case in WORKLOADS if case.name == "snap")
    whole = contests.full(snap)
    assert whole.shapes == {"x": (100000, 55), "weight": (55, 55, 1)}
    assert whole.floor_flops == 5 * snap.floor_flops and contests.size(whole)[-1] != "*"
    for case in (case for contest in CONTESTS.values() for case in contest.cases):
        if case.batch is not None:
            rows = next(iter(case.shapes.values()))[0]
            assert contests.full(case).flops * rows == case.flops * case.batch
    own = options("--op", "quadratic", "--case", "snap", "--device", "cuda")
    (item,) = bench.options.planned(own)
    assert item.case == whole


def test_tf32_is_of_gpus_and_has_a_bound_of_its_own(gpu, capsys):
    with pytest.raises(SystemExit):
        options("--dtype", "tf32")
    assert "it needs --device cuda" in capsys.readouterr().err
    assert options("--dtype", "tf32", "--device", "cuda").dtype == "tf32"
    assert truth.TOLERANCES["float32"] < 2**-11 < truth.TOLERANCES["tf32"]
    contest, case = CONTESTS["linear_relu"], SMALL["linear_relu"]

    def rounded(x, weight, bias):
        cut = [(t.view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (x, weight)]
        return torch.relu(torch.nn.functional.linear(*cut, bias))

    some = providers.Provider("cut", rounded, passes=("forward",))
    for precision, right in (("tf32", True), ("float32", False)):
        data = measure.Data(contest, case, precision, gpu)
        found = measure.Entry(some, contest, case, data, gpu)
        assert (found.trouble == "") == right


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU, and here is one")
def test_without_a_gpu_it_says_why(capsys):
    with pytest.raises(SystemExit):
        command.main(["--device", "cuda"])
    assert "--device: torch" in capsys.readouterr().err


@pytest.mark.parametrize("op", SMALL)
def test_every_stock_form_stays_on_its_device(op):
    """On one whose tensors have no data; what another device has part in raises."""
    case, plain = SMALL[op], (p for p in CONTESTS[op].providers if not p.compiled)
    for provider in plain:
        if provider.ours or provider.package or provider.backend or provider.limit:
            continue
        leaves = [torch.empty(shape, device="meta") for shape in case.shapes.values()]
        if provider.layout is not None:
            weight = [*case.shapes].index("weight")
            leaves[weight] = leaves[weight].permute(provider.layout).contiguous()
        leaves = [leaf.requires_grad_() for leaf in leaves]
        function = provider.call
        if provider.module is not None:
            function, leaves = provider.module(case).to(leaves[0]), leaves[:1]
        y = function(*leaves, **case.options)
        assert y.device.type == "meta", provider.name
        if "train" in provider.passes:
            found = torch.autograd.grad(y, leaves, torch.empty_like(y))
            assert all(grad.device.type == "meta" for grad in found), provider.name


def test_data_and_ceilings_are_on_the_device_of_the_clock(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "device", "meta", raising=False)
    seen = []

    def times(ready, seconds):
        (call,) = ready(1)
        seen.append(call().device.type)
        return [1.0]

    monkeypatch.setattr(gpu, "times", times)
    measure.ceilings(CONTESTS["quadratic"], "bfloat16", gpu, 0.0)
    tensors = truth.arguments(SMALL["bilinear"], torch.float32, 0, "meta")
    tensors.append(truth.gradient(SMALL["bilinear"], (5, 3), torch.float32, 0, "meta"))
    assert seen == ["meta", "meta"]
    assert {t.device.type for t in tensors} == {"meta"}
