"""The CUDA kernels compiled by g++ and run on the CPU (cpp/README.md), and bugs to be found there.

Each program tests/cpp/test_*.cc is compiled in three builds. They are kept in build/kernels-on-cpu/
until the preprocessed source, the compiler or its flags change.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

import build_config

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "kernels-on-cpu"
COMPILER = shlex.split(os.environ.get("CXX", "g++"))
HEADER = "include/cuda_bf16.h"  # of the CUDA toolkit; the others that g++ needs are beside it
PROGRAMS = sorted(path.stem for path in (ROOT / "tests/cpp").glob("test_*.cc"))
FLAGS = ("-Icsrc", "-Itests/cpp")
ENVIRONMENT = os.environ | {
    "ASAN_OPTIONS": "detect_leaks=0",
    "TSAN_OPTIONS": "halt_on_error=1 atexit_sleep_ms=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


class Build(NamedTuple):
    """flags for the compiler, arguments for the program. Numbers are schedules, 0 in order."""

    flags: tuple[str, ...]
    arguments: tuple[str, ...]


WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
SANITIZER = ("-std=c++17", "-O1", "-g1", "-fno-sanitize-recover")
BUILDS = {
    "plain": Build(("-std=c++20", "-O2", *WARNINGS), ("0", "1", "2")),
    "address": Build((*SANITIZER, "-fsanitize=address,undefined"), ("--quick", "0")),
    "thread": Build((*SANITIZER, "-fsanitize=thread"), ("--quick", "0", "1")),
}

# What a report says of a bug.
WRONG_VALUE = "FAILED: y: element"
NAN = "nan, not"
OFF = ": off by "
DEADLOCK = "FAILED: deadlock: "
RACE = "ThreadSanitizer: data race"
BEYOND = "AddressSanitizer: heap-buffer-overflow"


class Bug(NamedTuple):
    """`old`, which occurs `times` times in `file`, becomes `new`; then `build` must report `words`
    in those tests of `program` whose names contain `test`."""

    program: str
    name: str
    file: str
    old: str
    new: str
    build: str
    words: str
    test: str = ""
    times: int = 1


BUGS = [
    Bug(
        "test_samples",
        "wrong_lane",
        "tests/cpp/sample_kernels.cuh",
        old="values[threadIdx.x ^ 31]",
        new="values[threadIdx.x ^ 30]",
        build="plain",
        words=WRONG_VALUE,
        test="reverse_lanes",
    ),
    Bug(
        "test_bilinear",
        "no_barrier",
        "csrc/bilinear/slices.cuh",
        old="__syncthreads();  // this stage is here",
        new="// this stage is here",
        build="thread",
        words=RACE,
        test="bfloat16",
    ),
    Bug(
        "test_bilinear",
        "no_wait",
        "csrc/bilinear/slices.cuh",
        old="copy_async_wait<kRing - 2>();",
        new="copy_async_wait<kRing - 1>();",
        build="plain",
        words="ends before its asynchronous copies are waited for",
        test="bfloat16",
    ),
    Bug(
        "test_bilinear",
        "zeros_around_a_tile_times_infinity",
        "csrc/bilinear/slices.cuh",
        old="if (c0 + col < p.C) dot +=",
        new="dot +=",
        build="plain",
        words=NAN,
        test="nan_and_infinity",
    ),
    Bug(
        "test_bilinear",
        "one_triangle",
        "csrc/bilinear/outer.cuh",
        old="if (o.symmetric && i < j) write(j, i, k, sums[r][c]);",
        new="",
        build="plain",
        words=NAN,
        test="float32",
    ),
    Bug(
        "test_bilinear",
        "long_chain",
        "csrc/bilinear/outer.cuh",
        old="if (++in_product == kFold || b0 + kDepth >= end) {",
        new="if (b0 + kDepth >= end) {",
        build="plain",
        words=OFF,
        test="long_batch",
    ),
    Bug(
        "test_bilinear",
        "pairs_of_a_block_twice",
        "csrc/bilinear/bilinear.cuh",
        old="p.block == 0 || i / p.block < j / p.block;",
        new="p.block == 0 || i / p.block <= j / p.block;",
        build="plain",
        words=OFF,
        test="float32",
    ),
    Bug(
        "test_linear_relu",
        "nan_becomes_zero",
        "csrc/linear_relu/linear_relu.cuh",
        old="return z <= 0 ? S(0) : z;",
        new="return z > 0 ? z : S(0);",
        build="plain",
        words="not nan",
        test="special_values",
    ),
    Bug(
        "test_linear_relu",
        "mask_dropped",
        "csrc/linear_relu/linear_relu.cuh",
        old="return widen(y) <= 0 ? T{} : grad;",
        new="return grad;",
        build="plain",
        words=OFF,
        test="exact_integers",
    ),
    Bug(
        "test_linear_relu",
        "read_beyond",
        "csrc/linear_relu/linear_relu.cuh",
        old="weight[min(output + k, p.m - 1) * packs + i]",
        new="weight[(output + k) * packs + i]",
        build="address",
        words=BEYOND,
        test="exact_integers",
    ),
    Bug(
        "test_linear_relu",
        "part_of_the_rows_lost",
        "csrc/linear_relu/linear_relu_launch.h",
        old="count = ceil_div(B, rows);",
        new="count = B / rows;",
        build="plain",
        words=NAN,
        test="exact_integers",
    ),
    Bug(
        "test_center",
        "no_grid_sync",
        "csrc/center/center.cuh",
        old="grid_sync();",
        new="__syncthreads();",
        build="thread",
        words=RACE,
        test="float_by",
    ),
    Bug(
        "test_center",
        "tail_dropped",
        "csrc/center/center.cuh",
        old="return after < begin + size ? after : -1;",
        new="return -1;",
        build="plain",
        words=OFF,
        test="float_by",
    ),
    Bug(
        "test_center",
        "offset_in_32_bits",
        "csrc/center/center.cuh",
        old="offset = run.first +",
        new="offset = int(run.first) +",
        build="plain",
        words="not at vector 0",
        test="offsets_beyond",
    ),
]

# The bugs of the sample kernels, each a test that runs by its full name only: which builds find
# them, and by what.
SAMPLE_BUGS = {
    "product_without_barrier": {"plain": NAN, "thread": RACE},
    "product_without_barrier_before_reuse": {"plain": NAN, "thread": RACE},
    "product_without_wait": {"plain": NAN},
    "product_with_swapped_registers": {"plain": WRONG_VALUE},
    "product_with_wrong_tail": {"plain": WRONG_VALUE, "address": BEYOND},
    "product_with_store_beyond": {"plain": "a write next to a buffer", "address": BEYOND},
    "product_with_misaligned_copy": {"plain": "the source is not aligned to 16 bytes"},
    "row_sums_without_barrier": {"plain": NAN, "thread": RACE},
    "row_sums_with_wrong_mask": {"plain": "other lanes came with mask"},
    "row_sums_with_divergent_barrier": {"plain": DEADLOCK},
    "row_sums_beyond_shared_memory": {
        "plain": "a write after the end of shared memory",
        "address": BEYOND,
    },
    "row_sums_into_one_place": {"thread": RACE},
    "subtract_sum_without_grid_sync": {"plain": NAN, "thread": RACE},
    "subtract_sum_with_missing_block": {"plain": DEADLOCK},
    "reverse_with_wrong_tail": {"plain": NAN},
    "reverse_with_store_beyond": {"plain": "a write next to a buffer", "address": BEYOND},
    "reverse_misaligned": {"address": "misaligned address"},
    "reverse_lanes_without_syncwarp": {"thread": RACE},
}


class Recipe(NamedTuple):
    program: str
    build: str
    bug: Bug | None = None

    def __str__(self) -> str:
        name = f"{self.program}-{self.build}"
        return f"{name}-{self.bug.name}" if self.bug else name


# ---- compiling ----


def include_folder() -> Path | None:
    """Where the CUDA toolkit has its headers: vector types, bfloat16 and float16 for g++."""
    homes = (os.environ.get("CUDA_HOME"), build_config.find_cuda_home(), "/usr/local/cuda")
    found = [Path(home, HEADER).parent for home in homes if home and Path(home, HEADER).exists()]
    return found[0] if found else None


def compiler_version() -> str:
    return subprocess.run([*COMPILER, "--version"], capture_output=True, text=True).stdout


def why_not() -> str | None:
    """Why kernels cannot run on this CPU; None when they can."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "kernels run on the CPU under Linux on x86-64 only"
    if shutil.which(COMPILER[0]) is None or "Free Software" not in compiler_version():
        return f"kernels are compiled for the CPU by g++, and {COMPILER[0]} is none: set CXX"
    if include_folder() is None:
        return f"{HEADER} of the CUDA toolkit is neither in CUDA_HOME nor in /usr/local/cuda"
    return None


