"""The Fourier coefficients of real data: PyTorch's own transform behind blockops' checks. There is
no kernel to choose, so it goes through no backend."""

import torch
from torch import Tensor

from ..._checks import check_axes, check_int, sizes_text

NORMS = ("backward", "ortho", "forward")
RESULT_DTYPES = {
    torch.float64: torch.complex128,
    torch.float32: torch.complex64,
    torch.float16: torch.complex32,
}


def fourier_coefficients(x: Tensor, dim: int = -1, norm: str = "ortho") -> Tensor:
    """The Fourier coefficients X_k = c sum_j x_j exp(-2 pi i j k / n), k = 0 .. floor(n / 2), of
    each line of n real values along dim; the others are X_{n-k} = conj(X_k).

    x: any shape with n >= 1 along dim; the other sizes may be 0. float64 or float32, or float16 on
    CUDA where n is a power of two. CPU autocast computes bfloat16 and float16 in float32. dim: an
    axis of x, negative from the last. norm: c is 1 for "backward", 1 / sqrt(n) for "ortho", 1 / n
    for "forward"; torch.fft.irfft(..., n, dim, norm) inverts each. Returns x's shape with
    floor(n / 2) + 1 along dim, complex in x's precision.

    Derivative: PyTorch's, of any order, with torch.func transforms and forward-mode AD:
    grad_x_j = c Re sum_k g_k exp(2 pi i j k / n).

    Cost: that of torch.fft.rfft, about 2.5 n log2(n) FLOPs for each line when n has small prime
    factors; extra memory as the library needs it, for copies of x and of the result.

    Raises TypeError for no tensor, another dtype or a dim that is no int, ValueError for a tensor
    without dimensions, n = 0 or another norm, IndexError for a dim that x does not have.

    Method: torch.fft.rfft, which is MKL or pocketfft on the CPU and cuFFT on CUDA.
    """
    check_int("fourier_coefficients", "dim", dim)
    check_norm("fourier_coefficients", norm)
    x = _checked(x, dim)
    if x.numel() == 0:  # MKL refuses it
        return x.narrow(dim, 0, x.shape[dim] // 2 + 1).to(RESULT_DTYPES[x.dtype])
    return torch.fft.rfft(x, dim=dim, norm=norm)


def check_norm(op: str, norm: str) -> None:
    if norm not in NORMS:
        raise ValueError(f"{op}: norm must be one of {', '.join(NORMS)}, got {norm!r}")


def _checked(x: Tensor, dim: int) -> Tensor:
    """x, in the dtype that the transform takes."""
    if not isinstance(x, Tensor):
        got = type(x).__name__
        raise TypeError(f"fourier_coefficients: x must be a tensor, got {got}")
    on_cpu = x.device.type == "cpu"
    if x.dtype in (torch.bfloat16, torch.float16) and on_cpu and torch.is_autocast_enabled("cpu"):
        x = x.float()  # as autocast does with torch.fft.rfft
    if x.dtype not in RESULT_DTYPES or (x.dtype == torch.float16 and on_cpu):
        got = f"{x.dtype} on {x.device.type}".removeprefix("torch.")
        raise TypeError(
            "fourier_coefficients: x must be float64 or float32, or float16 on cuda with a power "
            f"of two along dim, got {got}"
        )
    if x.dim() == 0:
        raise ValueError("fourier_coefficients: x must have at least one dimension, got ()")
    check_axes("fourier_coefficients", x, dim)
    if x.shape[dim] == 0:
        raise ValueError(
            f"fourier_coefficients: x must have at least one value along dim {dim}, "
            f"got {sizes_text(x.shape)}"
        )
    return x
