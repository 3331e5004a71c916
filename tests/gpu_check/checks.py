"""The checks: a table, and a function for each.

python -m gpu_check.checks NAME OUT    one of them, as the runner calls it: exit status 0, 1, or 77
                                       where it could not be run; the last line says what was seen
"""

import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from .base import LIBRARY, ROOT, TESTS, NotRun, Run, call
from .runner import STATUS_NOT_RUN, Check

# ---- programs ----


def pytest(run: Run, name: str, *selection: str) -> str:
    """Tests of blockops' own suite; in words how many passed."""
    report = run.out / f"{name}.xml"
    report.unlink(missing_ok=True)
    options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", f"--rootdir={ROOT}"]
    # Not from ROOT, whose blockops would come before the library of LIBRARY.
    call(sys.executable, "-m", "pytest", *options, *selection, cwd=run.out)
    if not report.exists():
        raise AssertionError("pytest wrote no report")
    return counted(report)


def counted(report: Path) -> str:
    """How the tests of a JUnit report ended: AssertionError where one failed, NotRun where none
    was run."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    words = f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped"
    if failed:
        names = ", ".join(case.get("name") for case in failed[:3])
        raise AssertionError(f"{words}: {names}{', ...' if len(failed) > 3 else ''}")
    if not passed:
        raise NotRun(skipped[0].find("skipped").get("message") if skipped else "there are no tests")
    return words


def tests_of(backend: str, file: str) -> Callable[[Run], str]:
    def check(run: Run) -> str:
        return pytest(run, f"{backend}_{file}", str(TESTS / file), "-k", f"{backend}_{run.device}")

    return check


def build(run: Run) -> str:
    chosen = ("TORCH_CUDA_ARCH_LIST", "BLOCKOPS_SANITIZE")  # not here
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", LIBRARY]
    status, _ = call(*command, cwd=ROOT, env=environment)
    assert status == 0, "the build failed"
    _, shown = call(sys.executable, "-m", "blockops", cwd=run.out)
    return re.search(r"^ +cuda +(kernels for .*)", shown, re.MULTILINE)[1]


def inside(run: Run) -> str:
    return pytest(
        run, "inside", *(f"{TESTS}/test_{name}.py" for name in ("cuda_build", "dispatch"))
    )


def benchmark(run: Run) -> str:
    _, options = call(sys.executable, "-m", "bench", "--help", cwd=run.out)
    if "--device" not in options:
        raise NotRun("python -m bench has no --device")
    command = [
        sys.executable,
        "-m",
        "bench",
        "--device",
        run.device,
        "--skip-compile",
        "--minutes",
        "5",
    ]
    status, _ = call(*command, "--out", run.out / "bench", cwd=run.out)
    assert status == 0, f"exit status {status}"
    return "see bench/results.md"


# ---- compute-sanitizer ----


def sanitizer(tool: str) -> Callable[[Run], str]:
    def check(run: Run) -> str:
        from . import hardware

        path = shutil.which("compute-sanitizer") or hardware.in_toolkit("compute-sanitizer")
        if path is None:
            raise NotRun("there is no compute-sanitizer")
        command = [path, "--tool", tool, "--error-exitcode", "99"]
        # A tool that finds nothing because it cannot work here must not pass.
        planted = hardware.compiled(run, "planted.cu")
        status, said = call(*command, *only_ours(tool), planted, tool, limit=60)
        if status != 99:
            lines = [line.strip("= ") for line in said.splitlines() if line.strip("= ")]
            raise NotRun(f"it does not find a planted bug here: {lines[-1] if lines else status}")
        # Each tensor then has memory of its own, and its end is the allocation's.
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        tiny = [sys.executable, "-m", "gpu_check.tiny", run.device]
        status, said = call(*command, *only_ours(tool), *tiny, env=environment)
        assert status in (0, 99), f"exit status {status}"
        assert "tiny calls: done" in said, "the calls did not end"
        errors = [line for line in said.splitlines() if "blockops::" in line]
        assert status == 0 or (tool == "initcheck" and not errors), f"{tool} found errors"
        return "no errors" if status == 0 else "errors in other libraries' kernels alone"

    return check


def only_ours(tool: str) -> list[str]:
    """Options that leave other libraries' kernels alone; initcheck must see what they write."""
    return [] if tool == "initcheck" else ["--kernel-name", "kernel_substring=blockops"]


# ---- the table ----


def work(name: str) -> Callable[[Run], str]:
    """A function of calls.py or hardware.py, imported only in the process that runs it."""

    def check(run: Run) -> str:
        from . import calls, hardware

        return getattr(calls if hasattr(calls, name) else hardware, name)(run)

    return check


TABLE: list[tuple[Check, Callable[[Run], str]]] = [
    (Check("build", "the library compiles for this GPU", 300, needed=True), build),
    (Check("inside", "every op has a CUDA kernel, and is chosen", 60), inside),
    (
        Check("native_contract", "values and gradients, integers exact", 240),
        tests_of("native", "test_contract.py"),
    ),
    (
        Check("native_transforms", "three orders of derivatives, autocast, torch.func", 120),
        tests_of("native", "test_transforms.py"),
    ),
    (
        Check("triton_contract", "values and gradients, integers exact", 300),
        tests_of("triton", "test_contract.py"),
    ),
    (
        Check("triton_transforms", "three orders of derivatives, autocast, torch.func", 120),
        tests_of("triton", "test_transforms.py"),
    ),
    (Check("gradcheck", "first and second derivatives, numerically", 90), work("gradcheck")),
    (Check("graphs", "CUDA graphs replay the bits of eager calls", 90), work("graphs")),
    (Check("side_stream", "work waits for a late producer on its stream", 60), work("side_stream")),
    (Check("ten_runs", "workloads have the same bits ten times", 90), work("ten_runs")),
    (Check("workloads", "workloads at full size against float64", 120), work("workloads")),
    (Check("long_sums", "a long batch of one sign", 60), work("long_sums")),
    (Check("tf32", "TF32 where PyTorch's switch allows it, and nowhere else", 90), work("tf32")),
    (Check("tuning", "Triton configurations are measured and chosen", 120), work("tuning")),
    (Check("far_center", "offsets past 2^31, center", 90), work("far_center")),
    (Check("far_linear_relu", "offsets past 2^31, linear_relu", 90), work("far_linear_relu")),
    (Check("far_quadratic", "offsets past 2^31, quadratic", 90), work("far_quadratic")),
    (Check("second_device", "a device that is not the current one", 60), work("second_device")),
    (
        Check("instructions", "the CPU's models of ldmatrix, mma and TF32 rounding", 120),
        work("instructions"),
    ),
    *(
        (Check(tool, f"compute-sanitizer's {tool} on a few tiny calls", 90), sanitizer(tool))
        for tool in ("memcheck", "racecheck", "initcheck", "synccheck")
    ),
    (Check("benchmark", "python -m bench --device cuda", 600), benchmark),
]
CHECKS = [check for check, _ in TABLE]


def main(name: str, out: str, device: str = "cuda") -> int:
    (function,) = [function for check, function in TABLE if check.name == name]
    try:
        print(function(Run(device, Path(out))))
    except NotRun as reason:
        print(reason)
        return STATUS_NOT_RUN
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        print(str(error).replace("\n", " ") or type(error).__name__)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