def plant(bug: Bug, root: Path) -> None:
    """Copies what programs are compiled from to `root`, with the bug."""
    for folder in ("csrc", "tests/cpp"):
        shutil.copytree(ROOT / folder, root / folder)
    path = root / bug.file
    text = path.read_text()
    found = text.count(bug.old)
    if found != bug.times:
        raise ValueError(f"{bug.old!r} occurs {found} times in {bug.file}, not {bug.times}")
    path.write_text(text.replace(bug.old, bug.new))


def compile_program(recipe: Recipe, scratch: Path) -> Path:
    """The path of the program, compiled unless the one that is kept has the same source."""
    root = ROOT
    flags = [*FLAGS, *BUILDS[recipe.build].flags, "-isystem", str(include_folder())]
    if recipe.bug:
        root = scratch / str(recipe)
        plant(recipe.bug, root)
        flags.append("-w")  # a bug may leave something unused
    command = [*COMPILER, *flags, f"tests/cpp/{recipe.program}.cc"]

    def compiled(*arguments: str) -> bytes:
        # From the root, so that no path in the source differs between a copy and the original.
        run = subprocess.run([*command, *arguments], cwd=root, capture_output=True)
        assert run.returncode == 0, run.stderr.decode()
        return run.stdout

    key = hashlib.sha256(repr((compiler_version(), command)).encode() + compiled("-E"))
    program, key_file = KEPT / str(recipe), KEPT / f"{recipe}.key"
    if not program.exists() or not key_file.exists() or key_file.read_text() != key.hexdigest():
        KEPT.mkdir(parents=True, exist_ok=True)
        new = KEPT / f"{recipe}.{os.getpid()}"
        compiled("-o", str(new))
        new.replace(program)
        key_file.write_text(key.hexdigest())
    return program


