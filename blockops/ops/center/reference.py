"""The formula of center in ordinary PyTorch ops: the truth that kernels are tested against.

It also serves torch.func transforms, forward-mode AD and devices without a kernel.
"""

from torch import Tensor

from ..._checks import check_axes, check_floating


def center(x: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """y = x - mean(x over dim)."""
    check_floating("center", "x", x)
    if x.dim() > 64:  # which torch's own reductions refuse as well
        raise ValueError(f"center: x must have at most 64 dimensions, got {x.dim()}")
    check_axes("center", x, dim)
    return x - (x.mean() if dim is None else x.mean(dim, keepdim=True))
