"""The formula of linear_relu in ordinary PyTorch ops: the truth that kernels are tested against.

It also serves torch.func transforms, forward-mode AD and devices without a kernel.
"""

import torch
from torch import Tensor

from ..._checks import check_bias, check_like, check_sizes, check_vector_input


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = relu(x weight^T + bias)."""
    check_vector_input("linear_relu", "x", x)
    check_like("linear_relu", "x", x, weight=weight, bias=bias)
    n = x.shape[-1]
    ok = weight.dim() == 2 and weight.shape[1] == n
    check_sizes("linear_relu", "weight", weight, ok, f"(m, n) with n = x.size(-1) = {n}")
    check_bias("linear_relu", bias, weight.shape[0], 0)
    return torch.relu(torch.nn.functional.linear(x, weight, bias))