class Made(NamedTuple):
    """A program, and what came of its run."""

    program: Path
    code: int
    text: str


def make(recipe: Recipe, scratch: Path) -> Made:
    program = compile_program(recipe, scratch)
    test = recipe.bug.test if recipe.bug else ""
    return Made(program, *run(program, *BUILDS[recipe.build].arguments, *filter(None, [test])))


@pytest.fixture(scope="module")
def made(request, tmp_path_factory) -> Iterator[dict[Recipe, Future]]:
    """The programs of the selected tests; two are compiled and run at a time."""
    if reason := why_not():
        pytest.skip(reason)
    items = [item for item in request.session.items if item.path == request.path]
    recipes = [item.callspec.params["recipe"] for item in items if hasattr(item, "callspec")]
    scratch = tmp_path_factory.mktemp("planted")
    with ThreadPoolExecutor(2) as pool:
        yield {r: pool.submit(make, r, scratch) for r in dict.fromkeys(recipes)}
        pool.shutdown(cancel_futures=True)


def run(program: Path, *arguments: str) -> tuple[int, str]:
    """The exit code and all that was printed."""

    def result(*command: str) -> tuple[int, str]:
        run = subprocess.run(
            command,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        return run.returncode, run.stdout

    code, text = result(str(program), *arguments)
    if "unexpected memory mapping" in text:  # ThreadSanitizer wants addresses that are not random
        code, text = result("setarch", "-R", str(program), *arguments)
    return code, text


# ---- tests ----


@pytest.mark.parametrize(
    "recipe", [Recipe(program, build) for program in PROGRAMS for build in BUILDS], ids=str
)
def test_program(made, recipe):
    result = made[recipe].result()
    assert result.code == 0, result.text


@pytest.mark.parametrize("recipe", [Recipe(bug.program, bug.build, bug) for bug in BUGS], ids=str)
def test_bug_is_found(made, recipe):
    result = made[recipe].result()
    assert result.code != 0 and recipe.bug.words in result.text, result.text


@pytest.mark.parametrize(
    ("recipe", "name", "words"),
    [
        pytest.param(Recipe("test_samples", build), name, words, id=f"{name}-{build}")
        for name, found in SAMPLE_BUGS.items()
        for build, words in found.items()
    ],
)
def test_bug_in_sample_is_found(made, recipe, name, words):
    code, text = run(made[recipe].result().program, *BUILDS[recipe.build].arguments, name)
    assert code != 0 and words in text, text


def test_bug_must_fit_the_source(tmp_path):
    with pytest.raises(ValueError, match="occurs 0 times in tests/cpp/check.h, not 1"):
        plant(BUGS[0]._replace(file="tests/cpp/check.h"), tmp_path)
