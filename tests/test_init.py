"""two_sided_uniform_: its distribution in every dtype, its random numbers, and what it refuses."""

import math

import pytest
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

import blockops

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]
COUNT = 200_000


def filled(*arguments, shape=COUNT, dtype=torch.float32, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.full((shape,) if isinstance(shape, int) else shape, math.nan).to(dtype)
    return blockops.init.two_sided_uniform_(tensor, *arguments, generator=generator, **options)


def rounded(value, dtype):
    return torch.tensor(value, dtype=torch.float64).to(dtype).double()


def assert_share(mask, probability):
    """The share of True is the probability within 5 standard deviations."""
    deviation = math.sqrt(probability * (1 - probability) / mask.numel())
    assert abs(mask.double().mean() - probability) <= 5 * deviation


# ---- distribution ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.003, 0.5, 0.9, 1.0])
def test_signs_zeros_and_bounds(dtype, sparsity):
    values = filled(sparsity=sparsity, dtype=dtype)
    assert values.dtype == dtype
    values = values.double()
    assert_share(values == 0, sparsity)
    assert_share(values > 0, (1 - sparsity) / 2)
    assert_share(values < 0, (1 - sparsity) / 2)
    magnitudes = values[values != 0].abs()
    assert ((magnitudes >= 5) & (magnitudes <= 10)).all()


@pytest.mark.parametrize("dtype", DTYPES[:4], ids=str)
def test_uniform_on_both_sides(dtype):
    values = filled(4.0, 20.0, 0.2, dtype=dtype).double()
    for side in (values[values > 0], -values[values < 0]):
        for quarter in (4, 8, 12, 16):
            assert_share((side > quarter) & (side <= quarter + 4), 0.25)


def test_default_arguments():
    torch.manual_seed(0)
    actual = blockops.init.two_sided_uniform_(torch.empty(100))
    assert torch.equal(actual, filled(5.0, 10.0, 0.5, shape=100))
    assert 5 <= actual[actual != 0].abs().min() and actual.abs().max() <= 10


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("low", "high"), [(0.1, 0.3), (5.03, 5.05), (0.7, 0.7), (9.97, 10.03), (0.0, 0.0)]
)
def test_bounds_that_the_dtype_has_not(dtype, low, high):
    magnitudes = filled(low, high, 0.0, dtype=dtype).double().abs()
    assert magnitudes.min() >= rounded(low, dtype) and magnitudes.max() <= rounded(high, dtype)


def test_the_largest_bound():
    for dtype in DTYPES:
        values = filled(0.0, torch.finfo(dtype).max, 0.0, dtype=dtype).double()
        assert values.isfinite().all() and values.abs().max() > torch.finfo(dtype).max / 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("low", "high"), [(5.0, 10.0), (0.1, 0.3), (0.7, 0.7)])
def test_rare_draws(dtype, low, high, monkeypatch):
    """0, the ends of the range and both sides of the sparsity, which chance seldom meets."""
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda u, *_, generator: u.copy_(draws))
    for sparsity in torch.linspace(0, 1, 101, dtype=torch.float64).tolist():
        near = torch.tensor([sparsity, 1.0], dtype=dtype)
        below = near.nextafter(torch.zeros(2, dtype=dtype))
        draws = torch.cat([torch.zeros(1, dtype=dtype), near, below])
        draws = torch.cat([-draws, draws])[:-3]
        magnitudes = blockops.init.two_sided_uniform_(
            torch.empty(len(draws), dtype=dtype), low, high, sparsity
        ).abs()
        zero = (draws.abs() < near[0]) | (sparsity == 1)
        assert torch.equal(magnitudes == 0, zero)
        inside = (magnitudes >= low) & (magnitudes <= high)  # both as rounded to the dtype
        assert (inside | zero).all()


# ---- random numbers ----


def test_a_seed_gives_its_values_in_every_dtype_and_layout():
    expected = filled(shape=(40, 30))
    assert torch.equal(filled(shape=(40, 30)), expected)
    assert not torch.equal(filled(shape=(40, 30), seed=1), expected)
    assert torch.equal(filled(shape=(40, 30), dtype=torch.bfloat16), expected.bfloat16())
    for tensor in (torch.ones(30, 40).t(), torch.ones(40, 60)[:, ::2], torch.ones(40, 31)[:, 1:]):
        generator = torch.Generator().manual_seed(0)
        assert torch.equal(blockops.init.two_sided_uniform_(tensor, generator=generator), expected)


def test_writes_only_to_the_tensor():
    whole = torch.full((40, 60), 77.0)
    blockops.init.two_sided_uniform_(whole[:, ::2])
    assert (whole[:, 1::2] == 77).all() and (whole[:, ::2] != 77).all()


