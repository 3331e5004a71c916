"""Operands of the Triton products of the bilinear family: copies with zeros around them, and the
weight of quadratic packed to the pairs of features i <= j.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton_kernels import bucket, ceil_div, count_tiles

LINE = 16  # elements: lines that begin at multiples of it are read in wide asynchronous copies
BATCH = 128  # rows: no tile or step has more


def ceil_to(size: int, part: int) -> int:
    return ceil_div(size, part) * part


# ---- copies ----


@triton.jit
def copy_kernel(
    x,  # (R, C) at row * row_stride + col * col_stride; integers for the bits of any dtype
    out,  # (rows, cols)
    R,
    C,
    row_stride,
    col_stride,
    rows,
    cols,
    MARK: tl.constexpr,  # "row" R or "column" C gets all bits set, where x has a column or a row
):
    across = count_tiles(cols, 64)
    row = (tl.program_id(0) // across).to(tl.int64) * 64 + tl.arange(0, 64)[:, None]
    col = (tl.program_id(0) % across).to(tl.int64) * 64 + tl.arange(0, 64)[None, :]
    value = tl.load(x + row * row_stride + col * col_stride, (row < R) & (col < C), 0)
    if MARK == "row":
        value = tl.where((row == R) & (col < C), -1, value)
    if MARK == "column":
        value = tl.where((row < R) & (col == C), -1, value)
    tl.store(out + row * cols + col, value, (row < rows) & (col < cols))


def bits(x: Tensor) -> Tensor:
    """x as integers."""
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.dtype.itemsize])


def padded(x: Tensor, rows: int, cols: int, mark: str | None = None) -> Tensor:
    """x (R, C) with zeros up to (rows, cols); with a mark, "row" or "column", all bits are set in
    row R for each column of x, or in column C for each row."""
    out = bits(x.new_empty((rows, cols)))
    grid = (ceil_div(rows, 64) * ceil_div(cols, 64),)
    copy_kernel[grid](bits(x), out, *x.shape, *x.stride(), rows, cols, MARK=mark)
    return out.view(x.dtype)


def lines(tensor: Tensor) -> Tensor:
    """The last axis filled up with zeros to a multiple of LINE, the first line aligned too."""
    length = tensor.shape[-1]
    if length % LINE == 0 and tensor.data_ptr() % 16 == 0:
        return tensor
    copied = padded(tensor.view(-1, length), tensor.numel() // length, ceil_to(length, LINE))
    return copied.view(*tensor.shape[:-1], -1)


def columns(x: Tensor) -> Tensor:
    """x (B, n) as (n, B), the last axis filled up with zeros to a multiple of BATCH."""
    return padded(x.t(), x.shape[1], ceil_to(x.shape[0], BATCH))


# ---- pairs of features i <= j ----
#
# quadratic needs W_ij and W_ji only as what they are together. With features in blocks, the pairs
# (i, j) with block(i) <= block(j) do, where W_ij + W_ji stands for both if the blocks differ. Pairs
# within a block stay as they are, so that no factor is a made-up 0, which times Inf would be NaN.
#
# The pairs are numbered block of j by block of j; within one by i, and then by j:
# block^2 J (J + 1) / 2 + i block + (j - J block), J being the block of j. A line is the pairs of an
# i with a block of j.


@triton.jit
def pack_kernel(
    weight,  # (n, n, m)
    out,  # pair p and output k at p * pair_stride + k * k_stride
    n,
    m,
    m_end,  # from m to here: zeros, as where there is no i or j
    pair_stride,
    k_stride,
    BLOCK: tl.constexpr,
    COUNT: tl.constexpr,  # features i of a program, a divisor of BLOCK
    OUTPUTS: tl.constexpr,
):
    blocks = count_tiles(n, BLOCK)
    groups = blocks * (BLOCK // COUNT)
    i0 = tl.program_id(0) % groups * COUNT
    block = tl.program_id(0) // groups % blocks
    if i0 >= (block + 1) * BLOCK:
        return
    pair = tl.arange(0, COUNT * BLOCK)
    i = (i0 + pair // BLOCK).to(tl.int64)
    j = (block * BLOCK + pair % BLOCK).to(tl.int64)
    k = tl.program_id(0) // groups // blocks * OUTPUTS + tl.arange(0, OUTPUTS)
    there = ((i < n) & (j < n))[:, None] & (k < m)[None, :]
    value = tl.load(weight + (i * n + j)[:, None] * m + k[None, :], there, 0.0)
    if i0 < block * BLOCK:
        DTYPE: tl.constexpr = tl.float64 if value.dtype == tl.float64 else tl.float32
        other = tl.load(weight + (j * n + i)[:, None] * m + k[None, :], there, 0.0)
        value = (value.to(DTYPE) + other.to(DTYPE)).to(value.dtype)
    first = BLOCK * (BLOCK * (block.to(tl.int64) * (block + 1) // 2) + i0)
    at = (first + pair)[:, None] * pair_stride + k.to(tl.int64)[None, :] * k_stride
    tl.store(out + at, value, (k < m_end)[None, :])


def pack(weight: Tensor, block: int, outputs_first: bool) -> Tensor:
    """The pairs of weight (n, n, m) as (lines, block, m): in memory (m, lines, block), or else as
    they are, with zeros beyond m."""
    n, _, m = weight.shape
    blocks = ceil_div(n, block)
    count = block * blocks * (blocks + 1) // 2
    pitch = m if outputs_first else ceil_to(m, LINE)
    if outputs_first:
        out = weight.new_empty((m, count, block)).permute(1, 2, 0)
    else:
        out = weight.new_empty((count, block, pitch))
    features, outputs = 128 // block, min(bucket(pitch), 32)
    grid = (blocks * block // features * blocks * ceil_div(pitch, outputs),)
    constants = {"BLOCK": block, "COUNT": features, "OUTPUTS": outputs}
    pack_kernel[grid](weight, out, n, m, pitch, *out.stride()[1:], **constants)
    return out
