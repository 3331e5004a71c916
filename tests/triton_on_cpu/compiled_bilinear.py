"""The calls that compile the kernels of bilinear; `python -m triton_on_cpu.compiled` makes them."""

from collections.abc import Iterator
from typing import Any

import torch

from blockops.ops.bilinear import (
    triton_kernels,
    triton_khatri_rao,
    triton_outer,
    triton_slices,
)
from triton_on_cpu.compiled import in_configuration

DTYPES = {"16 bit": torch.bfloat16, "float64": torch.float64}


def empty(dtype, *sizes):
    return [torch.empty(size, dtype=dtype) for size in sizes]


def quadratic(dtype, B, n, m):
    triton_kernels.quadratic(*empty(dtype, (B, m), (B, n), (n, n, m), (m,)))


def quadratic_grad_x(dtype, B, n, m):
    triton_kernels.quadratic_grad_x(*empty(dtype, (B, n), (B, m), (B, n), (n, n, m)))


def quadratic_grad_weight(dtype, B, n, m):
    triton_kernels.quadratic_grad_weight(*empty(dtype, (n, n, m), (B, m), (B, n)))


def bilinear(dtype, B, n1, n2, m):
    triton_kernels.bilinear(*empty(dtype, (B, m), (B, n1), (B, n2), (m, n1, n2), (m,)))


def bilinear_grad_inputs(dtype, B, n1, n2, m):
    grads = empty(dtype, (B, n1), (B, n2))
    arguments = empty(dtype, (B, m), (B, n1), (B, n2), (m, n1, n2))
    triton_kernels.bilinear_grad_inputs(grads, *arguments)


def bilinear_grad_weight(dtype, B, n1, n2, m):
    triton_kernels.bilinear_grad_weight(*empty(dtype, (m, n1, n2), (B, m), (B, n1), (B, n2)))


# Pairs of a call whose tiles are full and one whose are not. Configurations take them in turn.
CALLS = {
    triton_khatri_rao.tuned: [
        ((quadratic, 1024, 64, 64), (bilinear, 100, 73, 55, 73)),
        ((bilinear, 128, 64, 64, 64), (quadratic_grad_x, 100, 73, 10)),
        ((quadratic, 128, 64, 64), (quadratic, 1000, 73, 73)),
        ((bilinear_grad_inputs, 128, 64, 64, 4), (bilinear_grad_inputs, 100, 64, 55, 3)),
    ],
    triton_slices.tuned: [
        ((quadratic_grad_x, 1024, 256, 128), (bilinear_grad_inputs, 100, 73, 55, 73)),
        ((bilinear_grad_inputs, 128, 64, 64, 64), (quadratic_grad_x, 1000, 73, 73)),
        ((quadratic, 1024, 64, 8), (quadratic, 1000, 73, 3)),
        ((bilinear, 128, 64, 64, 4), (quadratic, 100, 73, 1)),
    ],
    triton_outer.tuned: [
        ((quadratic_grad_weight, 1024, 64, 64), (bilinear_grad_weight, 100, 73, 55, 3)),
        ((bilinear_grad_weight, 128, 64, 64, 64), (quadratic_grad_weight, 1000, 73, 1)),
        ((quadratic_grad_weight, 1024, 64, 16), (quadratic_grad_weight, 1000, 73, 73)),
    ],
}


def compile_all() -> None:
    for tuned, pairs in CALLS.items():
        for index, config in enumerate(tuned.configs):
            precision = config.kwargs["PRECISION"]
            torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
            with in_configuration(tuned, config):
                for call, *sizes in pairs[index % len(pairs)]:
                    call(DTYPES.get(precision, torch.float32), *sizes)
                if precision == ("tf32" if tuned is triton_outer.tuned else "16 bit"):
                    call(torch.float16, *sizes)
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def complaints(kernel: dict[str, Any], capability: int) -> Iterator[str]:
    constants = kernel["constants"]
    if "PRECISION" not in constants:
        return
    hopper = capability == 90 and constants["ROWS"] >= 64 and constants["PRECISION"] != "float64"
    instruction = "wgmma" if hopper else "mma"
    if not kernel["instructions"][instruction]:
        yield f"no {instruction}"
