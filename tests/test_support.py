"""The assertions that the other tests rest on must refuse what is wrong."""

import pytest
import support
import torch

SHAPE = (20, 20)  # enough elements for a Frobenius error
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def expected():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def check(actual, expected, dtype=torch.float32, **others):
    tolerance = support.TOLERANCES["quadratic"][dtype]
    support.assert_close(actual, expected, expected.abs(), tolerance, dtype, **others)


def with_first(tensor, value):
    changed = tensor.clone()
    changed[0, 0] = value
    return changed


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_close_accepts_the_rounded_truth(expected, dtype):
    check(expected.to(dtype), expected, dtype, peer=expected.to(dtype))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_close_accepts_special_values_in_place(expected, value):
    check(with_first(expected, value).float(), with_first(expected, value))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: with_first(t, t[0, 0] + 1e-3), "1 of 400 elements exceed"),
        (lambda t: with_first(t, NAN), "NaN in other positions"),
        (lambda t: with_first(t, INF), "Inf in other positions"),
        (lambda t: t * NAN, "NaN in other positions"),
        (lambda t: t[:1], "shape"),
        (lambda t: t.unsqueeze(0), "shape"),
        (lambda t: t.double(), "dtype"),
        (lambda t: t.half(), "dtype"),
        (lambda t: torch.zeros_like(t), "elements exceed"),
    ],
)
def test_close_rejects(expected, spoil, message):
    with pytest.raises(AssertionError, match=message):
        check(spoil(expected.float()), expected)


@pytest.mark.parametrize(("expected_value", "value"), [(NAN, 0.0), (INF, -INF), (INF, 3e38)])
def test_close_rejects_other_special_values(expected, expected_value, value):
    with pytest.raises(AssertionError, match="(NaN|Inf) (in other positions|of the other sign)"):
        check(with_first(expected, value).float(), with_first(expected, expected_value))


def test_close_rejects_a_frobenius_error_that_every_element_hides(expected):
    scale = torch.full_like(expected, 1e3)
    tolerance = support.TOLERANCES["quadratic"][torch.float32]
    with pytest.raises(AssertionError, match="Frobenius error .* more than 3e-06 of"):
        support.assert_close(
            (expected * (1 + 1e-5)).float(), expected, scale, tolerance, torch.float32
        )


def test_close_rejects_what_is_twice_as_wrong_as_torch(expected):
    rounded = expected.bfloat16()
    with pytest.raises(AssertionError, match="twice PyTorch's"):
        check(rounded, expected, torch.bfloat16, peer=expected)


def test_exact(expected):
    whole = expected.mul(3).round()
    support.assert_exact(whole.half(), whole, torch.float16)
    for spoiled in (with_first(whole, NAN), with_first(whole, whole[0, 0] + 1), whole * NAN):
        with pytest.raises(AssertionError, match="elements differ"):
            support.assert_exact(spoiled.half(), whole, torch.float16)
    with pytest.raises(AssertionError, match="dtype"):
        support.assert_exact(whole, whole, torch.float16)
    with pytest.raises(AssertionError, match="shape"):
        support.assert_exact(whole.half()[:1], whole, torch.float16)


(CASE,) = [case for case in support.named("ragged_small") if case.op == "quadratic"]


@pytest.fixture
def right():
    """Arguments, a gradient and the outputs for them, all integers."""
    arguments, grad = support.inputs_of(CASE, torch.float32, integers=True)
    return arguments, grad, support.outputs_of(support.reference(CASE), arguments, grad)


def test_outputs_accept_the_reference(right):
    arguments, grad, outputs = right
    support.assert_outputs_close(outputs, CASE, arguments, grad)
    support.assert_outputs_exact(outputs, CASE, arguments, grad)
    support.assert_same_bits(outputs, outputs)


@pytest.mark.parametrize("name", ["result", "grad_x", "grad_weight"])
def test_outputs_reject_one_that_is_wrong(right, name):
    arguments, grad, outputs = right
    wrong = outputs | {name: outputs[name] * 1.001}
    with pytest.raises(AssertionError, match=name):
        support.assert_outputs_close(wrong, CASE, arguments, grad)
    with pytest.raises(AssertionError, match=name):
        support.assert_outputs_exact(wrong, CASE, arguments, grad)
    with pytest.raises(AssertionError, match=name):
        support.assert_same_bits(wrong, outputs)


def test_outputs_reject_a_missing_gradient(right):
    arguments, grad, outputs = right
    fewer = {name: value for name, value in outputs.items() if name != "grad_weight"}
    with pytest.raises(AssertionError):
        support.assert_outputs_close(fewer, CASE, arguments, grad)
    with pytest.raises(AssertionError):
        support.assert_outputs_exact(fewer, CASE, arguments, grad)


def test_inexact_cases_are_held_to_their_tolerance():
    (case,) = [case for case in support.named("ragged_tile") if case.op == "center"]
    assert not case.exact
    arguments, grad = support.inputs_of(case, torch.float32, integers=True)
    outputs = support.outputs_of(support.reference(case), arguments, grad)
    support.assert_outputs_exact(outputs, case, arguments, grad)
    for name in outputs:
        with pytest.raises(AssertionError, match=name):
            wrong = outputs | {name: outputs[name] * 1.001}
            support.assert_outputs_exact(wrong, case, arguments, grad)


@pytest.mark.parametrize("layout", support.LAYOUTS)
def test_layouts_are_what_they_say(expected, layout):
    laid_out = layout(expected)
    values = expected[:1].expand_as(expected) if layout is support.expanded else expected
    assert torch.equal(laid_out, values)
    assert (
        not laid_out.is_contiguous()
        or laid_out.storage_offset() % 2 == 1
        or laid_out.is_neg()
        or laid_out.storage_offset() == support.MARGIN
    )


def test_unharmed_rejects_a_write_outside(expected):
    tensor = support.surrounded(expected)
    support.assert_unharmed(tensor, expected)
    tensor._base[support.MARGIN - 1] = 0
    with pytest.raises(AssertionError):
        support.assert_unharmed(tensor, expected)


def test_every_op_has_cases_and_tolerances():
    assert {case.op for case in support.TESTS} == support.TOLERANCES.keys()
    assert all(support.TOLERANCES[op].keys() == set(support.DTYPES) for op in support.TOLERANCES)
