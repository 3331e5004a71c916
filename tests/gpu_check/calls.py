"""Checks that call the ops: derivatives, graphs, streams, repetition, full sizes, far offsets."""

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping

import support
import torch
from support import inputs_of, outputs_of, public, reference
from torch import Tensor

import blockops
from blockops import _dispatch, _triton
from blockops._cases import Case
from blockops.ops.bilinear.cases import quadratic_case

from .base import NotRun, Run

FAR = 2**31
LATE = 50_000_000  # clock cycles of a GPU: tens of milliseconds
FULL_SIZE = support._collect("WORKLOADS")


def backends(run: Run, op: str) -> Iterator[str]:
    """Each backend that serves an op on the device, in a block of that backend: a GPU must have
    both, save that triton may not be installed; the CPU has no Triton kernels."""
    for backend in ("native", "triton"):
        refusal = _dispatch.why_not(backend, op, run.device)
        absent = run.device == "cpu" or _triton.why_missing
        assert refusal is None or (backend == "triton" and absent), refusal
        if refusal is None:
            with blockops.backend(backend):
                yield backend


def served(run: Run, cases: list[Case]) -> Iterator[tuple[str, Case]]:
    """Each case with each backend, in a block of that backend."""
    return ((backend, case) for case in cases for backend in backends(run, case.op))


def some(run: Run, cases: list[Case]) -> list[Case]:
    """All cases on a GPU; the first of each op where the check itself is tried."""
    if run.device == "cuda":
        return cases
    return list({case.op: case for case in reversed(cases)}.values())


def synchronize(run: Run) -> None:
    if run.device == "cuda":
        torch.cuda.synchronize()


