"""What the tests share: cases, backends, layouts, outputs with gradients, and what counts as right.

The reference is each op's formula in float64 on arguments that are already rounded to the dtype
under test; S, the scale of an error, is the same formula on absolute values.
"""

import contextlib
import functools
import importlib
import importlib.util
import math
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import blockops
import blockops.ops
from blockops import _dispatch
from blockops._cases import Case

# Whether Triton's interpreter runs its kernels in this process, and on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LOW_PRECISION = (torch.bfloat16, torch.float16)


class Tolerance(NamedTuple):
    """element, rounding: every |error| <= element * S + rounding * |result|. frobenius: bound on
    the relative Frobenius error of `MANY` elements or more; in bfloat16 and float16 that error is
    also at most twice the one of PyTorch's own path, the reference formula, in the same dtype."""

    element: float
    frobenius: float | None
    rounding: float = 0.0


_TRILINEAR = {
    torch.float64: Tolerance(1e-12, None),
    torch.float32: Tolerance(1e-6, 3e-6),
    torch.float16: Tolerance(1.05e-3, 6e-4),
    torch.bfloat16: Tolerance(8.2e-3, 4.6e-3),
}
TOLERANCES = {
    "quadratic": _TRILINEAR,
    "bilinear": _TRILINEAR,
    "linear_relu": {
        torch.float64: Tolerance(1e-12, None),
        torch.float32: Tolerance(1e-6, 1e-6),
        torch.float16: Tolerance(5.2e-4, 4.2e-4),
        torch.bfloat16: Tolerance(4.1e-3, 3.3e-3),
    },
    "center": {
        torch.float64: Tolerance(1e-14, None),
        torch.float32: Tolerance(4e-7, None),
        torch.float16: Tolerance(4e-7, None, rounding=4.9e-4),
        torch.bfloat16: Tolerance(4e-7, None, rounding=3.91e-3),
    },
}
MANY = 256


# ---- cases: TESTS and WORKLOADS of every ops/<op>/cases.py, so that a new op adds no line ----


def _collect(kind: str) -> list[Case]:
    """Of the folders that have cases: fourier has none, for a library does its work."""
    folders = [module.name for module in pkgutil.iter_modules(blockops.ops.__path__)]
    names = [f"blockops.ops.{name}.cases" for name in folders]
    modules = [importlib.import_module(name) for name in names if importlib.util.find_spec(name)]
    return [case for module in modules for case in getattr(module, kind)]


def cut(case: Case, largest: int) -> Case:
    """The case with no size above `largest`: equal sizes stay equal, so its shapes still fit."""
    shapes = {name: tuple(min(s, largest) for s in shape) for name, shape in case.shapes.items()}
    divides = "dim" in case.options  # by a size, which is no power of two any more
    return replace(
        case, shapes=shapes, exact=case.exact and not (divides and shapes != case.shapes)
    )


TESTS = _collect("TESTS")
WORKLOADS = [cut(case, 96) for case in _collect("WORKLOADS")]
if INTERPRETED:  # at some thousand elements a second
    TESTS = [case for case in TESTS if sum(map(math.prod, case.shapes.values())) <= 2**18]
    WORKLOADS = []


PUBLIC_OPS = list(dict.fromkeys(case.op for case in TESTS))


def named(*names: str) -> list[Case]:
    """The test cases of these names, of every op that has them."""
    return [case for case in TESTS if case.name in names]


def case_id(case: Case) -> str:
    return f"{case.op}-{case.name}"


def public(case: Case) -> Callable[..., Tensor]:
    """The op of a case as a function of tensors."""
    return functools.partial(getattr(blockops, case.op), **case.options)


def reference(case: Case) -> Callable[..., Tensor]:
    return functools.partial(_dispatch.OPS[case.op].reference, **case.options)


# ---- backends ----


