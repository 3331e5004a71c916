"""What all checks begin from."""

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
# Built for this GPU alone, apart from the library that is in use.
LIBRARY = ROOT / "build/gpu-check-library"
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(
        [str(LIBRARY), str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", "")]
    ),
    "PYTHONUNBUFFERED": "1",
    "BLOCKOPS_CUDA": "1",
    "BLOCKOPS_AUTOTUNE": "0",  # but for one check, configurations are the estimated ones
}


class NotRun(Exception):
    """Why a check cannot be run here."""


class Run(NamedTuple):
    """Where a check runs. device: "cuda", or "cpu" to try the check itself, with little work."""

    device: str
    out: Path


def call(*command: str | Path, limit: float | None = None, **options) -> tuple[int, str]:
    """The exit status of a program and what it prints, which goes to this check's log too."""
    print("$", *command)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
    try:
        done = subprocess.run([str(part) for part in command], timeout=limit, **options)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"{command[0]} was still running after {limit} s") from error
    print(done.stdout, end="" if done.stdout.endswith("\n") else "\n")
    return done.returncode, done.stdout
