"""The calls that compile the kernels of center; compiled.py makes them."""

from collections.abc import Iterator
from typing import Any

import torch

from blockops.ops.center import triton_kernels
from triton_on_cpu.compiled import in_configuration

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)


def center(shape, dim, dtype):
    x = torch.empty(shape, dtype=dtype)
    triton_kernels.center(torch.empty_like(x), x, dim)


def compile_all() -> None:
    """Every configuration, on rows, columns and channels, in dtypes that take turns."""
    for index, config in enumerate(triton_kernels.whole.configs):
        tile = config.kwargs["TILE"]
        with in_configuration(triton_kernels.whole, config):
            center((64, tile), [1], DTYPES[index % 3])
            center((30, tile - 7), [1], DTYPES[(index + 1) % 3])
            center((tile // 64, 96), [0], DTYPES[(index + 2) % 3])
            center((tile // 64, 8, 61), [0, 2], DTYPES[index % 3])
    for index in range(len(triton_kernels.difference.configs)):
        with (
            in_configuration(
                triton_kernels.sums_in_parts, triton_kernels.sums_in_parts.configs[index]
            ),
            in_configuration(triton_kernels.difference, triton_kernels.difference.configs[index]),
        ):
            center((3, 70001), [1], DTYPES[index % 3])
            center((3000, 96), [0], DTYPES[(index + 1) % 3])
            center((64, 3, 40, 37), [0, 2, 3], DTYPES[(index + 2) % 3])
    center((64, 1024), [1], torch.float16)


def complaints(kernel: dict[str, Any], capability: int) -> Iterator[str]:
    """What lies next to each other in memory is moved 128 bits at a time."""
    last = "K" if kernel["constants"].get("S") == 1 else "S"
    known = kernel["multiples of 16"]
    if last in known and "x" in known and not kernel["instructions"]["128-bit loads"]:
        yield "no 128-bit loads"
    if last in known and "y" in known and not kernel["instructions"]["128-bit stores"]:
        yield "no 128-bit stores"
