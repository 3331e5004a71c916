"""The numbers: every op x case x backend x dtype x layout against the formula in float64."""

import gc

import pytest
import support
import torch
from support import (
    LOW_PRECISION,
    NATIVE,
    TARGETS,
    TESTS,
    WORKLOADS,
    assert_outputs_close,
    assert_outputs_exact,
    assert_same_bits,
    case_id,
    inputs_of,
    outputs_of,
    public,
    threads,
)

import blockops

NAN, INF = float("nan"), float("inf")
EMPTY = ("empty_batch", "empty_batch_long", "no_features", "no_outputs", "no_outputs_long")


def runs(cases, dtypes_of, sanitize=(), targets=TARGETS):
    """Parameters (target, case, dtype) for the dtypes that dtypes_of(index of the case) names;
    those of the native CPU kernels are marked for the sanitizers where the dtype is listed."""
    return [
        pytest.param(
            target,
            case,
            dtype,
            id=f"{target}-{case_id(case)}-{str(dtype).removeprefix('torch.')}",
            marks=[pytest.mark.sanitize] if target == NATIVE and dtype in sanitize else [],
        )
        for target in targets
        for index, case in enumerate(cases)
        for dtype in dtypes_of(index)
        if dtype in target.dtypes
    ]


def one_low_precision(index):
    return (torch.float32, LOW_PRECISION[index % 2])


def served_outputs(target, case, arguments, grad):
    with blockops.backend(target.backend):
        return outputs_of(public(case), arguments, grad)


def only_float32(index):
    return (torch.float32,)


@pytest.mark.parametrize(
    ("target", "case", "dtype"),
    runs(TESTS, lambda index: support.DTYPES, [torch.float32])
    + runs(WORKLOADS, only_float32, targets=support.KERNELS),
)
def test_outputs(target, case, dtype):
    arguments, grad = inputs_of(case, dtype, target.device)
    outputs = served_outputs(target, case, arguments, grad)
    assert_outputs_close(outputs, case, arguments, grad)


@pytest.mark.parametrize(
    ("target", "case", "dtype"),
    runs(TESTS, one_low_precision) + runs(WORKLOADS, one_low_precision, targets=support.KERNELS),
)
def test_integers_are_exact(target, case, dtype):
    arguments, grad = inputs_of(case, dtype, target.device, integers=True)
    outputs = served_outputs(target, case, arguments, grad)
    assert_outputs_exact(outputs, case, arguments, grad)


@pytest.mark.parametrize(
    ("target", "case", "dtype"), runs(TESTS, only_float32, targets=support.KERNELS)
)
def test_sums_of_one_sign(target, case, dtype):
    """Nothing cancels, so that the rounding of long sums shows."""
    arguments, grad = inputs_of(case, dtype, target.device)
    arguments = support.mapped(arguments, torch.abs)
    outputs = served_outputs(target, case, arguments, grad.abs())
    assert_outputs_close(outputs, case, arguments, grad.abs())


# ---- memory ----

LAID_OUT = support.named("one_row", "leading", "ragged_tile", "few_outputs", "three_outputs")


@pytest.mark.parametrize("layout", support.LAYOUTS)
@pytest.mark.parametrize(("target", "case", "dtype"), runs(LAID_OUT, one_low_precision))
def test_layouts(target, case, dtype, layout):
    """Every argument and the gradient of the result laid out in another way."""
    arguments, grad = inputs_of(case, dtype, target.device, integers=True)
    laid_out, laid_out_grad = support.mapped(arguments, layout), layout(grad)
    outputs = served_outputs(target, case, laid_out, laid_out_grad)
    assert_outputs_exact(outputs, case, laid_out, laid_out_grad)
    if layout is support.surrounded:
        support.assert_unharmed(laid_out_grad, grad)
        for name, tensor in laid_out.items():
            support.assert_unharmed(tensor, arguments[name])


@pytest.mark.sanitize
@pytest.mark.parametrize("case", support.named("leading", "ragged_tile"), ids=case_id)
def test_one_argument_laid_out(target, case):
    """Each argument in turn, in turn another layout, the others contiguous."""
    arguments, grad = inputs_of(case, torch.float32, target.device, integers=True)
    for index, name in enumerate(arguments):
        layout = support.LAYOUTS[index % len(support.LAYOUTS)]
        mixed = arguments | {name: layout(arguments[name])}
        outputs = served_outputs(target, case, mixed, grad)
        assert_outputs_exact(outputs, case, mixed, grad)


