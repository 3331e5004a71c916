"""The examples, run briefly as a user runs them: their files and what they print."""

import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import blockops

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "examples" / "digits.py"
TOUR = ROOT / "examples" / "tour.py"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(blockops.__file__).parents[1]),
    "PYTHONIOENCODING": "utf-8",
    "COLUMNS": "80",
    "OMP_NUM_THREADS": "1",  # on a busy machine two threads wait for each other
}
MODELS = (
    ("einsum", "blockops.Quadratic"),
    ("torch.nn.Bilinear", "blockops.Bilinear"),
    ("stock MLP", "blockops MLP"),
)
LOSSES_WITHIN = (1e-6, 1e-6, 2e-4)


def run_python(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *args], env=ENVIRONMENT, capture_output=True, encoding="utf-8"
    )


# ---- digits.py ----


@pytest.fixture(scope="module")
def demo_packages() -> None:
    for package in ("matplotlib", "rich", "sklearn"):
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def demo(demo_packages, tmp_path_factory) -> tuple[str, Path]:
    """What `digits.py --smoke` prints, and the folder of its files."""
    out = tmp_path_factory.mktemp("demo") / "made" / "by the demo"
    run = run_python(str(DIGITS), "--smoke", "--out", str(out))
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout, out


def test_demo_writes_its_files(demo):
    text, out = demo
    assert sorted(file.name for file in out.iterdir()) == [
        "digits.png",
        "digits_bilinear.pt",
        "digits_mlp.pt",
        "digits_quadratic.pt",
    ]
    assert (out / "digits.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert f"Plot: {out / 'digits.png'}\n" in text


def stock_mlp() -> torch.nn.Module:
    return torch.nn.ModuleDict(
        {"hidden": torch.nn.Linear(64, 1024), "output": torch.nn.Linear(1024, 10)}
    )


@pytest.mark.parametrize(
    ("file", "layer", "prefix"),
    [
        ("digits_quadratic.pt", blockops.Quadratic(64, 10, bias=True), ""),
        ("digits_bilinear.pt", torch.nn.Bilinear(64, 64, 10), "layer."),
        ("digits_mlp.pt", stock_mlp(), ""),
    ],
)
def test_demo_saves_plain_state_dicts(demo, file, layer, prefix):
    state = torch.load(demo[1] / file, weights_only=True)
    layer.load_state_dict({key.removeprefix(prefix): value for key, value in state.items()})
    assert all(parameter.isfinite().all() for parameter in layer.parameters())


def test_demo_reports_both_models_of_each_part(demo):
    text, _ = demo
    for stock, ours in MODELS:
        assert f" {stock} against {ours} " in text
    differences = re.findall(r"Largest difference of the losses: (\S+) \(allowed: (\S+)\)", text)
    assert [float(allowed) for _, allowed in differences] == list(LOSSES_WITHIN)
    assert all(float(value) <= float(allowed) for value, allowed in differences)
    accuracies = re.findall(r"Test accuracy of (.+): (\S+)%", text)
    assert [name for name, _ in accuracies] == [name for names in MODELS for name in names]
    assert all(float(percent) > 80 for _, percent in accuracies)  # two epochs; chance is 10
    for batch in (64, 1797):
        steps = re.findall(rf"{batch} +│ whole step +│ (\S+) +│ (\S+) +│ (\S+)x", text)
        assert len(steps) == 3 and all(float(number) > 0 for row in steps for number in row)


@pytest.mark.parametrize(
    ("module", "package"),
    [("matplotlib", "matplotlib"), ("rich", "rich"), ("sklearn", "scikit-learn")],
)
def test_demo_names_a_missing_package(demo_packages, module, package):
    code = f"import runpy, sys; sys.modules[{module!r}] = None; runpy.run_path({str(DIGITS)!r})"
    run = run_python("-c", code)
    assert run.returncode == 1
    assert "This example needs" in run.stderr and "Traceback" not in run.stderr
    assert f"pip install {package}" in run.stderr


# ---- tour.py ----

TITLES = [
    "Blocks, and blocks in blocks",
    "Constants, a layer used twice, control flow",
    "Parallel and Repeat",
    "Parameters by index, by name and through nesting",
    "Initial values",
    "A shared layer",
    "Lazy layers",
    "Layers and their formulas",
    "Saving and loading",
    "Devices",
    "One large product against many small ones",
]


@pytest.fixture(scope="module")
def tour() -> str:
    """What tour.py prints."""
    run = run_python(str(TOUR))
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_tour_has_its_sections_in_order_and_claims_in_each(tour):
    parts = re.split(r"\n(\d+)\. (.+)\n-+\n", tour)[1:]
    numbers, titles, texts = parts[::3], parts[1::3], parts[2::3]
    assert list(map(int, numbers)) == list(range(1, 1 + len(TITLES)))
    assert titles == TITLES
    assert all(text.count("  ok  ") >= 2 for text in texts)
    assert "Every claim held." in texts[-1]


@pytest.mark.parametrize(
    ("pattern", "holds"),
    [
        (r"nest: (\d+) parameters", lambda n: n == 12238),
        (
            r"halved (\d+) times, from a sum of absolute values of (\S+) to (\S+),",
            lambda n, before, after: abs(before / 2**n - after) < 1e-3 and 0.5 < after <= 1,
        ),
        (r"(\S+)% zeros, (\S+)% negative", lambda a, b: abs(a - 50) < 1 and abs(b - 25) < 1),
        (r"size from (\S+) to (\S+), uniform", lambda low, high: 5 <= low < high <= 10),
        (
            r"one element: (\S+) by its first use, (\S+) by its second; (\S+) where it is shared",
            lambda one, two, both: one + two == both,
        ),
        (r"Parseval: (\S+) is the power of X, (\S+) that of x", lambda a, b: a == b > 0),
        (r"layer the mean is (\S+)", lambda mean: abs(mean) < 1e-7),
        (r"GPUs here: (\d+);", lambda count: count == torch.cuda.device_count()),
        (
            r"(\S+) ms for the large one, (\S+) ms for the small ones: (\S+)x",
            lambda large, small, ratio: math.isclose(small / large, ratio, rel_tol=0.1),
        ),
    ],
)
def test_tour_prints_what_it_checked(tour, pattern, holds):
    numbers = re.search(pattern, " ".join(tour.split())).groups()
    assert holds(*map(float, numbers)), numbers


def test_tour_shows_the_errors(tour):
    text = " ".join(tour.split())
    for message in (
        "linear_relu: weight must be (m, n) with n = x.size(-1) = 19, got (32, 20)",
        "Repeat: blocks[0] (Linear) must keep its input's shape (2, 4), got (2, 3)",
        "linear_relu: weight must be on x's device meta, got ",
    ):
        assert message in text


quadratic, bilinear = blockops.quadratic, blockops.bilinear
fill = blockops.init.two_sided_uniform_


@pytest.mark.parametrize(
    ("broken", "wrong", "claim"),
    [
        ("ops.linear_relu.module.linear_relu", torch.nn.functional.linear, "it is relu(x W1^T"),
        # The same value, another gradient.
        ("quadratic", lambda x, w: quadratic(x, w) + (x - x.detach()).sum(), "quadratic: y_k ="),
        ("bilinear", lambda *args: bilinear(*args) * 1.001, "bilinear: y_k ="),
        ("linear_relu", lambda x, w, bias: (x @ w.T).relu() + bias, "so y = sum(z)"),
        ("Centered.forward", lambda self, x: x - x.mean(), "of rows: x - mean(x)"),
        ("FourierCoefficients.forward", lambda self, x: torch.fft.rfft(x), "Fourier: X_k ="),
        (
            "Parallel.forward",
            lambda self, x: torch.cat([block(x) for block in reversed(self.blocks)], 1),
            "Parallel(f, g)",
        ),
        ("Repeat._residual", lambda self, x: self._sequential(x), 'combine="residual"'),
        ("init.two_sided_uniform_", lambda tensor: fill(tensor, sparsity=0.45), "% zeros"),
        ("init.two_sided_uniform_", lambda tensor: fill(tensor, low=4.0), "what is not 0"),
        ("LazyLinearReLU.cls_to_become", torch.nn.Linear, "the layers became"),
        ("try_gpu", lambda i=0: torch.device("meta"), "try_gpu() is meta"),
        ("try_all_gpus", lambda: [], "try_all_gpus() has"),
    ],
    ids=lambda value: value if isinstance(value, str) else "wrong",
)
def test_tour_stops_where_a_claim_fails(monkeypatch, broken, wrong, claim):
    """One function of blockops is wrong: the sentence that it breaks becomes the exit status."""
    monkeypatch.setattr(f"blockops.{broken}", wrong)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOUR), run_name="__main__")
    assert stopped.value.code.startswith("This does not hold: ")
    assert claim in stopped.value.code


def test_tour_exits_with_1_where_a_claim_fails():
    code = (
        "import runpy, blockops; blockops.Centered.forward = lambda self, x: x; "
        f"runpy.run_path({str(TOUR)!r}, run_name='__main__')"
    )
    run = run_python("-c", code)
    assert run.returncode == 1
    assert "This does not hold: centered: " in run.stderr and "Traceback" not in run.stderr
    assert "Every claim held" not in run.stdout


# ---- README.md ----


def test_readme_example(tmp_path):
    """Pasted into a new file, it runs, and what it asserts holds."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    for layer in ("Bilinear", "LinearReLU", "Centered", "Quadratic"):
        assert f"blockops.{layer}(" in code
    pasted = tmp_path / "example.py"
    pasted.write_text(code)
    run = run_python(str(pasted))
    assert run.returncode == 0, run.stderr
    assert (
        "torch.Size([32, 10]) Quadratic(in_features=64, out_features=10, bias=False)" in run.stdout
    )
