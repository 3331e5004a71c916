"""The work and the memory traffic that a pass of an op cannot do without.

FLOPs: a product and a sum count 2; one input counts the pairs i <= j only. Bytes: what the pass is
given read once, what it gives written once, as if caches held the rest.
"""

import math
from collections.abc import Collection

import torch

from blockops._cases import Case

from . import models

FAMILY = ("quadratic", "bilinear")


def flops(case: Case, name: str) -> int:
    """backward: the gradients of input and weight cost a product each; center is its own adjoint;
    the input of a model is data, and its first layer has one product less. In the bilinear family
    the gradient of the input is A x, with n multiply-adds for each of n elements, and A_ij =
    sum_k W_ijk g_k the product; for m = 1 there is none, as g may be multiplied last."""
    forward = case.floor_flops
    backward = forward if case.op == "center" else 2 * forward
    if case.op in FAMILY:
        inputs, axis = (1, -1) if case.op == "quadratic" else (2, 0)  # axis: of the outputs
        m = case.shapes["weight"][axis]
        backward += inputs * case.flops // m - (forward if m == 1 else 0)
    if case.op == models.OP:
        backward -= 2 * math.prod(case.shapes["x"]) * case.shapes["weight_1"][0]
    return {"backward": backward, "train": forward + backward}.get(name, forward)


def traffic(
    case: Case, name: str, result: int, dtype: torch.dtype, without_grad: Collection[str]
) -> int:
    """Bytes. result: its elements."""
    given = {argument: math.prod(shape) for argument, shape in case.shapes.items()}
    inputs = sum(given.values())
    wanted = sum(n for argument, n in given.items() if argument not in without_grad)
    forward = inputs + result
    read = {"center": result, "linear_relu": inputs + 2 * result}  # no input; the mask is in y
    backward = read.get(case.op, inputs + result) + wanted
    elements = {"backward": backward, "train": forward + backward}.get(name, forward)
    return elements * dtype.itemsize


def of(
    case: Case, name: str, result: int, dtype: torch.dtype, without_grad: Collection[str]
) -> dict[str, int]:
    """Both, as they are stored."""
    return {
        "floor_flops": flops(case, name),
        "least_bytes": traffic(case, name, result, dtype, without_grad),
    }


def share(flops: float, bandwidth: float, ceiling: float, copy: float) -> tuple[float, str]:
    """How near to the floor a pass with so many FLOPs and bytes a second comes, and which of the
    two bounds it. ceiling: FLOPs a second of a matrix product; copy: bytes a second of a copy; NaN
    where it was not measured."""
    parts = {"arithmetic": flops / ceiling, "memory": bandwidth / copy}
    known = {what: part for what, part in parts.items() if not math.isnan(part)}
    bound = max(known, key=known.__getitem__, default="")
    return known.get(bound, math.nan), bound