def values_of(case: Case, arguments: Mapping[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """The result and the gradients; a check that compares bits wants no NaN."""
    outputs = outputs_of(public(case), arguments, grad)
    assert not any(output.isnan().any() for output in outputs.values()), f"{case.name}: NaN"
    return outputs


# ---- derivatives ----


def gradcheck(run: Run) -> str:
    cases = support.named("one_row", "scalar_like", "no_features", "one_output", "ragged_tile")
    done = 0
    for _, case in served(run, cases):
        arguments, _ = inputs_of(case, torch.float64, run.device)
        leaves = [tensor.requires_grad_() for tensor in arguments.values()]
        fast = case.name in ("one_output", "ragged_tile")
        assert torch.autograd.gradcheck(public(case), leaves, fast_mode=fast)
        assert torch.autograd.gradgradcheck(public(case), leaves, fast_mode=fast)
        done += 1
    return f"{done} cases"


# ---- graphs and streams ----


def captured(run: Run, function: Callable[[], dict[str, Tensor]]):
    """What replays `function`, and its outputs, which each replay writes anew."""
    if run.device == "cpu":  # which has no graphs: the call itself stands in
        outputs = function()

        def replay() -> None:
            for name, output in function().items():
                outputs[name].copy_(output)

        return replay, outputs
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return graph.replay, outputs


def graphs(run: Run) -> str:
    done = 0
    for backend, case in served(run, some(run, support.TESTS + support.WORKLOADS)):
        for dtype in (torch.float32, torch.bfloat16):
            arguments, grad = inputs_of(case, dtype, run.device)
            replay, outputs = captured(
                run, lambda a=arguments, g=grad, c=case: outputs_of(public(c), a, g)
            )
            for seed in (1, 2):
                fresh = case.tensors(dtype, run.device, seed=seed)
                for name, tensor in arguments.items():
                    tensor.copy_(fresh[name])
                grad.copy_(support.grad_of_result(case, grad, seed=seed))
                expected = values_of(case, arguments, grad)
                replay()
                synchronize(run)
                same_bits(outputs, expected, backend, case)
            done += 1
    return f"{done} graphs, forward and backward"


def same_bits(
    actual: dict[str, Tensor], expected: dict[str, Tensor], backend: str, case: Case
) -> None:
    try:
        support.assert_same_bits(actual, expected)
    except AssertionError as error:
        raise AssertionError(f"{backend} {case.op} {case.name}: {error}") from None


def side_stream(run: Run) -> str:
    """A producer on another stream than the current one is late: calls there must wait for it, and
    calls that were launched elsewhere read NaN."""
    done = 0
    for backend, case in served(run, some(run, support.TESTS + support.WORKLOADS)):
        arguments, grad = inputs_of(case, torch.float32, run.device)
        expected = values_of(case, arguments, grad)
        late = support.mapped(arguments, lambda t: torch.full_like(t, float("nan")))
        synchronize(run)
        with contextlib.ExitStack() as block:
            if run.device == "cuda":
                block.enter_context(torch.cuda.stream(torch.cuda.Stream()))
                torch.cuda._sleep(LATE)
            for name, tensor in late.items():
                tensor.copy_(arguments[name], non_blocking=True)
            outputs = outputs_of(public(case), late, grad)
        synchronize(run)
        same_bits(outputs, expected, backend, case)
        done += 1
    return f"{done} calls"


# ---- full sizes ----


def full_size(run: Run) -> list[Case]:
    """The workloads whose reference in float64, and whose data, are made in seconds."""
    if run.device == "cpu":
        return some(run, [case for case in FULL_SIZE if case.name == "textbook"])
    return [case for case in FULL_SIZE if sum(map(math.prod, case.shapes.values())) <= 2**28]


def ten_runs(run: Run) -> str:
    done = 0
    for backend, case in served(run, full_size(run)):
        for dtype in (torch.float32, torch.bfloat16):
            arguments, grad = inputs_of(case, dtype, run.device)
            expected = values_of(case, arguments, grad)
            for _ in range(9):
                same_bits(outputs_of(public(case), arguments, grad), expected, backend, case)
            done += 1
    return f"{done} calls, ten times each"


def decided(
    case: Case, arguments: Mapping[str, Tensor], grad: Tensor, tolerance: support.Tolerance
) -> Tensor:
    """grad, but 0 where rounding may turn the sign of the ReLU's argument: there the gradients of
    a right kernel may be off by a whole term."""
    if case.op != "linear_relu":
        return grad
    exact = [tensor.double() for tensor in arguments.values()]
    z = torch.nn.functional.linear(*exact)
    scale = torch.nn.functional.linear(*(tensor.abs() for tensor in exact))
    return grad.masked_fill(z.abs() <= tolerance.element * scale, 0)


def scales(case: Case, arguments: Mapping[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """As support.scales, on the device."""
    if case.op != "center":
        positive = support.mapped(arguments, lambda t: t.double().abs())
        return outputs_of(reference(case), positive, grad.double().abs())
    dim = case.options["dim"]
    given = {"result": arguments["x"], "grad_x": grad}
    return {
        name: t.double().abs().amax(() if dim is None else dim, keepdim=True).expand(t.shape)
        for name, t in given.items()
    }


def workloads(run: Run) -> str:
    worst: dict[str, float] = {}
    for backend, case in served(run, full_size(run)):
        for dtype in (torch.float32, torch.bfloat16):
            arguments, grad = inputs_of(case, dtype, run.device)
            share = error_of(backend, case, arguments, grad, support.TOLERANCES[case.op][dtype])
            worst[case.op] = max(worst.get(case.op, 0.0), share)
    return shares(worst)


def shares(worst: Mapping[str, float]) -> str:
    words = ", ".join(f"{op} {share:.0%}" for op, share in worst.items())
    return f"the largest error, of what is allowed: {words}"


def error_of(
    backend: str,
    case: Case,
    arguments: Mapping[str, Tensor],
    grad: Tensor,
    tolerance: support.Tolerance,
) -> float:
    """The largest error of a result or gradient, as `compare` gives it."""
    grad = decided(case, arguments, grad, tolerance)
    exact = support.mapped(arguments, Tensor.double)
    expected = outputs_of(reference(case), exact, grad.double())
    scale = scales(case, arguments, grad)
    outputs = outputs_of(public(case), arguments, grad)
    about = f"{backend} {case.op} {case.name} in {grad.dtype}"
    return max(
        compare(outputs[name], value, scale[name], tolerance, f"{about}, {name}")
        for name, value in expected.items()
    )


def compare(
    actual: Tensor, expected: Tensor, scale: Tensor, tolerance: support.Tolerance, about: str
) -> float:
    """The largest error as a share of the allowed one; AssertionError where it is more than 1."""
    if actual.numel() == 0:
        return 0.0
    kind = torch.finfo(actual.dtype)
    allowed = tolerance.element * scale + tolerance.rounding * expected.abs()
    allowed += kind.smallest_normal * kind.eps / 2
    error = actual.double() - expected
    share = float((error.abs() / allowed).max())
    assert share <= 1, f"{about}: an error of {share:.3g} times what is allowed"  # NaN too
    if tolerance.frobenius is not None and error.numel() >= support.MANY and expected.any():
        share = float(error.norm() / expected.norm() / tolerance.frobenius)
        assert share <= 1, f"{about}: a Frobenius error of {share:.3g} times what is allowed"
    return share


def long_sums(run: Run) -> str:
    """The gradient of a weight over a long batch of one sign, where tensor cores that round towards
    zero would show: each sum must be cut into short ones."""
    rows, n = (2**18, 128) if run.device == "cuda" else (2**9, 32)
    case = quadratic_case("long_sums", (rows,), n, n)
    shares_of = {}
    for dtype in (torch.float16, torch.bfloat16):
        arguments, grad = inputs_of(case, dtype, run.device)
        arguments, grad = support.mapped(arguments, torch.abs), grad.abs() / rows
        for backend in backends(run, case.op):
            about = f"{backend}, {str(dtype).removeprefix('torch.')}"
            tolerance = support.TOLERANCES[case.op][dtype]
            shares_of[about] = error_of(backend, case, arguments, grad, tolerance)
    return shares(shares_of)


TF32 = {
    "quadratic": support.Tolerance(1.05e-3, 6e-4),
    "bilinear": support.Tolerance(1.05e-3, 6e-4),
    "linear_relu": support.Tolerance(1.05e-3, 4.5e-4),
}


def tf32(run: Run) -> str:
    """PyTorch's own switch lets float32 be rounded to TF32: small integers stay exact, and off it
    must not have an effect."""
    matmul = torch.backends.cuda.matmul
    worst, rounded, done = {}, 0, 0
    for backend, case in served(run, [c for c in some(run, support.TESTS) if c.op in TF32]):
        whole, whole_grad = inputs_of(case, torch.float32, run.device, integers=True)
        arguments, grad = inputs_of(case, torch.float32, run.device)
        plain = values_of(case, arguments, grad)
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
        try:
            outputs = outputs_of(public(case), whole, whole_grad)
            support.assert_outputs_exact(outputs, case, whole, whole_grad)
            share = error_of(backend, case, arguments, grad, TF32[case.op])
            fast = values_of(case, arguments, grad)
        finally:
            matmul.fp32_precision = before
        same_bits(values_of(case, arguments, grad), plain, backend, case)
        worst[case.op] = max(worst.get(case.op, 0.0), share)
        rounded += any(not torch.equal(plain[name], fast[name]) for name in plain)
        done += 1
    return f"{rounded} of {done} calls are rounded; {shares(worst)}"


# ---- the choice of Triton's configurations ----


def tuning(run: Run) -> str:
    """What the other checks leave out: configurations are measured, and the fastest serves."""
    if _triton.why_missing:
        raise NotRun(_triton.why_missing)
    from blockops import _triton_kernels

    milliseconds, measured, done = _triton_kernels._milliseconds, [], 0

    def counted(*args):
        measured.append(args)
        return milliseconds(*args)

    os.environ["TRITON_CACHE_DIR"] = str(run.out / "triton")  # which knows no results yet
    shutil.rmtree(run.out / "triton", ignore_errors=True)
    before, _triton_kernels.autotune = _triton_kernels.autotune, True
    _triton_kernels._milliseconds = counted
    try:
        for backend, case in served(run, some(run, support.WORKLOADS)):
            if backend == "triton":
                arguments, grad = inputs_of(case, torch.bfloat16, run.device)
                tolerance = support.TOLERANCES[case.op][torch.bfloat16]
                error_of(backend, case, arguments, grad, tolerance)
                done += 1
    finally:
        _triton_kernels.autotune, _triton_kernels._milliseconds = before, milliseconds
    assert measured or run.device == "cpu"
    return f"{done} calls, {len(measured)} configurations measured"


# ---- offsets past 2^31 ----


def far(run: Run) -> int:
    return FAR if run.device == "cuda" else 2**10


def need(run: Run, gigabytes: float) -> None:
    if run.device == "cuda" and (free := torch.cuda.mem_get_info()[0] / 1e9) < gigabytes:
        raise NotRun(f"it takes {gigabytes:.0f} GB of memory, and {free:.0f} are free")


def random(run: Run, *shape: int) -> Tensor:
    """Made where it is used, for the CPU would take long."""
    generator = torch.Generator(run.device).manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.bfloat16, device=run.device)


def windows(rows: int, border: int, width: int = 1024) -> Iterator[slice]:
    """The first rows, the last, and those around a border."""
    for begin in (0, border - width // 2, rows - width):
        yield slice(max(0, begin), min(rows, max(0, begin) + width))


def far_center(run: Run) -> str:
    """Rows of 1024 and some more, centered as rows, as columns and as a whole."""
    columns = 1024
    rows = far(run) // columns + 1000
    need(run, 3 * 2 * rows * columns / 1e9)
    x = random(run, rows, columns).add_(1)
    for backend in backends(run, "center"):
        for dim in (-1, 0, None):
            check_far_center(x, dim, f"{backend} center, dim {dim}")
    return f"{rows} rows of {columns}, by rows, by columns and as a whole"


def check_far_center(x: Tensor, dim: int | None, about: str) -> None:
    rows, columns = x.shape
    tolerance = support.TOLERANCES["center"][torch.bfloat16]
    y = blockops.center(x, dim)
    mean = None
    if dim != -1:  # of parts, for float64 would take four times the memory of x
        axes = (0, 1) if dim is None else 0
        parts = [part.double().sum(axes, keepdim=True) for part in x.split(2**16)]
        mean = sum(parts) / (rows if dim == 0 else rows * columns)
    for part_of_x, part_of_y in zip(x.split(2**16), y.split(2**16), strict=True):
        exact = part_of_x.double()
        expected = exact - (exact.mean(-1, keepdim=True) if mean is None else mean)
        scale = exact.abs().max().expand(expected.shape)
        compare(part_of_y, expected, scale, tolerance, about)


def far_layer(run: Run, op: str, x: Tensor, weight: Tensor, m: int) -> str:
    """An op whose result (*, m), as the gradient of it, has more than 2^31 elements."""
    rows, n = x.shape
    formula = _dispatch.OPS[op].reference
    grad = random(run, rows, m)

    def truth(part: slice, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        arguments = {"x": change(x[part].double()), "weight": change(weight.double())}
        return outputs_of(formula, arguments, change(grad[part].double()))

    total, scale = (torch.zeros(weight.shape, dtype=torch.float64, device=x.device) for _ in "12")
    for begin in range(0, rows, 2**15):
        part = slice(begin, begin + 2**15)
        total += truth(part, torch.clone)["grad_weight"]
        scale += truth(part, torch.abs)["grad_weight"]
    tolerance = support.TOLERANCES[op][torch.bfloat16]
    for backend in backends(run, op):
        actual = outputs_of(getattr(blockops, op), {"x": x, "weight": weight}, grad)
        compare(actual.pop("grad_weight"), total, scale, tolerance, f"{backend} {op}, grad_weight")
        for part in windows(rows, far(run) // m):
            expected, scales = truth(part, torch.clone), truth(part, torch.abs)
            for name, value in actual.items():
                about = f"{backend} {op}, {name}, rows {part}"
                compare(value[part], expected[name], scales[name], tolerance, about)
        del actual, value
    return f"{rows} rows, {n} features, {m} outputs"


def far_linear_relu(run: Run) -> str:
    n, m = 16, 512
    rows = far(run) // m + 1000
    need(run, 20 * rows * m / 1e9)
    # The weights of an output have one sign, and x another: none hangs on the rounding.
    signs = random(run, m, 1).sign()
    return far_layer(
        run, "linear_relu", random(run, rows, n).abs(), random(run, m, n).abs() * signs, m
    )


def far_quadratic(run: Run) -> str:
    n, m = 16, 512
    rows = far(run) // m + 1000
    need(run, 20 * rows * m / 1e9)
    return far_layer(run, "quadratic", random(run, rows, n), random(run, n, n, m) / n, m)


# ---- devices ----


def second_device(run: Run) -> str:
    if run.device == "cuda" and torch.cuda.device_count() < 2:
        raise NotRun("there is one device")
    other = "cuda:1" if run.device == "cuda" else run.device
    done = 0
    for backend, case in served(run, some(run, support.TESTS)):
        arguments, grad = inputs_of(case, torch.float32, run.device)
        expected = values_of(case, arguments, grad)
        there = support.mapped(arguments, lambda t: t.to(other))
        outputs = outputs_of(public(case), there, grad.to(other))
        assert all(str(output.device) == other for output in outputs.values())
        assert run.device == "cpu" or torch.cuda.current_device() == 0
        same_bits(
            support.mapped(outputs, Tensor.cpu), support.mapped(expected, Tensor.cpu), backend, case
        )
        done += 1
    return f"{done} calls"
