"""The calls that compile the kernels of linear_relu; compiled.py makes them."""

from collections.abc import Iterator
from typing import Any

import torch

from blockops.ops.linear_relu import triton_kernels
from triton_on_cpu.compiled import in_configuration

ALIGNED, RAGGED = (256, 128, 192), (255, 127, 193)  # B, n, m
DTYPES = {"16 bit": torch.bfloat16, "float64": torch.float64}


def forward(B, n, m, dtype):
    x, weight, bias = (torch.empty(size, dtype=dtype) for size in [(B, n), (m, n), (m,)])
    triton_kernels.linear_relu(x.new_empty(B, m), x, weight, bias)


def backward(B, n, m, dtype, wanted):
    x, weight, y = (torch.empty(size, dtype=dtype) for size in [(B, n), (m, n), (B, m)])
    results = tuple(x.new_empty(size) for size in [(B, n), (m, n), (m,)])
    triton_kernels.linear_relu_backward(results, y, x, weight, y, wanted)


def grad_x(*sizes_and_dtype):
    backward(*sizes_and_dtype, (True, False, False))


def grad_weight(*sizes_and_dtype):
    backward(*sizes_and_dtype, (False, True, True))


def compile_all() -> None:
    """Every configuration as the pass that needs least, aligned, and as the one that needs most,
    ragged; what is not a matter of configurations once."""
    for config in triton_kernels.CONFIGS:
        precision = config.kwargs["PRECISION"]
        dtype = DTYPES.get(precision, torch.float32)
        torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        with in_configuration(triton_kernels.product, config):
            forward(*ALIGNED, dtype)
            grad_weight(*RAGGED, dtype)
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        grad_x(*ALIGNED, dtype)
    backward(*RAGGED, torch.float32, (False, False, True))
    forward(1, 1, 1, torch.float32)
    forward(1, 2**24, 1, torch.bfloat16)  # a row of which needs offsets of 64 bits
    for dtype in (torch.bfloat16, torch.float64):  # in parts, which are then added up
        forward(2, 2048, 64, dtype)
        grad_weight(2047, 15, 17, dtype)


def complaints(kernel: dict[str, Any], capability: int) -> Iterator[str]:
    constants = kernel["constants"]
    if kernel["kernel"] != "product_kernel" or "out" in constants:  # no product: out is None
        return
    precision = constants["PRECISION"]
    hopper = capability == 90 and constants["ROWS"] >= 64 and precision != "float64"
    instruction = "wgmma" if hopper else "mma"
    if precision != "ieee" and not kernel["instructions"][instruction]:
        yield f"no {instruction}"
