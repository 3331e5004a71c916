"""Initial values for parameters, in the manner of torch.nn.init."""

import math

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy


def two_sided_uniform_(
    tensor: Tensor,
    low: float = 5.0,
    high: float = 10.0,
    sparsity: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fills tensor, in place, with values that are 0 with probability `sparsity` and otherwise
    from U(low, high) or U(-high, -low), with equal chances; returns tensor.

    tensor: any shape, layout and signed floating dtype; also a parameter. low, high: finite, 0 <=
    low <= high, both rounded to the dtype. sparsity: from 0 to 1. generator: draws from it and
    leaves PyTorch's own alone. To fill the weights of a model:

        def fill(module):
            if isinstance(module, nn.Linear):
                two_sided_uniform_(module.weight)

        model.apply(fill)

    Raises, before anything is written, TypeError for no tensor or another dtype, and ValueError for
    other bounds, another sparsity, or a lazy module's parameter that has no shape yet.

    Cost: one random number for each element and a few tensors of its size, in float32 (float64 for
    float64), so that low precision does not make the probabilities coarse.

    Method: u ~ U(-1, 1) gives 0 where |u| < sparsity, which has that probability; elsewhere the
    sign of u, and low + (|u| - sparsity) / (1 - sparsity) (high - low).
    """
    _check(tensor, low, high, sparsity)
    with torch.no_grad():
        if sparsity == 1:
            return tensor.zero_()
        dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        # contiguous, so that a seed gives an element the same value in every layout
        u = torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)
        u.uniform_(-1, 1, generator=generator)
        share = (u.abs() - sparsity) / (1 - sparsity)
        magnitude = (low + share * (high - low)).clamp_(low, high)  # it may round to beyond
        values = magnitude.copysign_(u).masked_fill_(share < 0, 0)
        return tensor.copy_(values)


def _check(tensor: Tensor, low: float, high: float, sparsity: float) -> None:
    if not isinstance(tensor, Tensor):
        got = type(tensor).__name__
        raise TypeError(f"two_sided_uniform_: tensor must be a tensor, got {got}")
    if is_lazy(tensor):
        raise ValueError(
            "two_sided_uniform_: tensor must be initialized, got a lazy module's parameter; the "
            "module needs its first batch before"
        )
    dtype = str(tensor.dtype).removeprefix("torch.")
    if not tensor.is_floating_point() or torch.finfo(tensor.dtype).min > 0:
        raise TypeError(f"two_sided_uniform_: tensor must be signed floating-point, got {dtype}")
    if not 0 <= low < math.inf:
        raise ValueError(f"two_sided_uniform_: low must be finite and at least 0, got {low}")
    largest = torch.finfo(tensor.dtype).max
    if not low <= high <= largest:
        raise ValueError(
            f"two_sided_uniform_: high must be at least low = {low} and at most {dtype}'s largest "
            f"value {largest}, got {high}"
        )
    if not 0 <= sparsity <= 1:
        raise ValueError(f"two_sided_uniform_: sparsity must be from 0 to 1, got {sparsity}")
