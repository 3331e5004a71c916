"""What is peculiar to linear_relu: its modules, PyTorch's twins, the ReLU's border, its memory."""

import copy

import pytest
import support
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedParameter

import blockops
from blockops import LazyLinearReLU, LinearReLU
from blockops.ops.linear_relu.cases import linear_relu_case

NAN, INF = float("nan"), float("inf")


def normal(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


# (B, n, m): the plain loops along the outputs, those along the features, ATen's product
SIZES = [(5, 7, 3), (2, 19, 9), (70, 40, 90)]


@pytest.mark.parametrize(("rows", "n", "m"), SIZES)
@pytest.mark.parametrize("bias", [False, True])
def test_linear_relu_is_relu_of_linear(rows, n, m, bias):
    x, weight = normal(rows, n), normal(m, n, seed=1)
    offset = normal(m, seed=2) if bias else None
    expected = torch.relu(F.linear(x, weight, offset))
    assert 0 < (expected == 0).double().mean() < 1
    torch.testing.assert_close(blockops.linear_relu(x, weight, offset), expected)


# Sizes on both sides of the plain loops' borders: rows, the weight's elements, the work; of their
# blocks of 16 and 64; of the loops along the features, for 8 to 512 of them (4 to 256 in float64)
# and at most 3 rows or at least 64 features; one part of the mask, and several.
BORDERS = [
    (64, 16, 15),
    (65, 16, 15),
    (1, 128, 128),
    (1, 128, 129),
    (16, 90, 91),
    (15, 128, 68),
    (17, 90, 91),
    (3, 65, 17),
    (2, 1, 130),
    (4, 63, 64),
    (4, 64, 65),
    (3, 3, 9),
    (3, 4, 5),
    (3, 7, 9),
    (3, 8, 8),
    (3, 9, 7),
    (4, 9, 7),
    (1, 256, 33),
    (2, 257, 33),
    (5, 512, 9),
    (2, 513, 31),
    (300, 3, 1000),
    (2000, 5, 33),
]


@pytest.mark.parametrize("dtype", support.DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n", "m"), BORDERS)
def test_borders_of_the_schedules(rows, n, m, dtype):
    case = linear_relu_case("border", (rows,), n, m)
    arguments, grad = support.inputs_of(case, dtype, integers=True)
    outputs = support.outputs_of(support.public(case), arguments, grad)
    support.assert_outputs_exact(outputs, case, arguments, grad)


# ---- the ReLU's border ----


@pytest.mark.parametrize(("rows", "n", "m"), SIZES)
def test_nan_and_infinity_as_torch_has_them(rows, n, m):
    """NaN stays, and lets the gradient through; -Inf gives 0 and stops it."""
    x, weight, bias = normal(rows, n), normal(m, n, seed=1), normal(m, seed=2)
    bias[0], bias[1], bias[2] = NAN, INF, -INF
    arguments = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    grad = normal(rows, m, seed=3)
    results = [
        function(*arguments) for function in (blockops.linear_relu, lambda *a: F.relu(F.linear(*a)))
    ]
    ours, theirs = ([y, *torch.autograd.grad(y, arguments, grad)] for y in results)
    assert ours[0][:, 0].isnan().all() and (ours[0][:, 2] == 0).all()
    assert ours[3][0] != 0 and ours[3][2] == 0
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("name", ["x", "weight"])
@pytest.mark.parametrize(("rows", "n"), [(2, 19), (5, 67), (5, 19)])
def test_an_infinity_stays_in_its_own_sums(rows, n, name):
    """Whichever feature has it: vectors reach over features that they must not count."""
    for i in range(n):
        arguments = {"x": normal(rows, n).abs(), "weight": normal(9, n, seed=1).abs()}
        arguments[name][1, i] = INF
        expected = torch.relu(F.linear(*arguments.values()))
        assert expected.isinf().any() and not expected.isnan().any()
        for dtype in (torch.float32, torch.float64):
            y = blockops.linear_relu(**{key: value.to(dtype) for key, value in arguments.items()})
            torch.testing.assert_close(y, expected.to(dtype), msg=f"{dtype}, feature {i}")


@pytest.mark.parametrize(("rows", "n", "m"), SIZES)
def test_the_gradient_at_zero_is_zero(rows, n, m):
    x, weight = torch.zeros(rows, n, requires_grad=True), torch.ones(m, n, requires_grad=True)
    y = blockops.linear_relu(x, weight)
    assert (y == 0).all()
    gradients = torch.autograd.grad(y.sum(), (x, weight))
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_of_an_empty_batch_are_zero(dtype):
    """Whatever the call before has left where sums are taken."""
    weight = normal(256, 20, dtype=dtype).requires_grad_()
    bias = normal(256, dtype=dtype).requires_grad_()
    for rows in (2, 0):
        y = blockops.linear_relu(torch.full((rows, 20), NAN, dtype=dtype), weight, bias)
        gradients = torch.autograd.grad(y, (weight, bias), torch.full_like(y, NAN))
    assert all((gradient == 0).all() for gradient in gradients)


def test_a_result_that_is_written_to_is_noticed():
    """Backward needs the result; changed in place, it must raise rather than be wrong."""
    x, weight = normal(5, 7), normal(3, 7, seed=1).requires_grad_()
    y = blockops.linear_relu(x, weight)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True)]
)
@pytest.mark.parametrize(("rows", "n", "m"), SIZES)
def test_gradients_that_are_not_wanted_are_empty(rows, n, m, wanted):
    x, weight, grad = normal(rows, n), normal(m, n, seed=1), normal(rows, m, seed=2)
    y = blockops.linear_relu(x, weight)
    every = torch.ops.blockops.linear_relu_backward(grad, x, weight, y)
    some = torch.ops.blockops.linear_relu_backward(grad, x, weight, y, wanted)
    for is_wanted, gradient, expected in zip(wanted, some, every, strict=True):
        assert torch.equal(gradient, expected) if is_wanted else gradient.shape == (0,)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_what_backward_does_not_need_may_change(frozen):
    """As with torch.nn.Linear: a first layer's weight, a frozen layer's input."""
    x, weight = normal(5, 7), normal(3, 7, seed=1)
    learning = weight if frozen == "x" else x
    changed = weight if frozen == "x" else x
    learning.requires_grad_()
    y = blockops.linear_relu(x, weight)
    (expected,) = torch.autograd.grad(y.sum(), learning, retain_graph=True)
    with torch.no_grad():
        changed.add_(1)
    (gradient,) = torch.autograd.grad(y.sum(), learning)
    assert torch.equal(gradient, expected) and expected.abs().max() > 0


