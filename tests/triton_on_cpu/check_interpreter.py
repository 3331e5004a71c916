"""The interpreter itself: that it computes and refuses as interpreter.py says."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from triton_on_cpu import interpreter


@triton.jit
def apply_kernel(x, y, out, OPERATION: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    a, b = tl.load(x + at), tl.load(y + at)
    if OPERATION == "fma":
        value = tl.fma(a, b, a)
    if OPERATION == "maximum":
        value = tl.maximum(a, b)
    if OPERATION == "compare":
        value = tl.where(a < b, a, b)
    if OPERATION == "multiply":
        value = a * b
    tl.store(out + at, value)


def applied(operation, x, y):
    out = torch.empty_like(x)
    apply_kernel[(1,)](x, y, out, OPERATION=operation, SIZE=x.numel())
    return out


def values(dtype, size=64, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("multiply", lambda x, y: x * y),
        ("compare", torch.minimum),
        ("fma", lambda x, y: x * y + x),
    ],
)
def test_bfloat16_is_computed_with_its_numbers(operation, expected):
    x, y = values(torch.bfloat16), values(torch.bfloat16, seed=1)
    exact = expected(x.double(), y.double()).to(torch.bfloat16)
    torch.testing.assert_close(applied(operation, x, y), exact, rtol=2**-7, atol=0)


def test_bfloat16_is_rounded_to_the_nearest_even():
    numbers = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20, 0.0, -0.0])
    rounded = interpreter.as_bfloat16(numbers.numpy()).data
    assert (rounded == numbers.to(torch.bfloat16).view(torch.uint16).numpy()).all()
    special = np.array([np.nan, np.inf, -np.inf, 3.4e38], np.float32)
    rounded = interpreter.widened(interpreter.as_bfloat16(special))
    assert np.isnan(rounded[0]) and rounded[1:].tolist() == [np.inf, -np.inf, np.inf]


@triton.jit
def mix_kernel(x, count, out, SIZE: tl.constexpr):
    row, col = tl.arange(0, SIZE)[:, None], tl.arange(0, 16)[None, :]
    value = tl.load(x + row)
    whole = tl.load(count + row)
    sums = (value + 1) + (whole + 1) + (whole + 1.5) * (col < 3)
    tl.store(out + row * 16 + col, tl.where(whole < 2, sums + col, -1))


@pytest.mark.parametrize("size", [16, 32])
def test_types_and_shapes_are_kept_apart(size):
    """A number takes the type of what it meets, and all are broadcast."""
    x, count = values(torch.float32, size), torch.arange(size, dtype=torch.int32)
    out = torch.empty(size, 16)
    mix_kernel[(1,)](x, count, out, SIZE=size)
    value, whole, col = x[:, None], count[:, None], torch.arange(16)
    sums = (value + 1) + (whole + 1) + (whole + 1.5) * (col < 3)
    assert torch.equal(out, torch.where(whole < 2, sums + col, -1.0))


def test_maximum_drops_nan():
    x, y = torch.full((16,), float("nan")), torch.ones(16)
    assert torch.equal(applied("maximum", x, y), y)


@triton.jit
def multiply_kernel(a, b, out, TERMS: tl.constexpr, PRECISION: tl.constexpr):
    row, term = tl.arange(0, 16), tl.arange(0, TERMS)
    a_tile = tl.load(a + row[:, None] * TERMS + term[None, :])
    b_tile = tl.load(b + term[:, None] * 16 + row[None, :])
    total = tl.dot(a_tile, b_tile, input_precision=PRECISION)
    tl.store(out + row[:, None] * 16 + row[None, :], total)


def multiplied(a, b, precision):
    out = torch.empty(16, 16)
    multiply_kernel[(1,)](a, b, out, TERMS=a.shape[1], PRECISION=precision)
    return out


def test_precision_of_products():
    a, b = values(torch.float32, 256).view(16, 16), values(torch.float32, 256, 1).view(16, 16)
    exact = a.double() @ b.double()
    scale = a.double().abs() @ b.double().abs()
    errors = {
        precision: ((multiplied(a, b, precision) - exact).abs() / scale).max().item()
        for precision in ("ieee", "tf32x3", "tf32")
    }
    assert errors["ieee"] < 3e-7 and errors["tf32x3"] < 6e-7
    assert 3e-4 < errors["tf32"] < 2e-3  # cut off, not rounded


def test_products_of_fewer_terms_than_a_gpu_takes_are_refused():
    with pytest.raises(InterpreterError, match="8 terms: a GPU needs 16"):
        multiplied(torch.ones(16, 8), torch.ones(8, 16), "ieee")


@triton.jit
def move_kernel(x, out, size, shift, STEP: tl.constexpr, MASKED: tl.constexpr):
    at = tl.program_id(0) * STEP + tl.arange(0, 16)
    value = tl.load(x + at + shift, at + shift < size, 0.0) if MASKED else tl.load(x + at + shift)
    tl.store(out + at, value, at < size)


@triton.jit
def gather_kernel(x, out):
    at = tl.arange(0, 16)
    tl.store(out + at // 2, tl.load(x + at))


@triton.jit
def atomic_kernel(x, out):
    tl.atomic_add(out + tl.arange(0, 16) * 0, tl.load(x + tl.arange(0, 16)))


@triton.jit
def narrow_sum_kernel(x, out):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, 16)).to(tl.float16), 0))


def test_bounds_are_kept():
    x, out = values(torch.float32, 30), torch.empty(30)
    move_kernel[(2,)](x, out, 30, 0, STEP=16, MASKED=True)
    assert torch.equal(out, x)
    with pytest.raises(InterpreterError, match="a read out of bounds, 3 elements"):
        move_kernel[(2,)](x, out, 30, 1, STEP=16, MASKED=False)
    with pytest.raises(InterpreterError, match="a read out of bounds, 1 elements"):
        move_kernel[(1,)](x[1:], out, 30, -1, STEP=16, MASKED=True)
    with pytest.raises(InterpreterError, match="a write out of bounds, 2 elements"):
        move_kernel[(2,)](x, out[:28], 30, 0, STEP=16, MASKED=True)
    both = values(torch.float32, 60)  # one begins where the other ends
    with pytest.raises(InterpreterError, match="a read out of bounds, 3 elements"):
        move_kernel[(2,)](both[:30], both[30:], 30, 1, STEP=16, MASKED=False)


def test_two_writes_to_one_place_are_refused():
    x = values(torch.float32, 30)
    with pytest.raises(InterpreterError, match="two programs write to one place"):
        move_kernel[(2,)](x, torch.empty(30), 30, 0, STEP=8, MASKED=True)
    with pytest.raises(InterpreterError, match="two elements to one place"):
        gather_kernel[(1,)](x, torch.empty(30))


def test_sums_in_no_fixed_order_or_in_16_bits_are_refused():
    with pytest.raises(InterpreterError, match="an atomic operation"):
        atomic_kernel[(1,)](values(torch.float32), torch.zeros(16))
    with pytest.raises(InterpreterError, match="a sum kept in fp16"):
        narrow_sum_kernel[(1,)](values(torch.float32), torch.zeros(1))


def test_first_and_last_program():
    x, out = values(torch.float32, 62), torch.zeros(62)
    with interpreter.first_and_last_program():
        move_kernel[(4,)](x, out, 62, 0, STEP=16, MASKED=True)
    assert torch.equal(out, torch.cat([x[:16], torch.zeros(32), x[48:]]))
