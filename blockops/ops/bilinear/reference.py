"""The formulas of the bilinear family in ordinary PyTorch ops: read this first.

These are the truth that every kernel is tested against (in float64), and they serve what kernels
cannot: torch.func transforms, forward-mode AD, and devices without a kernel. They are plain and
slow: einsum keeps an intermediate of B*n*m elements.
"""

import torch
from torch import Tensor

from ..._checks import check_bias, check_like, check_sizes, check_vector_input, sizes_text


def quadratic(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_k = sum_ij weight_ijk x_i x_j + bias_k."""
    check_vector_input("quadratic", "x", x)
    check_like("quadratic", "x", x, weight=weight, bias=bias)
    n = x.shape[-1]
    ok = weight.dim() == 3 and weight.shape[0] == n and weight.shape[1] == n
    check_sizes("quadratic", "weight", weight, ok, f"(n, n, m) with n = x.size(-1) = {n}")
    check_bias("quadratic", bias, weight.shape[2], 2)
    y = torch.einsum("...i,ijk,...j->...k", x, weight, x)
    return y if bias is None else y + bias.to(y.dtype)


def bilinear(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_k = sum_ij weight_kij x1_i x2_j + bias_k."""
    check_vector_input("bilinear", "x1", x1)
    check_vector_input("bilinear", "x2", x2)
    check_like("bilinear", "x1", x1, x2=x2)
    leading = sizes_text(x1.shape[:-1])
    ok = x2.shape[:-1] == x1.shape[:-1]
    check_sizes("bilinear", "x2", x2, ok, f"(*, n2) with the leading sizes of x1, * = {leading}")
    check_like("bilinear", "x1", x1, weight=weight, bias=bias)
    n1, n2 = x1.shape[-1], x2.shape[-1]
    ok = weight.dim() == 3 and weight.shape[1] == n1 and weight.shape[2] == n2
    expected = f"(m, n1, n2) with n1 = x1.size(-1) = {n1} and n2 = x2.size(-1) = {n2}"
    check_sizes("bilinear", "weight", weight, ok, expected)
    check_bias("bilinear", bias, weight.shape[0], 0)
    y = torch.einsum("...i,kij,...j->...k", x1, weight, x2)
    return y if bias is None else y + bias.to(y.dtype)
