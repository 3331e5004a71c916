"""The Triton product behind the gradient of the weight: a sum over the batch of outer products,

    G[i, j, k] = sum_b p[b, i] q[b, j] r[b, k]

It is one matrix product, of pairs (i, j) with k, whose left operand is made in registers. Where two
of the inputs are equal, tiles with i <= j, or j <= k, are computed, and written twice.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton_kernels import (
    Tuned,
    add_product,
    bucket,
    by_precision,
    ceil_div,
    count_tiles,
    kernel_clocks,
    sum_dtype,
)
from .triton_operands import columns
from .triton_sums import MOST_REGISTERS, built_step_clocks, splits_for, total


@triton.jit
def outer_kernel(
    p,  # (p_size, B), lines pitch apart, with zeros up to there, as q (q_size, B) and r (r_size, B)
    q,
    r,
    out,  # (splits, the result)
    p_size,
    q_size,
    r_size,
    pitch,  # a multiple of TERMS
    split_terms,  # how many b a split has, a multiple of TERMS
    i_stride,  # of the result, as the next two
    j_stride,
    k_stride,
    SYMMETRIC: tl.constexpr,  # "ij" or "jk": where these are equal inputs; or None
    TERMS: tl.constexpr,
    COUNT_I: tl.constexpr,  # features i of a tile, a divisor of ROWS
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    NARROW: tl.constexpr = p.dtype.element_ty == tl.float16
    DTYPE: tl.constexpr = tl.float64 if p.dtype.element_ty == tl.float64 else tl.float32
    COUNT_J: tl.constexpr = ROWS // COUNT_I
    tile = tl.program_id(0)
    i_tiles = count_tiles(p_size, COUNT_I)
    j_tiles = count_tiles(q_size, COUNT_J)
    k_tiles = count_tiles(r_size, COLS)
    i0 = tile % i_tiles * COUNT_I
    j0 = tile // i_tiles % j_tiles * COUNT_J
    k0 = tile // i_tiles // j_tiles % k_tiles * COLS
    split = tile // i_tiles // j_tiles // k_tiles
    if SYMMETRIC == "ij":
        if i0 >= j0 + COUNT_J:
            return
    if SYMMETRIC == "jk":
        if j0 >= k0 + COLS:
            return
    i = i0 + tl.arange(0, COUNT_I)
    j = j0 + tl.arange(0, COUNT_J)
    k = k0 + tl.arange(0, COLS)
    bb = tl.arange(0, TERMS)
    p_at = p + i.to(tl.int64)[:, None] * pitch + bb[None, :]
    q_at = q + j.to(tl.int64)[:, None] * pitch + bb[None, :]
    r_at = r + k.to(tl.int64)[None, :] * pitch + bb[:, None]

    total = tl.zeros((ROWS, COLS), DTYPE)
    first = split.to(tl.int64) * split_terms
    last = tl.minimum(first + split_terms, pitch)
    level = 64 * TERMS  # sums of sums
    for begin in range(first, last, level):
        part = tl.zeros((ROWS, COLS), DTYPE)
        for b in range(begin, tl.minimum(begin + level, last), TERMS):
            p_tile = tl.load(p_at + b, (i < p_size)[:, None], 0.0)
            q_tile = tl.load(q_at + b, (j < q_size)[:, None], 0.0)
            r_tile = tl.load(r_at + b, (k < r_size)[None, :], 0.0)
            if NARROW:
                p_tile = p_tile.to(tl.float32)
                q_tile = q_tile.to(tl.float32)
                r_tile = r_tile.to(tl.float32)
            pairs = tl.reshape(p_tile[:, None, :] * q_tile[None, :, :], (ROWS, TERMS))
            part = add_product(part, pairs, r_tile, PRECISION)
        total += part

    row_i = (i0 + tl.arange(0, ROWS) // COUNT_J).to(tl.int64)[:, None]
    row_j = (j0 + tl.arange(0, ROWS) % COUNT_J).to(tl.int64)[:, None]
    col_k = k.to(tl.int64)[None, :]
    value = total.to(out.dtype.element_ty)
    out += split.to(tl.int64) * p_size * q_size * r_size
    there = (row_i < p_size) & (row_j < q_size) & (col_k < r_size)
    if SYMMETRIC == "ij":
        mirrored = row_j * i_stride + row_i * j_stride + col_k * k_stride
        tl.store(out + mirrored, value, there & (row_i < row_j))
        there = there & (row_i <= row_j)
    if SYMMETRIC == "jk":
        mirrored = row_i * i_stride + col_k * j_stride + row_j * k_stride
        tl.store(out + mirrored, value, there & (row_j < col_k))
        there = there & (row_j <= col_k)
    tl.store(out + row_i * i_stride + row_j * j_stride + col_k * k_stride, value, there)


# ---- configurations ----

# By precision: rows and columns of a tile; warps; stages.
_TILES = {
    "16 bit": [(128, 64, 8, 3), (64, 32, 4, 3), (32, 32, 4, 3)],
    "tf32x3": [(128, 64, 8, 3), (64, 32, 4, 3), (32, 32, 4, 3)],
    "tf32": [(128, 64, 8, 3), (64, 32, 4, 3), (32, 32, 4, 3)],
    "float64": [(64, 64, 8, 3), (32, 32, 4, 3)],
}
CONFIGS = by_precision("ROWS COLS", _TILES)
_TERMS = {"16 bit": 64, "tf32x3": 16, "tf32": 32, "float64": 16}


def _cost(key: tuple, PRECISION: str, ROWS: int, COLS: int) -> float | None:
    dtype, precision, p_size, q_size, r_size, B, count_i, symmetric = key
    if PRECISION != precision:
        return None
    if ROWS > 64 * count_i:
        return None  # registers would not suffice: there is a row of q for each i
    terms = _TERMS[precision]
    count_j = ROWS // count_i
    tiles = ceil_div(p_size, count_i) * ceil_div(q_size, count_j) * ceil_div(r_size, COLS)
    if symmetric == "ij":  # of the tiles those that are computed
        tiles *= (q_size + max(count_i, count_j)) / (2 * q_size)
    if symmetric == "jk":
        tiles *= (r_size + max(count_j, COLS)) / (2 * r_size)
    splits = splits_for(p_size * q_size, r_size, B, ceil_div(B, terms))
    clocks = built_step_clocks(precision, dtype.itemsize, ROWS, COLS, terms)
    return kernel_clocks(math.ceil(tiles) * splits, ceil_div(B, terms * splits), clocks)


tuned = Tuned(outer_kernel, CONFIGS, _cost)


# ---- calls ----


def outer(
    out: Tensor,  # of three axes, contiguous
    axes: tuple[int, int, int],  # of the result, along which i, j and k are
    p: Tensor,  # (B, p_size)
    q: Tensor,  # (B, q_size)
    r: Tensor,  # (B, r_size)
    precision: str,
    symmetric: str | None = None,  # "ij" or "jk", where these are equal inputs
) -> None:
    dtype = out.dtype
    B, p_size = p.shape
    q_size, r_size = q.shape[1], r.shape[1]
    if dtype == torch.float16:  # p q could be infinite; as TF32 numbers they are as exact
        precision = "tf32"
    terms = _TERMS[precision]
    q_lines = columns(q)
    p_lines = q_lines if p is q else columns(p)
    r_lines = q_lines if r is q else columns(r)
    pitch = q_lines.shape[1]
    count_i = min(bucket(p_size), 8)
    splits = splits_for(p_size * q_size, r_size, B, ceil_div(B, terms))
    split_terms = ceil_div(pitch // terms, splits) * terms
    splits = ceil_div(pitch, split_terms)
    sums = out
    if splits > 1:
        sums = out.new_empty((splits, out.numel()), dtype=sum_dtype(dtype))

    def grid(tile: dict[str, int]) -> tuple[int]:
        pairs = ceil_div(p_size, count_i) * ceil_div(q_size, tile["ROWS"] // count_i)
        return (pairs * ceil_div(r_size, tile["COLS"]) * splits,)

    tuned(
        grid,
        (dtype, precision, *map(bucket, (p_size, q_size, r_size, B)), count_i, symmetric),
        p_lines,
        q_lines,
        r_lines,
        sums,
        p_size,
        q_size,
        r_size,
        pitch,
        split_terms,
        *(out.stride(axis) for axis in axes),
        SYMMETRIC=symmetric,
        TERMS=terms,
        COUNT_I=count_i,
        maxnreg=MOST_REGISTERS,
    )
    if splits > 1:
        total(out.view(1, -1), sums.view(splits, 1, -1))