# ---- modules ----


@pytest.mark.parametrize("bias", [False, True])
def test_state_dict_goes_both_ways(bias):
    x = normal(9, 4, dtype=torch.float32)
    ours, theirs = LinearReLU(4, 6, bias), nn.Linear(4, 6, bias)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x).relu())
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(theirs(x).relu(), ours(x))


def test_it_starts_with_the_values_of_torch_linear():
    torch.manual_seed(0)
    ours = LinearReLU(4, 6)
    torch.manual_seed(0)
    theirs = nn.Linear(4, 6)
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)


def test_module():
    module = LinearReLU(4, 3, dtype=torch.float64)
    assert isinstance(module, nn.Linear)
    assert repr(module) == "LinearReLU(in_features=4, out_features=3, bias=True)"
    x = normal(2, 5, 4)
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x), module(x)) and module(x).shape == (2, 5, 3)
    half = module.to(torch.bfloat16)(x.bfloat16())
    torch.testing.assert_close(half.double(), twin(x), rtol=2e-2, atol=2e-2)
    with pytest.raises(
        ValueError, match="weight must be \\(m, n\\) with n = x.size\\(-1\\) = 5, got"
    ):
        twin(normal(2, 5))


@pytest.mark.parametrize("bias", [False, True])
def test_lazy_module_reads_its_size_off_the_first_batch(bias):
    module = LazyLinearReLU(3, bias=bias, dtype=torch.float64)
    assert isinstance(module.weight, UninitializedParameter) and module.in_features == 0
    y = module(normal(6, 4))
    assert type(module) is LinearReLU and (module.in_features, module.out_features) == (4, 3)
    assert module.weight.shape == (3, 4) and 0 < module.weight.abs().max() <= 0.5
    assert (module.bias is not None) == bias
    torch.testing.assert_close(y, blockops.linear_relu(normal(6, 4), module.weight, module.bias))


def test_lazy_module_loads_a_state_dict():
    lazy, full, x = LazyLinearReLU(3), nn.Linear(4, 3), normal(6, 4, dtype=torch.float32)
    lazy.load_state_dict(full.state_dict())
    torch.testing.assert_close(lazy(x), full(x).relu())
    assert type(lazy) is LinearReLU and lazy.in_features == 4


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: LinearReLU(-1, 3),
            ValueError,
            "LinearReLU: in_features must be at least 0, got -1",
        ),
        (
            lambda: LinearReLU(3, 2.0),
            TypeError,
            "LinearReLU: out_features must be an int, got float",
        ),
        (lambda: LazyLinearReLU(-1), ValueError, "LazyLinearReLU: out_features must be at least 0"),
        (
            lambda: LazyLinearReLU(3)(torch.ones(())),
            ValueError,
            "LazyLinearReLU: input must have at least one dimension, got \\(\\)",
        ),
    ],
)
def test_what_makes_no_module(make, error, message):
    with pytest.raises(error, match=message):
        make()
