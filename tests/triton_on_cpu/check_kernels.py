"""The kernels, as the interpreter runs them: every configuration, what PyTorch's compiler makes of
them, and tensors that need 64-bit offsets. All else is in the tests of every backend."""

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import support
import test_transforms
import torch
import triton
from support import case_id, inputs_of, outputs_of, public
from torch.library import opcheck

import blockops
from blockops import _triton, _triton_kernels
from blockops._cases import Case
from blockops._triton_kernels import Tuned
from blockops.ops.bilinear.cases import quadratic_case
from blockops.ops.center import triton_kernels as center
from blockops.ops.center.cases import center_case
from blockops.ops.linear_relu import triton_kernels as linear_relu
from blockops.ops.linear_relu.cases import linear_relu_case
from triton_on_cpu import interpreter
from triton_on_cpu.compiled import in_configuration, written_in

# ---- every configuration ----

# What leads to all kernels of a folder: to one of them in most configurations, to all in some.
SMALL = {
    "bilinear": [
        quadratic_case("ragged", (33,), 35, 17),
        quadratic_case("aligned", (64,), 32, 32),
        quadratic_case("few_outputs", (33,), 35, 3),
        quadratic_case("packed", (257,), 65, 17),
    ],
    "linear_relu": [
        linear_relu_case("ragged", (35,), 33, 34),
        linear_relu_case("aligned", (32,), 64, 32),
    ],
    "center": [
        center_case("rows", (3, 64), -1),
        center_case("columns", (64, 3), 0),
        center_case("long_rows", (2, 16384), -1),
        center_case("longer_rows", (2, 32768), -1),
        center_case("long_columns", (16384, 5), 0),
    ],
}
DTYPES = {"16 bit": (torch.bfloat16, torch.float16), "float64": (torch.float64,)}


def settings() -> list[tuple[str, Tuned, triton.Config]]:
    """Each kernel with each of its configurations that is another one for the interpreter, which
    knows of no warps and stages."""
    found = {}
    for folder in _triton.OPS:
        for kernel in (value for value in written_in(folder) if isinstance(value, Tuned)):
            for config in kernel.configs:
                found[kernel, str(config.kwargs)] = folder, kernel, config
    return list(found.values())


def setting_id(value: object) -> str:
    if isinstance(value, triton.Config):
        return "-".join(map(str, value.kwargs.values()))
    return value.kernel.__name__ if isinstance(value, Tuned) else value


def exact_in(case: Case, dtype: torch.dtype) -> None:
    arguments, grad = inputs_of(case, dtype, integers=True)
    with blockops.backend("triton"):
        outputs = outputs_of(public(case), arguments, grad)
    support.assert_outputs_exact(outputs, case, arguments, grad)


@contextlib.contextmanager
def allowed_tf32(allowed: bool) -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize(("folder", "kernel", "config"), settings(), ids=setting_id)
def test_every_configuration(folder, kernel, config, monkeypatch):
    """Integers are exact in the first small case that it suits."""
    cost, suited = kernel.cost, []

    def recorded(key, **constants):
        value = cost(key, **constants)
        suited.extend([key] if value is not None and constants == config.kwargs else [])
        return value

    monkeypatch.setattr(kernel, "cost", recorded)
    precision = config.kwargs.get("PRECISION")
    with in_configuration(kernel, config), allowed_tf32(precision == "tf32"):
        for case, dtype in itertools.product(SMALL[folder], DTYPES.get(precision, [torch.float32])):
            exact_in(case, dtype)
            if suited:
                return
    pytest.fail(f"it suits none of {[case.name for case in SMALL[folder]]}")


# ---- torch.compile and the registration ----


@pytest.mark.parametrize("case", support.named("leading"), ids=case_id)
def test_compile_without_a_break(case):
    arguments, grad = inputs_of(case, torch.float32, integers=True)
    compiled = torch.compile(public(case), fullgraph=True, backend="aot_eager")
    interpreter.launched.clear()
    with blockops.backend("triton"):
        outputs = outputs_of(compiled, arguments, grad)
    assert interpreter.launched, "no kernel was launched"
    support.assert_outputs_exact(outputs, case, arguments, grad)


