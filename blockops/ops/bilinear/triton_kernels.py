"""The passes of quadratic and bilinear in Triton: which product each is.

    wide    forward: khatri_rao of slices i. Gradients of the inputs: slices i, of vectors grad:
            scaled by x1 they sum to grad_x2, and their dot products with x2 are grad_x1.
    narrow  (m <= 16, where m would fill a part of a tile) forward: slices k, whose dot products
            with an input are y. Gradients of the inputs: a khatri_rao each, over pairs (k, j) and
            (k, i).
    gradient of the weight: outer.

Of quadratic, each pass needs pairs i <= j only:

    forward, and the wide gradient of x, by packing the weight. That reads it and writes half of it,
            1.5 n^2 m numbers, and saves B n^2 m / 2 multiply-adds and the reading of the other
            half. On an H200 (4.3 TB/s) the two are equal at some 420 rows in bfloat16 (600
            TFLOP/s), 180 in float32 by three TF32 products (130) and 170 in float64 (60); where
            the weight stays in the L2 cache, at fewer. PACKED_FROM is between these. For few rows
            reading the weight is all that counts, and packing would read it twice.
    the narrow gradient of x, with W_ij + W_ji for both: one product where bilinear makes two. Pairs
            i <= j would be two of half the size, U x and U^T x.
    gradient of the weight, at any size: tiles beyond the diagonal are not computed.
"""

import math

from torch import Tensor

from ..._triton_kernels import precisions
from .triton_khatri_rao import khatri_rao, step_depths
from .triton_operands import lines, pack
from .triton_outer import outer
from .triton_slices import slices, tile_columns
from .triton_sums import total

NARROW = 16
PACKED_FROM = 256  # rows


def _rows(x: Tensor) -> Tensor:
    """x (*, n) as (B, n), contiguous."""
    return x.contiguous().view(math.prod(x.shape[:-1]), x.shape[-1])


def _precision(x: Tensor) -> str:
    return precisions(x.dtype)[0]


def _fill(out: Tensor, bias: Tensor | None = None) -> None:
    out.zero_()
    if bias is not None:
        out += bias


def _packs(x: Tensor, block: int) -> bool:
    """Whether a weight is packed in such blocks: there are several, and enough rows."""
    return x.shape[0] >= PACKED_FROM and x.shape[1] > block


def quadratic(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    n, _, m = weight.shape
    x, weight, bias = _rows(x), weight.contiguous(), None if bias is None else bias.contiguous()
    y = y.view(x.shape[0], m)
    if y.numel() == 0 or n == 0:
        return _fill(y, bias)
    if m > NARROW:
        packed = _packs(x, block := step_depths(x.dtype))
        w = pack(weight, block, outputs_first=True) if packed else lines(weight)
        return khatri_rao(y, x, x, w, _precision(x), bias, packed)
    packed = _packs(x, block := tile_columns(x.dtype, n))
    if packed:
        w = pack(weight, block, outputs_first=True).permute(2, 0, 1)
    else:
        w = lines(weight.permute(2, 0, 1).contiguous())
    _, dots = slices(None, x, w, x, _precision(x), packed)
    total(y, dots=dots, bias=bias)


def quadratic_grad_x(grad_x: Tensor, grad: Tensor, x: Tensor, weight: Tensor) -> None:
    n, _, m = weight.shape
    x, grad, weight = _rows(x), _rows(grad), weight.contiguous()
    grad_x = grad_x.view(x.shape)
    if x.numel() == 0 or m == 0:
        return _fill(grad_x)
    if m <= NARROW:
        w = lines((weight + weight.transpose(0, 1)).permute(2, 0, 1).contiguous())
        return khatri_rao(grad_x, grad, x, w.transpose(1, 2), _precision(x))
    packed = _packs(x, block := tile_columns(x.dtype, n))
    w = pack(weight, block, outputs_first=False) if packed else lines(weight)
    sums, dots = slices(x, grad, w.transpose(1, 2), x, _precision(x), packed)
    total(grad_x, sums, dots, block=block if packed else None)


def quadratic_grad_weight(grad_weight: Tensor, grad: Tensor, x: Tensor) -> None:
    x, grad = _rows(x), _rows(grad)
    if grad_weight.numel() == 0 or x.shape[0] == 0:
        return _fill(grad_weight)
    if grad.shape[1] > NARROW:
        outer(grad_weight, (0, 1, 2), x, x, grad, _precision(x), "ij")
    else:
        outer(grad_weight, (2, 0, 1), grad, x, x, _precision(x), "jk")


def bilinear(y: Tensor, x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    m, n1, n2 = weight.shape
    x1, x2, bias = _rows(x1), _rows(x2), None if bias is None else bias.contiguous()
    y = y.view(x1.shape[0], m)
    if y.numel() == 0 or n1 == 0 or n2 == 0:
        return _fill(y, bias)
    w = lines(weight.contiguous())
    if m > NARROW:
        return khatri_rao(y, x1, x2, w.permute(1, 2, 0), _precision(x1), bias)
    _, dots = slices(None, x2, w.transpose(1, 2), x1, _precision(x1))
    total(y, dots=dots, bias=bias)


def bilinear_grad_inputs(
    grads: tuple[Tensor, Tensor], grad: Tensor, x1: Tensor, x2: Tensor, weight: Tensor
) -> None:
    m, n1, n2 = weight.shape
    x1, x2, grad = _rows(x1), _rows(x2), _rows(grad)
    grad_x1, grad_x2 = grads[0].view(x1.shape), grads[1].view(x2.shape)
    if 0 in (x1.shape[0], m, n1, n2):
        _fill(grad_x1)
        return _fill(grad_x2)
    precision = _precision(x1)
    w = lines(weight.contiguous())
    if m <= NARROW:
        khatri_rao(grad_x1, grad, x2, w.transpose(1, 2), precision)
        khatri_rao(grad_x2, grad, x1, w, precision)
        return
    sums, dots = slices(x1, grad, w.transpose(0, 1), x2, precision)
    total(grad_x1, dots=dots)
    total(grad_x2, sums)


def bilinear_grad_weight(grad_weight: Tensor, grad: Tensor, x1: Tensor, x2: Tensor) -> None:
    x1, x2, grad = _rows(x1), _rows(x2), _rows(grad)
    if grad_weight.numel() == 0 or x1.shape[0] == 0:
        return _fill(grad_weight)
    if grad.shape[1] > NARROW:
        outer(grad_weight, (1, 0, 2), x1, grad, x2, _precision(x1))
    else:
        outer(grad_weight, (0, 1, 2), grad, x1, x2, _precision(x1))
