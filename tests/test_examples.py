"""The demo, run briefly as a user runs it: its files and what it prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import blockops

for package in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(package)

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "examples" / "digits.py"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(blockops.__file__).parents[1]),
    "PYTHONIOENCODING": "utf-8",
    "COLUMNS": "80",
    "OMP_NUM_THREADS": "1",  # on a busy machine two threads wait for each other
}


def run_python(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *args], env=ENVIRONMENT, capture_output=True, encoding="utf-8"
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[str, Path]:
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
        "digits_quadratic.pt",
    ]
    assert (out / "digits.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert f"Plot: {out / 'digits.png'}\n" in text


@pytest.mark.parametrize(
    ("file", "layer", "prefix"),
    [
        ("digits_quadratic.pt", blockops.Quadratic(64, 10, bias=True), ""),
        ("digits_bilinear.pt", torch.nn.Bilinear(64, 64, 10), "layer."),
    ],
)
def test_demo_saves_plain_state_dicts(demo, file, layer, prefix):
    state = torch.load(demo[1] / file, weights_only=True)
    layer.load_state_dict({key.removeprefix(prefix): value for key, value in state.items()})
    assert all(parameter.isfinite().all() for parameter in layer.parameters())


def test_demo_reports_both_models(demo):
    text, _ = demo
    differences = re.findall(r"Largest difference of the losses: (\S+) ", text)
    assert len(differences) == 2 and all(float(value) <= 1e-6 for value in differences)
    accuracies = re.findall(r"Test accuracy of (\S+): (\S+)%", text)
    assert [name for name, _ in accuracies] == [
        "einsum",
        "blockops.Quadratic",
        "torch.nn.Bilinear",
        "blockops.Bilinear",
    ]
    assert all(float(percent) > 80 for _, percent in accuracies)  # two epochs; chance is 10
    for batch in (64, 1797):
        steps = re.findall(rf"{batch} +│ whole step +│ (\S+) +│ (\S+) +│ (\S+)x", text)
        assert len(steps) == 2 and all(float(number) > 0 for row in steps for number in row)


@pytest.mark.parametrize(
    ("module", "package"),
    [("matplotlib", "matplotlib"), ("rich", "rich"), ("sklearn", "scikit-learn")],
)
def test_demo_names_a_missing_package(module, package):
    code = f"import runpy, sys; sys.modules[{module!r}] = None; runpy.run_path({str(DIGITS)!r})"
    run = run_python("-c", code)
    assert run.returncode == 1
    assert "This example needs" in run.stderr and "Traceback" not in run.stderr
    assert f"pip install {package}" in run.stderr


def test_readme_example(tmp_path):
    """Pasted into a new file, it runs, and what it asserts holds."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    pasted = tmp_path / "example.py"
    pasted.write_text(code)
    run = run_python(str(pasted))
    assert run.returncode == 0, run.stderr
    assert (
        "torch.Size([32, 10]) Quadratic(in_features=64, out_features=10, bias=False)" in run.stdout
    )