@pytest.mark.parametrize("name", [name for names in _triton.OPS.values() for name in names])
def test_opcheck(name):
    native = f"blockops::{name}"
    sample = test_transforms.sample_of(native, test_transforms.case_of(native, "one_row"))
    sample = tuple(
        a.requires_grad_(not test_transforms.is_fused(name)) if isinstance(a, torch.Tensor) else a
        for a in sample
    )
    opcheck(getattr(torch.ops.blockops_triton, name).default, sample)


# ---- offsets past 2^31 ----
#
# Of each kernel the first and the last program are run, on tensors of zeros. An offset that went
# astray would be out of bounds, for it would be negative; or it would be left out, and then the far
# end not be reached.


def zeros(*sizes, dtype=torch.bfloat16, device="cpu"):
    """The system gives such memory only where it is written to."""
    sizes = sizes[0] if isinstance(sizes[0], (tuple, torch.Size)) else sizes
    bits = {2: np.int16, 4: np.int32, 8: np.int64}[dtype.itemsize]
    return torch.from_numpy(np.zeros(tuple(sizes), bits)).view(dtype)


@pytest.fixture
def sparse(monkeypatch):
    def new_empty(tensor, *sizes, dtype=None, device="cpu"):
        return zeros(*sizes, dtype=dtype or tensor.dtype)

    # Of a chip so large that no program has much to do, and the last ones have something.
    monkeypatch.setattr(_triton_kernels, "PROCESSORS", 2732)
    monkeypatch.setattr(center, "PROCESSORS", 2732)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    monkeypatch.setattr(torch, "empty", zeros)
    monkeypatch.setattr(torch, "empty_like", lambda tensor: new_empty(tensor, tensor.shape))
    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    interpreter.reached_far.clear()
    with interpreter.first_and_last_program():
        yield


def assert_far_reached(launches):
    """By all launches of kernels that were given tensors of more than 2^31 elements."""
    assert len(interpreter.reached_far) >= launches
    assert all(beyond for _, beyond in interpreter.reached_far), interpreter.reached_far


@pytest.mark.parametrize("dim", [None, 0, 1], ids=str)
def test_far_offsets_of_center(dim, sparse):
    rows, columns = interpreter.FAR // 512 + 2048, 512
    center.center(zeros(rows, columns), zeros(rows, columns), None if dim is None else [dim])
    assert_far_reached(2 if dim == 1 else 3)


def test_wide_tiles_of_center(sparse):
    """Whose own offsets need 64 bits."""
    shape = (16, 2**28 + 512)
    center.center(zeros(shape), zeros(shape), [0])
    assert_far_reached(2)


def test_wide_tiles_of_linear_relu(sparse):
    n = 2**28 + 512
    linear_relu.linear_relu(zeros(16, 16), zeros(16, n), zeros(16, n))
    assert_far_reached(2)


@pytest.mark.parametrize(
    ("op", "features", "m"),
    [
        ("quadratic", (16,), 512),
        ("quadratic", (32,), 3),
        ("bilinear", (16, 16), 512),
        ("bilinear", (32, 16), 3),
        ("linear_relu", (16,), 512),
    ],
)
def test_far_offsets_of_layers(op, features, m, sparse):
    """Results, or inputs, of more than 2^31 elements, and their gradients."""
    # In the last program of a copy there are rows, not only the zeros after them.
    rows = interpreter.FAR // max(*features, m) + 2148
    shape = (*features, *features, m) if op == "quadratic" else (m, *features)
    leaves = [zeros(rows, n).requires_grad_() for n in features] + [zeros(shape).requires_grad_()]
    with blockops.backend("triton"):
        result = getattr(blockops, op)(*leaves)
        torch.autograd.grad(result, leaves, zeros(rows, m))
    assert_far_reached(3)
