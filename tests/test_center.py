"""What is peculiar to center: accuracy, float16's range, layouts of axes, its module."""

import copy
import itertools
import math

import pytest
import support
import torch

import blockops
from blockops import Centered
from blockops.ops.center.cases import center_case

SHAPE = (3, 4, 2, 5)


def normal(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def axes_of(shape):
    axes = range(len(shape))
    return [c for count in range(1, len(shape) + 1) for c in itertools.combinations(axes, count)]


@pytest.mark.parametrize("dim", axes_of(SHAPE), ids=str)
def test_every_set_of_axes(dim):
    x = normal(*SHAPE)
    y = blockops.center(x, dim)
    torch.testing.assert_close(y, x - x.mean(dim, keepdim=True))
    assert y.is_contiguous() and (y.mean(dim).abs() < 1e-15).all()
    from_the_end = tuple(axis - len(SHAPE) for axis in reversed(dim))
    assert torch.equal(blockops.center(x, from_the_end), y)


def test_ways_to_name_axes():
    x = normal(*SHAPE)
    everything = x - x.mean()
    for dim in (None, (), [], (0, 1, 2, 3)):
        torch.testing.assert_close(blockops.center(x, dim), everything)
    assert torch.equal(blockops.center(x, 1), blockops.center(x, (1,)))
    assert torch.equal(blockops.center(x, [1, 2]), blockops.center(x, (1, 2)))
    assert torch.equal(blockops.center(torch.tensor(3.0), -1), torch.tensor(0.0))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
def test_empty_keeps_its_shape(shape):
    for dim in (None, *range(len(shape))):
        x = torch.empty(shape, requires_grad=True)
        y = blockops.center(x, dim)
        assert y.shape == shape
        y.sum().backward()
        assert x.grad.shape == shape


LONG = [((300_000,), None), ((70_000, 5), 0), ((3, 200_000), 1), ((50, 3, 700), (0, 2))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "dim"), LONG)
def test_a_large_offset_costs_no_digits(shape, dim, dtype):
    """At an offset of 1e3, where a chain of float32 sums would be off by more."""
    case = center_case("offset", shape, dim)
    x = (1e3 + normal(*shape)).to(dtype)
    arguments, grad = {"x": x}, (1e3 + normal(*shape, seed=1)).to(dtype)
    outputs = support.outputs_of(support.public(case), arguments, grad)
    support.assert_outputs_close(outputs, case, arguments, grad)


@pytest.mark.parametrize(("shape", "dim"), LONG)
def test_float16_does_not_overflow(shape, dim):
    x = torch.full(shape, 6e4, dtype=torch.float16)
    assert (blockops.center(x, dim) == 0).all()


@pytest.mark.parametrize(
    ("shape", "dim", "dtype", "error"),
    [
        ((8_400_001,), None, torch.float32, 4e-7),
        ((2000, 4301), 1, torch.float32, 4e-7),
        ((9, 1_000_001), 1, torch.float32, 4e-7),
        ((4301, 2000), 0, torch.float32, 4e-7),
        ((280_001, 31), 0, torch.float32, 4e-7),
        ((3, 1000, 3001), (0, 2), torch.float32, 4e-7),
        ((5, 3001, 600), 1, torch.float32, 4e-7),
        ((1000, 4301), 1, torch.float64, 1e-15),
        ((2, 8_400_001), 1, torch.bfloat16, 2**-8),
    ],
    ids=str,
)
def test_large_results(shape, dim, dtype, error):
    """In memory that was used before they are written past the cache, in fresh memory not."""
    x = normal(*shape, dtype=dtype)
    place = blockops.center(x, dim).fill_(math.nan).data_ptr()  # or what was there would be right
    y = blockops.center(x, dim)
    assert y.data_ptr() == place and y.nbytes >= 32 << 20
    mean = x.double().mean(() if dim is None else dim, keepdim=True)
    torch.testing.assert_close(y, x - mean, rtol=0, atol=error * x.abs().max(), check_dtype=False)


def test_it_is_its_own_derivative():
    x = normal(6, 7).requires_grad_()
    (first,) = torch.autograd.grad(blockops.center(x, 0), x, grad := normal(6, 7, seed=1))
    assert torch.equal(first, blockops.center(grad, 0))
    v, w = normal(6, 7, seed=2), normal(6, 7, seed=3)
    left, right = (blockops.center(v) * w).sum(), (v * blockops.center(w)).sum()
    torch.testing.assert_close(left, right)  # self-adjoint
    torch.testing.assert_close(
        blockops.center(blockops.center(v)), blockops.center(v)
    )  # idempotent


def test_nothing_is_saved_for_backward():
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with hooks:
        blockops.center(normal(6, 7).requires_grad_(), 0).sum().backward()
    assert saved == []


def test_strides_of_the_input_do_not_matter():
    x = normal(4, 6, 5, 3).to(memory_format=torch.channels_last)
    y = blockops.center(x, (2, 3))
    torch.testing.assert_close(y, x - x.mean((2, 3), keepdim=True))
    assert y.is_contiguous()


def test_module():
    x = normal(*SHAPE)
    for dim in (None, 1, (0, -1)):
        module = Centered(dim)
        assert repr(module) == f"Centered(dim={dim})"
        assert list(module.parameters()) == [] and module.state_dict() == {}
        assert torch.equal(copy.deepcopy(module)(x), blockops.center(x, dim))
    with pytest.raises(
        TypeError, match="^center: dim must be None, an int or a tuple of ints, got"
    ):
        Centered("rows")