class Target(NamedTuple):
    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}_{self.device}"

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Those whose accuracy is ours to bound; the reference's in low precision is PyTorch's."""
        return DTYPES if self.backend != "reference" else (torch.float64, torch.float32)


NATIVE = Target("native", "cpu")
TARGETS = (
    NATIVE,
    Target("reference", "cpu"),
    Target("native", "cuda"),
    Target("triton", "cuda"),
)
if INTERPRETED:
    import triton_on_cpu.interpreter  # noqa: F401 -- gives CPU tensors Triton kernels

    TARGETS = (Target("triton", "cpu"),)
KERNELS = tuple(target for target in TARGETS if target.backend != "reference")


def why_not(target: Target, op: str) -> str | None:
    """Why a target cannot run an op here; None when it can."""
    reason = _dispatch.why_not(target.backend, op, target.device)
    if target.device == "cuda" and not torch.cuda.is_available():
        reason = "there is no CUDA device" if reason is None else f"{reason}; no CUDA device either"
    return reason and f"{target}: {reason}"


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- another process ----


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python that imports this blockops."""
    path = str(Path(blockops.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


# ---- outputs: the result and the gradients of every argument, by name ----


def grad_of_result(case: Case, like: Tensor, seed: int = 1, integers: bool = False) -> Tensor:
    """A gradient for the result of a case's call, in the dtype and on the device of `like`."""
    with torch.device("meta"):
        arguments = {name: torch.empty(shape) for name, shape in case.shapes.items()}
    shape = reference(case)(**arguments).shape
    generator = torch.Generator().manual_seed(seed)
    if integers:
        values = torch.randint(-2, 3, shape, generator=generator)
    else:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values.to(like.device, like.dtype)


def inputs_of(
    case: Case, dtype: torch.dtype, device: str = "cpu", integers: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """The arguments of a case by name, and a gradient of the result."""
    arguments = case.tensors(dtype, device, integers=integers)
    like = next(iter(arguments.values()))
    return arguments, grad_of_result(case, like, integers=integers)


def outputs_of(
    function: Callable[..., Tensor], arguments: Mapping[str, Tensor], grad: Tensor
) -> dict[str, Tensor]:
    """The result, and the gradient of each argument for the gradient `grad` of the result."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
    result = function(**leaves)
    gradients = torch.autograd.grad(result, list(leaves.values()), grad)
    names = [f"grad_{name}" for name in leaves]
    return {"result": result.detach(), **dict(zip(names, gradients, strict=True))}


def mapped(
    arguments: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    return {name: change(tensor) for name, tensor in arguments.items()}


def exact(tensor: Tensor) -> Tensor:
    """As float64 on the CPU, with the values that it has."""
    return tensor.detach().cpu().double()


def exact_outputs(case: Case, arguments: Mapping[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    return outputs_of(reference(case), mapped(arguments, exact), exact(grad))


def scales(case: Case, arguments: Mapping[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """S of each output: its formula on absolute values; for center, whose terms cancel, the largest
    element of what one mean runs over."""
    if case.op != "center":
        return exact_outputs(case, mapped(arguments, torch.abs), grad.abs())

    def largest(tensor: Tensor) -> Tensor:
        dim = case.options["dim"]
        if tensor.numel() == 0:
            return exact(tensor)
        largest = exact(tensor).abs().nan_to_num().amax(() if dim is None else dim, keepdim=True)
        return largest.expand(tensor.shape)

    return {"result": largest(arguments["x"]), "grad_x": largest(grad)}


# ---- memory ----

KEPT_MEMORY = 1 << 30  # the limit that holds until it is set


def keep_nothing() -> None:
    """Gives back what is kept, and sets that limit again."""
    blockops.keep_memory(0)
    blockops.keep_memory(KEPT_MEMORY)


def allocations(step: Callable[[], object]) -> list[int]:
    """The sizes in bytes of what `step` allocates (positive) and frees (negative), in order.

    No memory is kept from before, so that none is larger than what was asked for.
    """
    keep_nothing()
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the profiler sees the allocations of its own thread
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            step()
    finally:
        torch.set_num_threads(before)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def peak(sizes: list[int]) -> int:
    total = highest = 0
    for size in sizes:
        total += size
        highest = max(highest, total)
    return highest


# ---- assertions ----


def assert_same_kind(actual: Tensor, shape: torch.Size, dtype: torch.dtype, name: str) -> None:
    assert actual.dtype == dtype, f"{name}: dtype {actual.dtype}, expected {dtype}"
    assert actual.shape == shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(shape)}"


def assert_exact(actual: Tensor, expected: Tensor, dtype: torch.dtype, name: str = "value") -> None:
    """`actual` has exactly the values of the float64 tensor `expected`, rounded once to `dtype`."""
    assert_same_kind(actual, expected.shape, dtype, name)
    wrong = actual.cpu() != expected.to(dtype)
    assert not wrong.any(), f"{name}: {int(wrong.sum())} of {wrong.numel()} elements differ"


def assert_close(
    actual: Tensor,
    expected: Tensor,
    scale: Tensor,
    tolerance: Tolerance,
    dtype: torch.dtype,
    peer: Tensor | None = None,
    name: str = "value",
) -> None:
    """`actual` is the float64 tensor `expected` within `tolerance`.

    scale: S, element by element. peer: what PyTorch's own path gives in this dtype.
    """
    assert_same_kind(actual, expected.shape, dtype, name)
    actual = exact(actual)
    rounded = expected.to(dtype).double()
    finite, infinite = rounded.isfinite(), rounded.isinf()
    assert torch.equal(actual.isnan(), rounded.isnan()), f"{name}: NaN in other positions"
    assert torch.equal(actual.isinf(), infinite), f"{name}: Inf in other positions"
    assert torch.equal(actual[infinite], rounded[infinite]), f"{name}: Inf of the other sign"
    error = (actual - expected)[finite]
    allowed = tolerance.element * scale[finite] + tolerance.rounding * expected[finite].abs()
    kind = torch.finfo(dtype)
    allowed += kind.smallest_normal * kind.eps / 2  # what rounding to a subnormal number may cost
    excess = error.abs() - allowed
    assert (excess <= 0).all(), (
        f"{name}: {int((excess > 0).sum())} of {excess.numel()} elements exceed "
        f"{tolerance.element} S, the worst with an error of {error[excess.argmax()]:.3e}"
    )
    if error.numel() < MANY:
        return
    norm = expected[finite].norm()
    assert tolerance.frobenius is None or error.norm() <= tolerance.frobenius * norm, (
        f"{name}: Frobenius error {error.norm():.3e}, more than {tolerance.frobenius} of {norm:.3e}"
    )
    if peer is not None:
        allowed = 2 * (exact(peer) - expected)[finite].norm()
        assert error.norm() <= allowed, (
            f"{name}: Frobenius error {error.norm():.3e}, more than {allowed:.3e}, twice PyTorch's"
        )


def assert_outputs_close(
    actual: Mapping[str, Tensor], case: Case, arguments: Mapping[str, Tensor], grad: Tensor
) -> None:
    """The result and every gradient are those of the op's formula."""
    dtype = grad.dtype
    expected = exact_outputs(case, arguments, grad)
    scale = scales(case, arguments, grad)
    peer = {}
    if dtype in LOW_PRECISION:
        peer = outputs_of(reference(case), mapped(arguments, torch.Tensor.cpu), grad.cpu())
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = TOLERANCES[case.op][dtype]
        assert_close(actual[name], value, scale[name], tolerance, dtype, peer.get(name), name)


def assert_outputs_exact(
    actual: Mapping[str, Tensor], case: Case, arguments: Mapping[str, Tensor], grad: Tensor
) -> None:
    """For integers: to the last bit, unless the op divides them by other than a power of two."""
    if not case.exact:
        return assert_outputs_close(actual, case, arguments, grad)
    expected = exact_outputs(case, arguments, grad)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_exact(actual[name], value, grad.dtype, name)


def assert_same_bits(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), f"{name}: other bits"


# ---- layouts: the same shape otherwise laid out in memory ----

SENTINEL = -77.0
MARGIN = 64


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def sliced(tensor: Tensor) -> Tensor:
    """Every second element of the last axis of a wider buffer."""
    buffer = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), SENTINEL)
    view = buffer[..., 1::2]
    return view.copy_(tensor)


def expanded(tensor: Tensor) -> Tensor:
    """Its first row in all rows, at stride 0: the one layout with other values."""
    return tensor[:1].expand_as(tensor)


def misaligned(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)


def surrounded(tensor: Tensor) -> Tensor:
    """Amid sentinels, which `assert_unharmed` looks at."""
    buffer = tensor.new_full((tensor.numel() + 2 * MARGIN,), SENTINEL)
    return buffer[MARGIN:-MARGIN].view(tensor.shape).copy_(tensor)


def assert_unharmed(tensor: Tensor, before: Tensor) -> None:
    """A tensor made by `surrounded` still has the values of `before`, and sentinels around them."""
    buffer = tensor._base
    assert torch.equal(tensor, before)
    assert (buffer[:MARGIN] == SENTINEL).all() and (buffer[-MARGIN:] == SENTINEL).all()


def negated_view(tensor: Tensor) -> Tensor:
    """The values of `tensor` as a view that negates what lies in memory."""
    return torch._neg_view(tensor.neg())


LAYOUTS = (transposed, sliced, expanded, misaligned, surrounded, negated_view)
