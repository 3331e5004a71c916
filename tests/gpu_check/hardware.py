"""Checks below the ops: the CPU's models of a GPU's instructions (tests/cpp/cuda_on_cpu.h) against
the GPU; and the compiling of the small programs in this folder."""

import shutil

import numpy as np

import build_config

from .base import ROOT, NotRun, Run, call

SAMPLES = 512
# Addends of one product, of 16 and 8 pairs and the sum before it: tensor cores cut each off where
# the largest one ends, and the model rounds after each.
ADDENDS = {"bf16": 17, "f16": 17, "tf32": 9}
# As instructions.cu has them.
SAMPLE = np.dtype(
    [("matrices", "u4", 128), ("rows", "u4", 32), ("x", "u4", 32), ("d", "u4", (32, 4))]
    + [
        (f"{kind}_{operand}", "u4", (32, words))
        for kind in ADDENDS
        for operand, words in (("a", 4), ("b", 2))
    ]
)
RESULT = np.dtype(
    [("plain", "u4", (32, 4)), ("transposed", "u4", (32, 4)), ("rounded", "u4", 32)]
    + [(kind, "f4", (32, 4)) for kind in ADDENDS]
)


def in_toolkit(name: str) -> str | None:
    home = build_config.find_cuda_home()
    return home and shutil.which(name, path=f"{home}/bin:{home}/compute-sanitizer")


def compiled(run: Run, source: str, for_gpu: bool = True) -> str:
    """A program of this folder: for the GPU by nvcc, or for the CPU by g++."""
    path = ROOT / "tests/gpu_check" / source
    program = run.out / f"{path.stem}-{'gpu' if for_gpu else 'cpu'}"
    options = ["-std=c++17", "-O2", f"-I{ROOT / 'csrc'}", "-o", program, path]
    home = build_config.find_cuda_home()
    if home is None:
        raise NotRun("there is no CUDA toolkit")
    if for_gpu:
        architecture = "native" if run.device == "cuda" else "sm_80"
        status, _ = call(f"{home}/bin/nvcc", f"-arch={architecture}", *options)
    else:
        headers = ["-isystem", f"{home}/include", f"-I{ROOT / 'tests/cpp'}", "-Wno-unknown-pragmas"]
        status, _ = call("g++", "-x", "c++", *headers, *options)
    assert status == 0, f"{source} does not compile"
    return str(program)


def floats(random: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Random bits of every sign and fraction with exponents near 0, as 32-bit words; of bf16 and
    f16 two numbers each. Some are 0, infinite or NaN."""
    bits, fraction, bias = {"bf16": (16, 7, 127), "f16": (16, 10, 15), "tf32": (32, 23, 127)}[kind]
    size = (*shape, 32 // bits)
    low, high = (bias - 6, bias + 7) if kind != "tf32" else (bias - 12, bias + 13)
    values = random.integers(0, 2, size, "u4") << (bits - 1)
    values |= random.integers(low, high, size, "u4") << fraction
    values |= random.integers(0, 1 << fraction, size, "u4")
    special = random.random(size) < 0.0005
    infinity = (1 << (bits - 1)) - (1 << fraction)
    specials = np.array([0, 1 << (bits - 1), infinity, infinity | 1 << (bits - 1), infinity + 1])
    values[special] = random.choice(specials, special.sum())
    return values[..., 0] if bits == 32 else values[..., 0] | values[..., 1] << 16


def samples() -> np.ndarray:
    random = np.random.default_rng(0)
    made = np.zeros(SAMPLES, SAMPLE)
    for name in ("matrices", "x"):
        made[name] = random.integers(0, 1 << 32, made[name].shape, "u4")
    made["rows"] = random.integers(0, 32, made["rows"].shape)
    made["d"] = floats(random, made["d"].shape, "tf32")
    for name in SAMPLE.names[4:]:
        made[name] = floats(random, made[name].shape, name.partition("_")[0])
    return made


def absolute(given: np.ndarray) -> np.ndarray:
    """The same samples without signs: products of these are the scales of errors."""
    made = given.copy()
    for name in SAMPLE.names[3:]:
        made[name] &= 0x7FFFFFFF if name == "d" or name.startswith("tf32") else 0x7FFF7FFF
    return made


def results(run: Run, program: str, given: np.ndarray) -> np.ndarray:
    here, there = run.out / "samples", run.out / "results"
    given.tofile(here)
    status, said = call(program, here, there)
    assert status == 0, said
    return np.fromfile(there, RESULT)


def instructions(run: Run) -> str:
    given = samples()
    model = compiled(run, "instructions.cu", for_gpu=False)
    expected, scale = results(run, model, given), results(run, model, absolute(given))
    hardware = model if run.device == "cpu" else compiled(run, "instructions.cu")
    actual = results(run, hardware, given)
    return differences(actual, expected, scale, given)


def differences(actual, expected, scale, given) -> str:
    """AssertionError where the hardware's results are not the model's."""
    for name in ("plain", "transposed"):
        assert (actual[name] == expected[name]).all(), f"ldmatrix, {name}: other bits"
    numbers = ~np.isnan(given["x"].view("f4"))
    rounded = actual["rounded"].view("f4")
    assert (np.isnan(rounded) == ~numbers).all(), "rounding to TF32: NaN elsewhere"
    assert (actual["rounded"] == expected["rounded"])[numbers].all(), "rounding to TF32: other bits"
    worst = {}
    for kind, addends in ADDENDS.items():
        value, wanted = actual[kind].astype("f8"), expected[kind].astype("f8")
        finite = np.isfinite(wanted)
        assert (np.isnan(value) == np.isnan(wanted)).all(), f"mma, {kind}: NaN elsewhere"
        assert (value == wanted)[np.isinf(wanted)].all(), f"mma, {kind}: Inf elsewhere"
        assert np.isfinite(value)[finite].all(), f"mma, {kind}: Inf elsewhere"
        error = np.abs(value[finite] - wanted[finite]) / scale[kind][finite]
        worst[kind] = error.max() / (addends * 2.0**-23)
        assert worst[kind] <= 1, f"mma, {kind}: {worst[kind]:.2g} times the error of its roundings"
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in worst.items())
    return f"{SAMPLES} samples; of the error that rounding explains: {shares}"
