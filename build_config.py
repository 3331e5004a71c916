"""What the build decides, apart from setup.py so that tests can call it without building."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

INSTALL = "pip install torch ninja 'setuptools>=77' && pip install --no-build-isolation ."
SANITIZERS = ("address", "undefined")
GIB = 2**30
SETUPTOOLS = 77  # as pyproject.toml requires


def fail(reason: str) -> None:
    """Stop the build with one sentence."""
    sys.exit(f"blockops: {reason}")


def check_setuptools(version: str) -> None:
    """Stop where pyproject.toml's licence is not understood: new environments may be that old."""
    if int(version.partition(".")[0]) < SETUPTOOLS:
        fail(
            f"building needs setuptools {SETUPTOOLS} or newer, this is {version}; run "
            f"`pip install 'setuptools>={SETUPTOOLS}'`"
        )


def compiler() -> str:
    """The C++ compiler (CXX, else c++) as the first line of its --version."""
    command = os.environ.get("CXX", "c++")
    try:
        shown = subprocess.run([*shlex.split(command), "--version"], capture_output=True, text=True)
    except FileNotFoundError:
        fail(
            f"no C++ compiler ({command} is not on the PATH): install one, for instance with "
            "`apt-get install g++`, or name it in CXX"
        )
    return shown.stdout.partition("\n")[0]


def sanitizer() -> str | None:
    """BLOCKOPS_SANITIZE: which sanitizer goes into the library, None for the ordinary one."""
    name = os.environ.get("BLOCKOPS_SANITIZE") or None
    if name not in (None, *SANITIZERS):
        fail(f"BLOCKOPS_SANITIZE must be one of {', '.join(SANITIZERS)}, got {name!r}")
    return name


def find_cuda_home(default: str = "/usr/local/cuda") -> str | None:
    """The first CUDA toolkit that has both the compiler and the headers."""
    candidates = [os.environ.get("CUDA_HOME")]
    if nvcc := shutil.which("nvcc"):
        # An nvcc on the PATH may be a wrapper script or a link, so nvcc itself is asked first.
        plan = subprocess.run(
            [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True
        )
        if top := re.search(r"^#\$ TOP=(.*)$", plan.stdout + plan.stderr, re.MULTILINE):
            candidates.append(os.path.realpath(top[1].strip()))
        candidates.append(str(Path(nvcc).resolve().parents[1]))
    candidates.append(default)
    for home in filter(None, candidates):
        if Path(home, "bin/nvcc").exists() and Path(home, "include/cuda_runtime.h").exists():
            return home
    return None


def why_no_cuda(
    mode: str, torch_version: str, torch_cuda: str | None, cuda_home: str | None
) -> str | None:
    """Why the library gets no CUDA kernels, None when it does; `mode` is BLOCKOPS_CUDA."""
    if mode not in ("auto", "0", "1"):
        fail(f"BLOCKOPS_CUDA must be auto, 0 or 1, got {mode!r}")
    if mode == "0":
        return "it was built with BLOCKOPS_CUDA=0"
    if torch_cuda is None:
        reason = f"torch {torch_version} has no CUDA in it"
        if mode == "1":
            fail(f"BLOCKOPS_CUDA=1, but {reason}")
        return reason
    if cuda_home is None:
        # An error and not a warning, because pip hides what a successful build prints.
        fail(
            f"torch {torch_version} wants CUDA {torch_cuda}, but no toolkit with bin/nvcc and "
            "include/cuda_runtime.h was found: set CUDA_HOME, or set BLOCKOPS_CUDA=0 to build for "
            "the CPU only"
        )
    return None


def arch_list(requested: str, capabilities: Iterable[tuple[int, int]]) -> list[str]:
    """The GPU architectures: TORCH_CUDA_ARCH_LIST, else the visible GPUs, else a default pair."""
    if requested:
        return requested.replace(";", " ").split()
    # 9.0a holds the Hopper instructions (wgmma, TMA) that plain 9.0 leaves out.
    visible = ["9.0a" if c == (9, 0) else f"{c[0]}.{c[1]}" for c in sorted(set(capabilities))]
    return visible or ["8.0", "9.0a"]


def available_memory() -> int | None:
    """Bytes of memory that can be had without swapping; None where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    return int(re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())[1]) * 1024


def max_jobs(cores: int, memory: int | None) -> int:
    """How many files to compile at once: one a core, and 2.5 GiB of memory for each."""
    if memory is None:
        return cores
    return max(1, min(cores, int(memory / (2.5 * GIB))))


def sources(root: Path, cuda: bool) -> list[str]:
    """The files to compile, relative to `root`; *_cuda.cpp and *.cu only with CUDA."""
    found = [p for p in root.glob("csrc/*/*.cpp") if cuda or not p.stem.endswith("_cuda")]
    if cuda:
        found += root.glob("csrc/*/*.cu")
    return ["csrc/module.cpp", *sorted(str(p.relative_to(root)) for p in found)]


def distinct_objects(sources: list[str], objects: list[str]) -> list[str]:
    """The objects' names with x.cu's apart from x.cpp's: side by side, both would be x.o."""
    return [
        obj.removesuffix(".o") + ".cu.o" if source.endswith(".cu") else obj
        for source, obj in zip(sources, objects, strict=True)
    ]


def uses_openmp(compiler_version: str) -> bool:
    """Whether at::parallel_for, a header template, is compiled to run in parallel.

    Only GCC on Linux: clang's OpenMP calls another runtime than the one torch brings.
    """
    return sys.platform == "linux" and "clang" not in compiler_version


def cxx_flags(openmp: bool, sanitize: str | None) -> tuple[list[str], list[str]]:
    """The flags for compiling C++ and for linking. Never -std: torch adds the one it needs."""
    compiling, linking = ["-Wall", "-Wextra", "-fvisibility=hidden"], []
    if openmp:
        # Not when linking: torch has loaded its own libgomp, and a second one means a second pool
        # of threads.
        compiling.append("-fopenmp")
    if sanitize is None:
        compiling += ["-O3", "-g0"]  # Python's own flags bring -g: ten times the library's size
    else:
        linking.append(f"-fsanitize={sanitize}")
        # With -g1, lines and names alone, and no copies of functions a file compiles in a quarter
        # to two thirds of the time.
        compiling += ["-O1", "-g1", "-fno-omit-frame-pointer", "-DBLOCKOPS_NO_COPIES", *linking]
    if sanitize == "undefined":
        # Python's own flags bring -fwrapv, under which signed overflow is not an error.
        compiling += ["-fno-sanitize-recover=undefined", "-fno-wrapv"]
        compiling.append("-DBLOCKOPS_WIDE_REGISTERS")  # the address sanitizer has the narrow ones
    return compiling, linking


def nvcc_flags() -> list[str]:
    """The flags for nvcc. None may contain "arch": torch would then drop every architecture."""
    # torch switches off the operators of half and bfloat16; kernels want them back.
    hidden = ("HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS")
    return ["-O3", "-lineinfo", *(f"-U__CUDA_NO_{name}__" for name in hidden)]
