"""`make gpu-check` as far as it goes without a GPU: the runner on made-up checks, every check's own
code on the CPU, and what is said where there is no GPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gpu_check import base, calls, checks, hardware, runner
from gpu_check.base import ROOT, NotRun, Run
from gpu_check.runner import FAILED, NOT_RUN, PASSED, Check

# ---- the runner ----

SCRIPTS = {
    "passes": "print('all'); print('12 tests')",
    "says_nothing": "",
    "fails": "import sys; print('two | wrong'); sys.exit(1)",
    "is_not_run": "import sys; print('there is one device'); sys.exit(77)",
    "crashes": "import os, signal; print('now', flush=True); os.kill(os.getpid(), signal.SIGSEGV)",
    "hangs": "import time; print('begun', flush=True); time.sleep(60)",
}


def run(tmp_path, names, limit=20.0, budget=60.0, scripts=SCRIPTS):
    shown = []
    outcomes = runner.run_all(
        [Check(name, "a thing", limit) for name in names],
        lambda check: [sys.executable, "-c", scripts[check.name]],
        tmp_path / "out",
        {"device": "none"},
        budget,
        show=shown.append,
    )
    assert len(shown) == len(names)
    return outcomes


def test_each_outcome(tmp_path):
    outcomes = run(tmp_path, [name for name in SCRIPTS if name != "hangs"])
    assert {o.name: (o.outcome, o.reason) for o in outcomes} == {
        "passes": (PASSED, "12 tests"),
        "says_nothing": (PASSED, ""),
        "fails": (FAILED, "two | wrong"),
        "is_not_run": (NOT_RUN, "there is one device"),
        "crashes": (FAILED, "ended by SIGSEGV: now"),
    }
    assert (tmp_path / "out/logs/passes.txt").read_text() == "all\n12 tests\n"
    record = json.loads((tmp_path / "out/report.json").read_text())
    assert record["device"] == "none" and len(record["checks"]) == 5
    text = (tmp_path / "out/report.md").read_text()
    assert "2 passed, 2 failed, 1 not run" in text
    assert "| crashes | a thing | failed |" in text and "two \\| wrong" in text


def test_a_hang_costs_its_limit_and_no_more(tmp_path):
    begin = time.monotonic()
    hangs, passes = run(tmp_path, ["hangs", "passes"], limit=2.0)
    assert time.monotonic() - begin < 20
    assert (hangs.outcome, hangs.reason) == (FAILED, "still running after 2 s: begun")
    assert passes.outcome == PASSED


def test_what_a_check_has_started_ends_with_it(tmp_path):
    child = "import time; time.sleep(60)"
    script = (
        f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid)"
    )
    (outcome,) = run(tmp_path, ["parent"], scripts={"parent": script})
    for _ in range(100):
        state = Path(f"/proc/{outcome.reason}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child is still there")


def test_the_end_of_the_budget(tmp_path):
    outcomes = run(tmp_path, ["hangs", "passes"], budget=2.0)
    assert [outcome.outcome for outcome in outcomes] == [NOT_RUN, NOT_RUN]
    assert "at the end of the time for all checks" in outcomes[0].reason
    assert "were over" in outcomes[1].reason


def test_nothing_runs_on_what_was_not_built(tmp_path):
    outcomes = runner.run_all(
        [Check("fails", "", 20, needed=True), Check("passes", "", 20)],
        lambda check: [sys.executable, "-c", SCRIPTS[check.name]],
        tmp_path,
        {},
        60,
    )
    assert [(outcome.outcome, outcome.reason) for outcome in outcomes[1:]] == [
        (NOT_RUN, "it needs fails")
    ]


def test_a_run_that_is_cut_off_leaves_what_it_had(tmp_path):
    def shown(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run_all(
            [Check("passes", "", 20), Check("hangs", "", 20)],
            lambda check: [sys.executable, "-c", SCRIPTS[check.name]],
            tmp_path,
            {},
            60,
            show=shown,
        )
    record = json.loads((tmp_path / "report.json").read_text())
    reasons = [(check["outcome"], check["reason"]) for check in record["checks"]]
    assert reasons == [(PASSED, "12 tests"), (NOT_RUN, "the run ended before it")]


# ---- the command ----


def command(*arguments):
    path = os.pathsep.join([str(ROOT / "tests"), *sys.path])
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_without_a_gpu_it_says_so():
    done = command("gpu_check")
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"gpu-check needs a CUDA device: torch {torch.__version__} ")


def test_unknown_check():
    done = command("gpu_check", "speed")
    assert done.returncode == 2 and "there is no check 'speed'; there are build, " in done.stderr


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (None, 0, "seen"),
        (NotRun("no such device"), runner.STATUS_NOT_RUN, "no such device"),
        (AssertionError("two\nlines"), 1, "two lines"),
        (KeyError(), 1, "KeyError"),
    ],
)
def test_status_of_a_check(monkeypatch, tmp_path, capsys, error, status, line):
    def function(run):
        assert run == Run("cuda", tmp_path)
        if error is not None:
            raise error
        return "seen"

    monkeypatch.setattr(checks, "TABLE", [(Check("a", "", 1), function)])
    assert checks.main("a", str(tmp_path)) == status
    assert capsys.readouterr().out.splitlines()[-1] == line


# ---- the checks, tried on the CPU ----


@pytest.fixture
def here(tmp_path):
    return Run("cpu", tmp_path)


@pytest.mark.parametrize(
    "function",
    [
        calls.gradcheck,
        calls.graphs,
        calls.side_stream,
        calls.ten_runs,
        calls.workloads,
        calls.long_sums,
        calls.tf32,
        calls.tuning,
        calls.far_center,
        calls.far_linear_relu,
        calls.far_quadratic,
        calls.second_device,
    ],
    ids=lambda function: function.__name__,
)
def test_calls(here, function):
    assert function(here)


def test_a_wrong_kernel_is_found(here, monkeypatch):
    """Off by a hundredth in the last row: what compares with float64 must see it."""
    right = calls.blockops.quadratic

    def wrong(x, weight, bias=None):
        y = right(x, weight, bias)
        return torch.cat([y[:-1], y[-1:] * 1.03])

    monkeypatch.setattr(calls.blockops, "quadratic", wrong)
    with pytest.raises(AssertionError, match="quadratic, result, rows .* times what is allowed"):
        calls.far_quadratic(here)
    with pytest.raises(AssertionError, match="times what is allowed"):
        calls.workloads(here)


def test_an_op_without_a_kernel_is_found(here, monkeypatch):
    reason = "there is no kernel"
    monkeypatch.setattr(calls._dispatch, "why_not", lambda backend, op, device: reason)
    for function in (calls.gradcheck, calls.graphs, calls.second_device):
        with pytest.raises(AssertionError, match=reason):
            function(here)


def test_other_bits_are_found(here, monkeypatch):
    outputs_of, seen = calls.outputs_of, []

    def unsteady(function, arguments, grad):
        outputs = outputs_of(function, arguments, grad)
        seen.append(function)
        outputs["result"] = outputs["result"] + len(seen) * 2.0**-20
        return outputs

    monkeypatch.setattr(calls, "outputs_of", unsteady)
    for function in (calls.graphs, calls.side_stream, calls.ten_runs, calls.second_device):
        with pytest.raises(AssertionError, match="native .* other bits"):
            function(here)


def test_suite_of_pytest(here, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    file = str(base.TESTS / "test_devices.py")
    assert checks.pytest(here, "some", file).endswith("passed, 0 failed, 0 skipped")
    with pytest.raises(NotRun, match="there are no tests"):
        checks.pytest(here, "nothing", file, "-k", "no_such_test")


@pytest.mark.parametrize(
    ("cases", "error", "words"),
    [
        (
            ["", '<failure message="no"/>', '<error message="no"/>'],
            AssertionError,
            "2 failed, 0 sk",
        ),
        (["", '<skipped message="why"/>'], None, "1 passed, 0 failed, 1 skipped"),
        (['<skipped message="there is no device"/>'], NotRun, "^there is no device$"),
    ],
)
def test_tests_are_counted(tmp_path, cases, error, words):
    report = tmp_path / "report.xml"
    cases = "".join(f'<testcase name="a">{case}</testcase>' for case in cases)
    report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    if error is None:
        assert checks.counted(report) == words
        return
    with pytest.raises(error, match=words):
        checks.counted(report)


def test_benchmark(here, monkeypatch):
    def fake(*command, **options):
        return 0, "--device DEVICE" if with_device and "--help" in command else ""

    monkeypatch.setattr(checks, "call", fake)
    with_device = False
    with pytest.raises(NotRun, match="has no --device"):
        checks.benchmark(here)
    with_device = True
    assert checks.benchmark(here)


def test_tiny_calls(monkeypatch):
    done = command("gpu_check.tiny", "cpu")
    assert done.returncode == 0 and done.stdout == "tiny calls: done\n", done.stderr


# ---- compute-sanitizer: a stand-in with its options and exit statuses ----

STAND_IN = """\
#!/bin/sh
case "$*" in
  *planted*) echo "========= {planted[1]}"; exit {planted[0]} ;;
  *) echo "tiny calls: done"; echo "========= {tiny[1]}"; exit {tiny[0]} ;;
