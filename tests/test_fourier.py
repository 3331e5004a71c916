"""fourier_coefficients and its module, against the matrix of the transform in float64."""

import copy
import math
import pickle

import pytest
import torch

import blockops

NORMS = ("backward", "ortho", "forward")
SIZES = (1, 2, 3, 8, 9, 30)


def normal(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def formula(x, dim, norm):
    """X_k = c sum_j x_j exp(-2 pi i j k / n), by a matrix."""
    n = x.shape[dim]
    c = {"backward": 1, "ortho": 1 / math.sqrt(n), "forward": 1 / n}[norm]
    j, k = (torch.arange(count, dtype=torch.float64) for count in (n, n // 2 + 1))
    angle = -2 * math.pi * torch.outer(j, k) / n
    matrix = torch.polar(torch.full_like(angle, c), angle)
    return (x.to(torch.complex128).movedim(dim, -1) @ matrix).movedim(-1, dim)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n", SIZES)
def test_formula(n, norm):
    x = normal(4, n)
    expected = formula(x, -1, norm)
    torch.testing.assert_close(blockops.fourier_coefficients(x, norm=norm), expected)
    actual = blockops.fourier_coefficients(x.float(), norm=norm)
    assert actual.dtype == torch.complex64
    torch.testing.assert_close(actual, expected.to(torch.complex64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_dims(dim):
    x = normal(5, 6, 7)
    for layout in (x, x.transpose(0, 2).contiguous().transpose(0, 2), normal(5, 6, 14)[..., ::2]):
        actual = blockops.fourier_coefficients(layout, dim, "forward")
        torch.testing.assert_close(actual, formula(layout, dim, "forward"))


def test_defaults_are_the_last_dim_and_ortho():
    x = normal(3, 5)
    assert torch.equal(blockops.fourier_coefficients(x), torch.fft.rfft(x, dim=1, norm="ortho"))
    assert torch.equal(blockops.FourierCoefficients()(x), blockops.fourier_coefficients(x))


@pytest.mark.parametrize("n", SIZES)
def test_parseval(n):
    x = normal(4, n)
    squares = blockops.fourier_coefficients(x).abs() ** 2
    twice = 2 * squares.sum(-1) - squares[:, 0] - (squares[:, -1] if n % 2 == 0 else 0)
    torch.testing.assert_close(twice, (x**2).sum(-1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n", SIZES)
def test_irfft_inverts_it(n, norm):
    x = normal(4, n, 3)
    coefficients = blockops.fourier_coefficients(x, 1, norm)
    torch.testing.assert_close(torch.fft.irfft(coefficients, n, 1, norm), x)


@pytest.mark.parametrize(("shape", "dim", "expected"), [((0, 8), -1, (0, 5)), ((7, 0), 0, (4, 0))])
def test_empty_batch(shape, dim, expected):
    x = torch.ones(shape, requires_grad=True)
    y = blockops.fourier_coefficients(x, dim)
    assert y.shape == expected and y.dtype == torch.complex64
    y.abs().sum().backward()
    assert x.grad.shape == shape


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # PyTorch's own, in forward mode
@pytest.mark.parametrize("n", [5, 6])
@pytest.mark.parametrize("norm", NORMS)
def test_gradients(n, norm):
    x = normal(2, n, 2).requires_grad_()

    def function(x):
        return blockops.fourier_coefficients(x, 1, norm)

    torch.autograd.gradcheck(function, x, check_forward_ad=True)
    torch.autograd.gradgradcheck(function, x)


def test_gradient_formula():
    x, g = normal(6).requires_grad_(), torch.polar(normal(4).abs(), normal(4))
    (grad,) = torch.autograd.grad(blockops.fourier_coefficients(x), x, g)
    j, k = (torch.arange(count, dtype=torch.float64) for count in (6, 4))
    angle = 2 * math.pi * torch.outer(j, k) / 6
    expected = (torch.polar(torch.ones_like(angle), angle) @ g).real / math.sqrt(6)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_whole(backend):
    torch.compiler.reset()
    module, x = blockops.FourierCoefficients(1), normal(3, 6, 4)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), formula(x, 1, "ortho"))
    assert compiled(x[:0]).shape == (0, 4, 4)


def test_vmap():
    x = normal(3, 6, 4)
    actual = torch.func.vmap(blockops.FourierCoefficients(0), in_dims=1)(x)
    torch.testing.assert_close(actual, formula(x, 0, "ortho").transpose(0, 1))


# ---- dtypes and devices ----


def test_autocast_computes_in_float32():
    for dtype in (torch.bfloat16, torch.float16):
        x = normal(3, 6).to(dtype)
        expected = torch.fft.rfft(x.float(), norm="ortho")
        with torch.autocast("cpu"):
            assert torch.equal(blockops.fourier_coefficients(x), expected)
            empty = blockops.fourier_coefficients(x[:0])
            assert empty.shape == (0, 4) and empty.dtype == torch.complex64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_meta_tensors(dtype):
    y = blockops.fourier_coefficients(torch.empty(3, 6, dtype=dtype, device="meta"))
    assert y.is_meta and y.shape == (3, 4) and y.dtype == dtype.to_complex()


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_float16_is_served_on_cuda():
    device = "cuda" if torch.cuda.is_available() else "meta"
    x = normal(3, 8).to(device, torch.float16)
    y = blockops.fourier_coefficients(x)
    assert y.dtype == torch.complex32 and y.shape == (3, 5)
    if device == "cuda":
        expected = formula(x.cpu(), -1, "ortho").to(torch.complex64)
        torch.testing.assert_close(y.cpu().to(torch.complex64), expected, rtol=1e-2, atol=1e-2)


# ---- the module ----


def test_module():
    module, x = blockops.FourierCoefficients(dim=0, norm="forward"), normal(6, 3)
    assert list(module.state_dict()) == [] and list(module.parameters()) == []
    assert repr(module) == "FourierCoefficients(dim=0, norm='forward')"
    for copied in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(copied(x), formula(x, 0, "forward"))


# ---- refusals ----

DTYPE = (
    "fourier_coefficients: x must be float64 or float32, or float16 on cuda with a power of two "
    "along dim, got "
)
X = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0],), TypeError, "fourier_coefficients: x must be a tensor, got list"),
        *(
            ((X.to(dtype),), TypeError, f"{DTYPE}{str(dtype).removeprefix('torch.')} on cpu")
            for dtype in (
                torch.bfloat16,
                torch.float16,
                torch.int64,
                torch.bool,
                torch.complex64,
                torch.float8_e4m3fn,
            )
        ),
        ((X.bfloat16().to("meta"),), TypeError, DTYPE + "bfloat16 on meta"),
        (
            (torch.ones(()),),
            ValueError,
            "fourier_coefficients: x must have at least one dimension, got ()",
        ),
        (
            (torch.ones(3, 0),),
            ValueError,
            "fourier_coefficients: x must have at least one value along dim -1, got (3, 0)",
        ),
        ((X, 1.0), TypeError, "fourier_coefficients: dim must be an int, got float"),
        ((X, True), TypeError, "fourier_coefficients: dim must be an int, got bool"),
        ((X, (0, 1)), TypeError, "fourier_coefficients: dim must be an int, got tuple"),
        *(
            (
                (X, dim),
                IndexError,
                f"fourier_coefficients: dim must be in [-2, 1] for x of 2 dimensions, got {dim}",
            )
            for dim in (2, -3)
        ),
        *(
            (
                (X, -1, norm),
                ValueError,
                f"fourier_coefficients: norm must be one of backward, ortho, forward, got {norm!r}",
            )
            for norm in ("orthogonal", None)
        ),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error) as raised:
        blockops.fourier_coefficients(*arguments)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.0,), TypeError, "FourierCoefficients: dim must be an int, got float"),
        (
            (0, "l2"),
            ValueError,
            "FourierCoefficients: norm must be one of backward, ortho, forward, got 'l2'",
        ),
    ],
)
def test_refusals_of_the_module(arguments, error, message):
    with pytest.raises(error) as raised:
        blockops.FourierCoefficients(*arguments)
    assert str(raised.value) == message
