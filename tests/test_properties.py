"""Whatever the shapes, leading dimensions and strides: the formula, and the symmetries it has."""

import support
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import blockops
from blockops.ops.bilinear.cases import bilinear_case, quadratic_case
from blockops.ops.center.cases import center_case
from blockops.ops.linear_relu.cases import linear_relu_case

quick = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)

features = st.integers(0, 40)
leadings = st.lists(st.integers(0, 9), max_size=3).map(tuple)
dtypes = st.sampled_from(support.DTYPES)


@st.composite
def center_cases(draw):
    """Up to four axes, and any of them to average over."""
    shape = tuple(draw(st.lists(st.integers(0, 40), min_size=1, max_size=4)))
    axes = st.sets(st.integers(0, len(shape) - 1), min_size=1).map(lambda found: tuple(found))
    return center_case("any", shape, draw(st.none() | st.integers(-len(shape), -1) | axes))


cases = st.one_of(
    center_cases(),
    st.builds(linear_relu_case, st.just("any"), leadings, features, features, st.booleans()),
    st.builds(quadratic_case, st.just("any"), leadings, features, features, st.booleans()),
    st.builds(bilinear_case, st.just("any"), leadings, features, features, features, st.booleans()),
)


@st.composite
def restrided(draw, tensor):
    """The values of a tensor with its axes in any order in memory, and gaps and a lead-in."""
    order = draw(st.permutations(range(tensor.dim())))
    gap = draw(st.integers(1, 3))
    offset = draw(st.integers(0, 3))
    stride, strides = gap, [0] * tensor.dim()
    for axis in order:
        strides[axis] = stride
        stride *= max(tensor.shape[axis], 1)
    buffer = tensor.new_full((offset + stride,), support.SENTINEL)
    return buffer.as_strided(tensor.shape, strides, offset).copy_(tensor)


@quick
@given(case=cases, dtype=dtypes, data=st.data())
def test_any_shape_and_strides(case, dtype, data):
    arguments, grad = support.inputs_of(case, dtype, integers=True)
    arguments = {name: data.draw(restrided(tensor)) for name, tensor in arguments.items()}
    grad = data.draw(restrided(grad))
    outputs = support.outputs_of(support.public(case), arguments, grad)
    support.assert_outputs_exact(outputs, case, arguments, grad)


@quick
@given(case=cases, dtype=dtypes)
def test_any_shape_is_accurate(case, dtype):
    arguments, grad = support.inputs_of(case, dtype)
    outputs = support.outputs_of(support.public(case), arguments, grad)
    support.assert_outputs_close(outputs, case, arguments, grad)


@quick
@given(case=center_cases(), shift=st.integers(-1000, 1000))
def test_a_shift_is_centered_away(case, shift):
    x = case.tensors(torch.float64, integers=True)["x"]
    centered = support.public(case)
    torch.testing.assert_close(centered(x + shift), centered(x), rtol=0, atol=1e-9)


def square(rows, n, m, dtype=torch.float32):
    tensors = quadratic_case("square", (rows,), n, m).tensors(dtype)
    return tensors["x"], tensors["weight"]


rows = st.integers(1, 300)


@quick
@given(rows, features, features)
def test_only_the_symmetric_part_of_the_weight_matters(rows, n, m):
    x, weight = square(rows, n, m)
    swapped = blockops.quadratic(x, weight.transpose(0, 1))
    torch.testing.assert_close(swapped, blockops.quadratic(x, weight), rtol=1e-4, atol=1e-5)
    antisymmetric = weight - weight.transpose(0, 1)
    torch.testing.assert_close(
        blockops.quadratic(x, antisymmetric), torch.zeros(rows, m), rtol=0, atol=1e-5
    )


@quick
@given(rows, features, features)
def test_the_gradient_of_the_weight_is_symmetric(rows, n, m):
    x, weight = square(rows, n, m)
    weight.requires_grad_()
    blockops.quadratic(x, weight).square().sum().backward()
    torch.testing.assert_close(weight.grad, weight.grad.transpose(0, 1), rtol=1e-5, atol=1e-4)


@quick
@given(rows, features, features, st.integers(-8, 8))
def test_powers_of_two_scale_exactly(rows, n, m, power):
    x, weight = square(rows, n, m)
    y, factor = blockops.quadratic(x, weight), 2.0**power
    assert torch.equal(blockops.quadratic(factor * x, weight), factor**2 * y)
    assert torch.equal(blockops.quadratic(x, factor * weight), factor * y)
    assert torch.equal(blockops.quadratic(-x, weight), y)


@quick
@given(rows, features, features, features)
def test_swapping_the_inputs_swaps_the_weight(rows, n1, n2, m):
    x1, x2, weight = bilinear_case("any", (rows,), n1, n2, m).tensors().values()
    swapped = blockops.bilinear(x2, x1, weight.transpose(1, 2))
    torch.testing.assert_close(swapped, blockops.bilinear(x1, x2, weight), rtol=1e-4, atol=1e-5)


@quick
@given(rows, features, features, st.integers(0, 100))
def test_rows_do_not_depend_on_each_other(rows, n, m, seed):
    """A row's result is the same function of that row, whatever batch it stands in."""
    x, weight = square(rows, n, m, torch.float64)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    permuted = blockops.quadratic(x[order], weight)
    torch.testing.assert_close(permuted, blockops.quadratic(x, weight)[order])