def test_a_generator_leaves_the_global_one_alone():
    before = torch.random.get_rng_state()
    filled(shape=9)
    assert torch.equal(torch.random.get_rng_state(), before)
    blockops.init.two_sided_uniform_(torch.empty(9))
    assert not torch.equal(torch.random.get_rng_state(), before)


# ---- tensors ----


def test_a_parameter_in_place():
    parameter = nn.Parameter(torch.zeros(50, 40))
    assert blockops.init.two_sided_uniform_(parameter, sparsity=0) is parameter
    assert parameter.is_leaf and parameter.requires_grad and parameter.grad_fn is None
    assert (parameter.abs() >= 5).all()
    assert blockops.init.two_sided_uniform_(parameter, sparsity=1) is parameter
    assert (parameter == 0).all() and parameter.grad_fn is None


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 3, 4)])
def test_shapes(shape):
    values = filled(sparsity=0, shape=shape)
    assert values.shape == shape and (values.abs() >= 5).all()


def test_meta_tensors():
    before = torch.random.get_rng_state()
    tensor = torch.empty(3, 4, device="meta", dtype=torch.float16)
    assert blockops.init.two_sided_uniform_(tensor) is tensor and tensor.is_meta
    assert torch.equal(torch.random.get_rng_state(), before)


def test_apply_to_a_model():
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Sequential(nn.Linear(30, 2)))
    biases = [model[0].bias.clone(), model[2][0].bias.clone()]

    def fill(module):
        if isinstance(module, nn.Linear):
            blockops.init.two_sided_uniform_(module.weight)

    model.apply(fill)
    for layer, bias in zip((model[0], model[2][0]), biases, strict=True):
        magnitudes = layer.weight[layer.weight != 0].abs()
        assert 0 < magnitudes.numel() < layer.weight.numel()
        assert 5 <= magnitudes.min() and magnitudes.max() <= 10
        assert torch.equal(layer.bias, bias)


# ---- refusals ----


def high_text(got, low=5.0, dtype="float32", largest="3.4028234663852886e+38"):
    return (
        f"high must be at least low = {low} and at most {dtype}'s largest value {largest}, "
        f"got {got}"
    )


LOW = "low must be finite and at least 0, got "
SPARSITY = "sparsity must be from 0 to 1, got "
SIGNED = "tensor must be signed floating-point, got "


@pytest.mark.parametrize(
    ("tensor", "options", "error", "message"),
    [
        ([1.0], {}, TypeError, "tensor must be a tensor, got list"),
        (torch.ones(3, dtype=torch.int64), {}, TypeError, SIGNED + "int64"),
        (torch.ones(3, dtype=torch.complex64), {}, TypeError, SIGNED + "complex64"),
        (torch.ones(3).to(torch.float8_e8m0fnu), {}, TypeError, SIGNED + "float8_e8m0fnu"),
        (
            UninitializedParameter(),
            {},
            ValueError,
            "tensor must be initialized, got a lazy module's parameter; the module needs its "
            "first batch before",
        ),
        (torch.ones(3), {"low": -1.0}, ValueError, LOW + "-1.0"),
        (torch.ones(3), {"low": math.nan}, ValueError, LOW + "nan"),
        (torch.ones(3), {"low": math.inf, "high": math.inf}, ValueError, LOW + "inf"),
        (torch.ones(3), {"high": 4.0}, ValueError, high_text("4.0")),
        (torch.ones(3), {"high": math.nan}, ValueError, high_text("nan")),
        (torch.ones(3), {"high": math.inf}, ValueError, high_text("inf")),
        (
            torch.ones(3).half(),
            {"low": 1, "high": 65505},
            ValueError,
            high_text("65505", 1, "float16", "65504.0"),
        ),
        (torch.ones(3), {"sparsity": -0.1}, ValueError, SPARSITY + "-0.1"),
        (torch.ones(3), {"sparsity": 1.5}, ValueError, SPARSITY + "1.5"),
        (torch.ones(3), {"sparsity": math.nan}, ValueError, SPARSITY + "nan"),
    ],
)
def test_refusals(tensor, options, error, message):
    state = torch.random.get_rng_state()
    with pytest.raises(error) as raised:
        blockops.init.two_sided_uniform_(tensor, **options)
    assert str(raised.value) == f"two_sided_uniform_: {message}"
    assert torch.equal(torch.random.get_rng_state(), state)
    if type(tensor) is torch.Tensor:
        assert (tensor.to(torch.complex64) == 1).all()


def test_a_lazy_module_after_its_first_batch():
    module = nn.LazyLinear(3)
    with pytest.raises(ValueError, match="needs its first batch"):
        blockops.init.two_sided_uniform_(module.weight)
    module(torch.ones(2, 4))
    blockops.init.two_sided_uniform_(module.weight, sparsity=0)
    assert (module.weight.abs() >= 5).all()