@pytest.fixture
def poison(monkeypatch):
    """Makes torch.empty, ATen's too, give NaN; and, when called, leaves NaN in freed memory, where
    scratch that a kernel takes from the allocator itself comes to lie, and in kept memory."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)

    def leave_nan():
        small = [torch.full((4**power,), NAN) for power in range(4, 12) for _ in range(4)]
        sizes = [int(2**18 * 1.1**step) for step in range(1, 24)]  # kept blocks fit 9/8 of theirs
        large = [blockops.center(torch.full((size,), NAN)) for size in sizes]
        del small, large

    yield leave_nan
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", [case for case in TESTS if case.name not in EMPTY], ids=case_id)
def test_uninitialised_memory_is_never_read(case, poison):
    assert torch.empty(3).isnan().all()
    arguments, grad = inputs_of(case, torch.float32, integers=True)
    gc.collect()
    with threads(1):  # scratch then comes from the heap that was poisoned
        poison()
        outputs = served_outputs(NATIVE, case, arguments, grad)
    assert_outputs_exact(outputs, case, arguments, grad)


# ---- determinism ----

# The products of linear_relu are whole products of ATen's, which takes other bits at other numbers
# of threads, as torch.nn.functional.linear does.
FIXED = [case for case in TESTS + WORKLOADS if case.op != "linear_relu"]


@pytest.mark.parametrize("case", FIXED, ids=case_id)
def test_same_bits_on_one_and_two_threads(case):
    arguments, grad = inputs_of(case, torch.float32)
    with threads(1):
        expected = served_outputs(NATIVE, case, arguments, grad)
    for count in (2, 3):
        with threads(count):
            assert_same_bits(served_outputs(NATIVE, case, arguments, grad), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
@pytest.mark.parametrize(
    "case", [case for case in FIXED if case.name in ("two_groups", "one_output")], ids=case_id
)
def test_same_bits_on_two_threads_in_other_dtypes(case, dtype):
    arguments, grad = inputs_of(case, dtype)
    with threads(1):
        expected = served_outputs(NATIVE, case, arguments, grad)
    with threads(2):
        assert_same_bits(served_outputs(NATIVE, case, arguments, grad), expected)


@pytest.mark.parametrize(
    "case", support.named("leading", "three_outputs", "few_outputs"), ids=case_id
)
def test_same_bits_in_ten_runs(target, case):
    arguments, grad = inputs_of(case, torch.float32, target.device)
    expected = served_outputs(target, case, arguments, grad)
    for _ in range(10):
        assert_same_bits(served_outputs(target, case, arguments, grad), expected)


# ---- special values ----

SPECIAL = support.named(
    "leading", "ragged_tile", "few_outputs", "three_outputs", "plain_loops", "short_vectors"
)


def positive_inputs(case, target):
    """1 and 2 only: without minus signs and zeros the sum of the terms with one infinity does not
    depend on the order that the terms are added in."""
    arguments, grad = inputs_of(case, torch.float32, target.device, integers=True)
    return support.mapped(arguments, lambda t: t.abs().clamp(min=1)), grad.abs().clamp(min=1)


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("case", SPECIAL, ids=case_id)
def test_nan_and_infinity_stay_where_they_belong(target, case, value):
    """One in each argument, and in the gradient of the result, in turn."""
    arguments, grad = positive_inputs(case, target)
    for name in [*arguments, "grad"]:
        changed = {**arguments, "grad": grad}
        changed[name] = changed[name].clone()
        changed[name].view(-1)[changed[name].numel() // 2] = value
        changed_grad = changed.pop("grad")
        outputs = served_outputs(target, case, changed, changed_grad)
        if not (case.op == "linear_relu" and name == "bias" and value == -INF):  # ReLU makes it 0
            assert not all(output.isfinite().all() for output in outputs.values())
        assert_outputs_close(outputs, case, changed, changed_grad)


@pytest.mark.parametrize(
    "case", support.named("ragged_small", "many_outputs", "last_of_two"), ids=case_id
)
def test_subnormal_numbers_are_kept(case):
    """Scaled to the least positive number, results that are linear in an argument stay exact."""
    least = 2.0**-149 * (1 if "weight" in case.shapes else 64)  # center divides by 64
    arguments, grad = inputs_of(case, torch.float32, integers=True)
    scaled = "weight" if "weight" in arguments else "x"
    arguments[scaled] = arguments[scaled] * least
    outputs = served_outputs(NATIVE, case, arguments, grad)
    result = outputs["result"]
    assert result.abs().max() > 0 and result.abs().max() < torch.finfo(torch.float32).tiny
    assert_outputs_exact(outputs, case, arguments, grad)


@pytest.mark.parametrize("case", support.named("ragged_small", "many_outputs"), ids=case_id)
def test_minus_zero_and_zero_are_equal(target, case):
    arguments, grad = inputs_of(case, torch.float32, target.device)
    zeros = support.mapped(arguments, torch.zeros_like)
    expected = served_outputs(target, case, zeros, grad)
    minus = served_outputs(target, case, support.mapped(zeros, torch.neg), grad)
    assert all(torch.equal(output, torch.zeros_like(output)) for output in expected.values())
    assert_same_bits(minus, expected)