esac
"""


@pytest.mark.parametrize(
    ("tool", "planted", "tiny", "outcome"),
    [
        ("memcheck", (99, "an error"), (0, ""), "no errors"),
        ("memcheck", (99, "an error"), (99, "at blockops::f"), AssertionError),
        ("initcheck", (99, "an error"), (99, "at blockops::f"), AssertionError),
        ("initcheck", (99, "an error"), (99, "at at::f"), "errors in other libraries"),
        ("racecheck", (99, "an error"), (99, "at at::f"), AssertionError),
        ("racecheck", (99, "an error"), (1, ""), AssertionError),
        ("synccheck", (1, "Device not supported"), (0, ""), NotRun),
        ("synccheck", (0, ""), (0, ""), NotRun),
    ],
)
def test_sanitizer(here, monkeypatch, tool, planted, tiny, outcome):
    program = here.out / "compute-sanitizer"
    program.write_text(STAND_IN.format(planted=planted, tiny=tiny))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(here.out), prepend=os.pathsep)
    monkeypatch.setattr(hardware, "compiled", lambda run, source: "planted")
    check = checks.sanitizer(tool)
    if isinstance(outcome, str):
        assert check(here).startswith(outcome)
    else:
        with pytest.raises(outcome):
            check(here)


def test_without_a_sanitizer(here, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(hardware, "in_toolkit", lambda name: None)
    with pytest.raises(NotRun, match="no compute-sanitizer"):
        checks.sanitizer("memcheck")(here)


# ---- the models of instructions ----


@pytest.fixture(scope="module")
def modelled(tmp_path_factory):
    """Samples, their results by the model, and their scales."""
    here = Run("cpu", tmp_path_factory.mktemp("model"))
    try:
        model = hardware.compiled(here, "instructions.cu", for_gpu=False)
    except NotRun as reason:
        pytest.skip(str(reason))
    given = hardware.samples()
    results = (hardware.results(here, model, g) for g in (given, hardware.absolute(given)))
    return given, *results


def test_models_agree_with_themselves(modelled):
    given, expected, scale = modelled
    assert "bf16 0%, f16 0%, tf32 0%" in hardware.differences(expected, expected, scale, given)
    for kind in hardware.ADDENDS:
        finite = hardware.np.isfinite(expected[kind])
        assert 0.9 < finite.mean() < 1, "some results are infinite or NaN, most are neither"


@pytest.mark.parametrize("name", hardware.RESULT.names)
def test_hardware_that_differs_is_found(modelled, name):
    given, expected, scale = modelled
    actual = expected.copy()
    if name in hardware.ADDENDS:
        actual[name][7, 3, 2] += scale[name][7, 3, 2] * 2.0**-18
    else:
        actual[name].flat[5] ^= 1
    with pytest.raises(AssertionError):
        hardware.differences(actual, expected, scale, given)


@pytest.mark.parametrize("source", ["instructions.cu", "planted.cu"])
def test_programs_compile_for_a_gpu(here, source):
    try:
        program = hardware.compiled(here, source)
    except NotRun as reason:
        pytest.skip(str(reason))
    if not torch.cuda.is_available():
        done = subprocess.run([program, "memcheck", "out"], capture_output=True, text=True)
        assert "CUDA error" in done.stdout
