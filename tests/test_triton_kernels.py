"""The Triton kernels without a GPU: run by Triton's interpreter, compiled for two chips, and with
bugs that must be found (triton_on_cpu/__init__.py). Each part is a process of its own."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

import blockops
from blockops import _library, _triton

TESTS = Path(__file__).parent
KERNELS_KEPT = TESTS.parent / "build/triton-kernels"  # compiled, by their source
ALL = ("test_contract.py", "test_transforms.py")  # those of every backend
# ten_runs: the interpreter always gives the same bits. one_sign: it adds in NumPy's order.
# autocast: that of CPU tensors knows no Triton kernels. torch_func, forward_mode: the reference
# serves these. The others take long and show little more.
NOT_INTERPRETED = (
    "not (ten_runs or one_sign or autocast or torch_func or forward_mode or one_argument or --inf"
    " or every_subset or (three_orders and many_outputs) or (nan_and_infinity and leading)"
    " or (nan_and_infinity and outputs-nan) or (test_outputs and (two_groups or several_tiles)))"
)


class Part(NamedTuple):
    """Arguments for python -m."""

    name: str
    arguments: tuple[str, ...]
    interpreted: bool = True

    def __str__(self) -> str:
        return self.name


def selected(*files: str, of: str = "") -> tuple[str, ...]:
    """Of these files, those that the expression selects."""
    selection = f"{NOT_INTERPRETED} and ({of})" if of else NOT_INTERPRETED
    return ("pytest", *files, "-k", selection, "-q", "-p", "no:cacheprovider", "--tb=short")


PARTS = [
    Part("interpreter", selected("triton_on_cpu/check_interpreter.py")),
    Part("quadratic", selected(*ALL, of="quadratic")),
    Part("bilinear", selected(*ALL, of="bilinear")),
    Part("linear_relu_and_center", selected(*ALL, of="linear_relu or center")),
    Part("kernels", selected("triton_on_cpu/check_kernels.py")),
]
COMPILED = [
    Part(
        f"{folder}_sm_{capability}",
        ("triton_on_cpu.compiled", str(capability), folder),
        interpreted=False,
    )
    for folder in _triton.OPS
    for capability in (80, 90)
]


class Bug(NamedTuple):
    """`old`, which occurs once in a file of blockops/ops/, becomes `new`; then the first failure of
    the `test` of test_contract.py that is named must be one with these words."""

    name: str
    file: str
    old: str
    new: str
    test: str
    words: str

    def __str__(self) -> str:
        return self.name

    @property
    def part(self) -> Part:
        return Part(self.name, (*selected("test_contract.py", of=self.test), "-x"))


BUGS = [
    Bug(
        "mask_dropped",
        "linear_relu/triton_kernels.py",
        old="a_tile = tl.where(y_tile <= 0, 0.0, a_tile)",
        new="a_tile = a_tile",
        test="test_integers_are_exact and linear_relu-leading",
        words="grad_x: ",
    ),
    Bug(
        "bounds_dropped",
        "linear_relu/triton_kernels.py",
        old="in_a = in_rows[:, None] & in_sum[None, :]",
        new="in_a = (row < ROWS)[:, None] & in_sum[None, :]",
        test="test_integers_are_exact and linear_relu-leading",
        words="a read out of bounds",
    ),
    Bug(
        "nan_swallowed",
        "linear_relu/triton_kernels.py",
        old="total = tl.where(total <= 0, 0.0, total)  # NaN stays, as with torch.relu",
        new="total = tl.maximum(total, 0.0)",
        test="test_nan_and_infinity and linear_relu-ragged_tile-nan",
        words="result: NaN in other positions",
    ),
    Bug(
        "narrow_accumulator",
        "linear_relu/triton_kernels.py",
        old="total = add_product(total, a_tile, b_tile, PRECISION)",
        new="total = add_product(total, a_tile, b_tile, PRECISION).to(tl.bfloat16).to(DTYPE)",
        test="test_outputs and linear_relu and (long_sums or few_rows or many_outputs)",
        words="elements exceed",
    ),
    Bug(
        "swapped_programs",
        "bilinear/triton_khatri_rao.py",
        old="(tile % down).to(tl.int64) * ROWS\n    c0 = (tile // down % across)",
        new="(tile // across).to(tl.int64) * ROWS\n    c0 = (tile % down)",
        test="test_integers_are_exact and bilinear-two_groups",
        words="a read out of bounds",
    ),
    Bug(
        "wrong_stride",
        "bilinear/triton_khatri_rao.py",
        old="term_d.to(tl.int64) * d_stride\n    if PACKED",
        new="term_d.to(tl.int64) * c_stride\n    if PACKED",
        test="test_integers_are_exact and bilinear-ragged_tile",
        words="a read out of bounds",
    ),
    Bug(
        "pairs_beyond_the_end",
        "bilinear/triton_khatri_rao.py",
        old="if s_marks is not None:",
        new="if False:",
        test="nan_and_infinity and bilinear-ragged_tile-inf",
        words="NaN in other positions",
    ),
    Bug(
        "columns_beyond_the_end",
        "bilinear/triton_slices.py",
        old="if not EVEN:",
        new="if False:",
        test="nan_and_infinity and bilinear-ragged_tile-inf",
        words="NaN in other positions",
    ),
    Bug(
        "one_triangle",
        "bilinear/triton_outer.py",
        old="tl.store(out + mirrored, value, there & (row_i < row_j))",
        new="",
        test="test_integers_are_exact and quadratic-ragged_tile",
        words="grad_weight: ",
    ),
    Bug(
        "first_part_lost",
        "bilinear/triton_sums.py",
        old="for split in range(splits):",
        new="for split in range(1, splits):",
        test="test_integers_are_exact and quadratic-long_thin",
        words="elements differ",
    ),
    Bug(
        "pairs_of_a_block_twice",
        "bilinear/triton_operands.py",
        old="if i0 < block * BLOCK:",
        new="if i0 < (block + 1) * BLOCK:",
        test="test_integers_are_exact and quadratic-three_outputs",
        words="result: ",
    ),
    Bug(
        "tail_dropped",
        "center/triton_kernels.py",
        old="tl.minimum((part + 1) * share, tiles)):",
        new="tl.minimum((part + 1) * share, tiles - 1)):",
        test="test_outputs and center-long",
        words="result: ",
    ),
]


def plant(bug: Bug, folder: Path) -> None:
    """A copy of the package with the bug in it."""
    package = folder / "blockops"
    shutil.copytree(
        Path(blockops.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    file = package / "ops" / bug.file
    source = file.read_text()
    if source.count(bug.old) != 1:
        raise ValueError(
            f"{bug.old!r} occurs {source.count(bug.old)} times in {bug.file}, not once"
        )
    file.write_text(source.replace(bug.old, bug.new))


def run(part: Part, path: Path | None = None) -> tuple[int, str]:
    """The exit status and what was printed. path: where else blockops is."""
    folders = [path or Path(blockops.__file__).parents[1], TESTS]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "TRITON_INTERPRET": "1" if part.interpreted else "0",
        "TRITON_CACHE_DIR": str(KERNELS_KEPT),
        "BLOCKOPS_AUTOTUNE": "0",
        "OMP_NUM_THREADS": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # which takes as long as a short test
    }
    done = subprocess.run(
        [sys.executable, "-m", *part.arguments],
        cwd=TESTS,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def run_planted(bug: Bug, folder: Path) -> tuple[int, str]:
    plant(bug, folder)
    return run(bug.part, folder)


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory) -> Iterator[dict[Part | Bug, Future]]:
    """Of the parts and bugs that are selected; two run at a time."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if _library.why_missing:
        pytest.skip(_library.why_missing)
    items = [item for item in request.session.items if item.path == request.path]
    wanted = [item.callspec.params for item in items if hasattr(item, "callspec")]
    with ThreadPoolExecutor(2) as pool:
        futures = {p["part"]: pool.submit(run, p["part"]) for p in wanted if "part" in p}
        for bug in (p["bug"] for p in wanted if "bug" in p):
            futures[bug] = pool.submit(run_planted, bug, tmp_path_factory.mktemp("planted"))
        yield futures
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_interpreted(outcomes, part):
    status, text = outcomes[part].result()
    assert status == 0, text
    assert " passed" in text and " skipped" not in text, text


@pytest.mark.parametrize("part", COMPILED, ids=str)
def test_compiled(outcomes, part):
    status, text = outcomes[part].result()
    assert status == 0, text


@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_bug_is_found(outcomes, bug):
    status, text = outcomes[bug].result()
    assert status == 1 and bug.words in text, text


def test_bug_must_fit_the_source(tmp_path):
    bug = Bug("none", "center/triton_kernels.py", "no such source", "", "", "")
    with pytest.raises(ValueError, match="occurs 0 times in center/triton_kernels.py"):
        plant(bug, tmp_path)
