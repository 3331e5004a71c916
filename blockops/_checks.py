"""Argument checks of the reference formulas, in the words that csrc/core/checks.h uses for the
native ops (a test holds the two together)."""

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_floating(op: str, name: str, x: Tensor) -> None:
    if x.dtype not in DTYPES:
        wanted = "float64, float32, bfloat16 or float16"
        raise TypeError(f"{op}: {name} must be {wanted}, got {_dtype_name(x)}")


def check_vector_input(op: str, name: str, x: Tensor) -> None:
    check_floating(op, name, x)
    if x.dim() == 0:
        raise ValueError(f"{op}: {name} must have at least one dimension, got ()")


def check_like(op: str, first_name: str, first: Tensor, **others: Tensor | None) -> None:
    """Every given tensor has the device and the dtype of the first argument."""
    for name, other in others.items():
        if other is None:
            continue
        if other.device != first.device:
            raise RuntimeError(
                f"{op}: {name} must be on {first_name}'s device {first.device}, got {other.device}"
            )
        if other.dtype != first.dtype and not torch.is_autocast_enabled(first.device.type):
            raise TypeError(
                f"{op}: {name} must have {first_name}'s dtype {_dtype_name(first)}, "
                f"got {_dtype_name(other)}"
            )


def check_sizes(op: str, name: str, tensor: Tensor, ok: bool, expected: str) -> None:
    if not ok:
        raise ValueError(f"{op}: {name} must be {expected}, got {sizes_text(tensor.shape)}")


def check_bias(op: str, bias: Tensor | None, m: int, axis: int) -> None:
    if bias is not None:
        ok = bias.dim() == 1 and bias.shape[0] == m
        check_sizes(op, "bias", bias, ok, f"(m) with m = weight.size({axis}) = {m}")


def check_axes(op: str, x: Tensor, dim: int | tuple[int, ...] | None) -> None:
    """Each of `dim` is an axis of x, none of them twice."""
    axes = max(x.dim(), 1)  # a scalar has dim 0 and -1, as in torch
    seen = set()
    for d in () if dim is None else dim if isinstance(dim, tuple) else (dim,):
        if not -axes <= d < axes:
            wanted = f"in [{-axes}, {axes - 1}] for x of {x.dim()} dimensions"
            raise IndexError(f"{op}: dim must be {wanted}, got {d}")
        if d % axes in seen:
            raise ValueError(f"{op}: dim must name each axis once, got axis {d % axes} twice")
        seen.add(d % axes)


def check_int(owner: str, name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{owner}: {name} must be an int, got {type(value).__name__}")


def check_feature_counts(module: str, **counts: int) -> None:
    """Sizes given to a module's constructor are integers, at least 0."""
    for name, count in counts.items():
        check_int(module, name, count)
        if count < 0:
            raise ValueError(f"{module}: {name} must be at least 0, got {count}")


def sizes_text(sizes: Sequence[int]) -> str:
    return "(" + ", ".join(str(size) for size in sizes) + ")"


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
