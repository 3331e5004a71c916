"""python -m gpu_check [--out DIR] [--minutes N] [check ...]    all checks, or those that are named

Writes report.json, report.md and each check's log to DIR, and says how each ended. Exit status: 0
where nothing failed, 1 where something did, 2 where there is no GPU.
"""

import argparse
import datetime
import functools
import platform
import signal
import subprocess
import sys
from pathlib import Path

from . import runner
from .base import ENVIRONMENT, ROOT
from .checks import CHECKS


def why_no_gpu() -> str | None:
    try:
        import torch
    except ModuleNotFoundError:
        return "this Python has no torch"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA in it"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    return None


def output_of(*command: str) -> str:
    """What a command prints, in a line; "unknown" where it cannot be run."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip().replace("\n", ", ")


def commit() -> str:
    changed = output_of("git", "status", "--porcelain") not in ("", "unknown")
    return output_of("git", "rev-parse", "HEAD") + (" with changes" if changed else "")


def facts() -> dict[str, str]:
    import torch

    device = torch.cuda.get_device_properties(0)
    compiler = output_of("nvcc", "--version").rpartition("release ")[2]
    return {
        "device": device.name,
        "devices": str(torch.cuda.device_count()),
        "capability": f"{device.major}.{device.minor}",
        "memory": f"{device.total_memory / 2**30:.0f} GiB",
        "driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "nvcc": compiler.partition(",")[0] or "unknown",
        "python": platform.python_version(),
        "commit": commit(),
        "begun": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def main(argv: list[str] | None = None) -> int:
    names = [check.name for check in CHECKS]
    parser = argparse.ArgumentParser(prog="python -m gpu_check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, metavar="DIR", default=ROOT / "build/gpu-check")
    parser.add_argument("--minutes", type=float, default=10, metavar="N", help="for all together")
    parser.add_argument("checks", nargs="*", metavar="check", help=f"some of {', '.join(names)}")
    options = parser.parse_args(argv)
    if unknown := set(options.checks) - set(names):
        parser.error(f"there is no check {min(unknown)!r}; there are {', '.join(names)}")
    if reason := why_no_gpu():
        print(f"gpu-check needs a CUDA device: {reason}", file=sys.stderr)
        return 2

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the check under way ends too
    out = options.out.resolve()
    outcomes = runner.run_all(
        [c for c in CHECKS if not options.checks or c.needed or c.name in options.checks],
        lambda check: [sys.executable, "-m", "gpu_check.checks", check.name, str(out)],
        out,
        facts(),
        60 * options.minutes,
        ENVIRONMENT,
        functools.partial(print, flush=True),
    )
    print(f"{runner.count(outcomes)}; {out / 'report.md'}")
    return int(any(outcome.outcome == runner.FAILED for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
