"""The Triton product of a Khatri-Rao product with a weight:

    out[b, c] = sum_ad s[b, a] v[b, d] w[a, d, c]

It is one matrix product over pairs (a, d), whose left operand is made in registers as the loop
comes to it: v stays there while the slices a go by, and a step multiplies it by one column of s for
each slice. Tensor cores of Hopper take their left operand from registers and the right one, w as it
was loaded, from shared memory; there is one multiply for as many multiply-adds as a tile has
columns.

Where an element that does not exist meets one that does, both must not count even if the latter is
infinite, for 0 times Inf is NaN: pairs beyond the end are masked, by marks loaded from memory, for
which the compiler needs fewer registers than for comparing indices. Rows and columns beyond the end
are not stored.
"""

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
from .triton_operands import BATCH, LINE, bits, ceil_to, lines, padded
from .triton_sums import (
    MOST_REGISTERS,
    built_step_clocks,
    splits_for,
    total,
)


@triton.jit
def khatri_rao_kernel(
    s,  # (A, B), lines s_pitch apart, with zeros up to whole tiles, and whole steps of lines
    v,  # (B, D), lines v_pitch apart, with zeros up to there
    s_marks,  # where steps do not fill A and D, of s column B and of v line B, as integers: all
    v_marks,  # bits are set for each a and each d that exist
    w,  # (A, D, C), or packed: (lines, DEPTHS, C), a being i and d being j
    bias,  # (C) or None
    out,  # (splits, B, C)
    B,
    A,
    D,
    C,
    s_pitch,
    v_pitch,
    a_stride,  # of w, as the next two
    d_stride,
    c_stride,
    d_end,  # how far w has depths: D, or more where zeros follow
    c_end,  # likewise
    splits,
    PACKED: tl.constexpr,
    SCALE_OPERAND: tl.constexpr,  # or else the product, with SLICES 1: s v could be infinite
    PRECISION: tl.constexpr,
    SLICES: tl.constexpr,  # slices and depths of a step
    DEPTHS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    DTYPE: tl.constexpr = tl.float64 if v.dtype.element_ty == tl.float64 else tl.float32
    TWO_LEVELS: tl.constexpr = PRECISION == "tf32x3"  # sums of sums
    down = count_tiles(B, ROWS)
    across = count_tiles(C, COLS)
    tile = tl.program_id(0)
    b0 = (tile % down).to(tl.int64) * ROWS
    c0 = (tile // down % across).to(tl.int64) * COLS
    split = tile // down // across
    row = tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    aa = tl.arange(0, SLICES)
    dd = tl.arange(0, DEPTHS)
    term_a = tl.arange(0, SLICES * DEPTHS) // DEPTHS
    term_d = tl.arange(0, SLICES * DEPTHS) % DEPTHS
    term_at = term_a.to(tl.int64) * a_stride + term_d.to(tl.int64) * d_stride
    if PACKED:  # the lines of a block follow each other, so that terms do
        term_at = (term_a * DEPTHS + term_d).to(tl.int64) * d_stride
    w_at = term_at[:, None] + col.to(tl.int64)[None, :] * c_stride
    s_at = aa.to(tl.int64)[None, :] * s_pitch + row[:, None]
    v_at = row.to(tl.int64)[:, None] * v_pitch + dd[None, :]
    in_rows = row < tl.minimum(B - b0, ROWS).to(tl.int32)
    in_w = col < tl.minimum(c_end - c0, COLS).to(tl.int32)
    s += b0
    v += b0 * v_pitch
    w += c0 * c_stride

    total = tl.zeros((ROWS, COLS), DTYPE)
    for d0 in range(0, D, DEPTHS):
        in_v = (d0 + dd < v_pitch)[None, :]
        vectors = tl.load(v + d0 + v_at, in_rows[:, None] & in_v, 0.0)
        if v_marks is not None:
            keep_d = tl.load(v_marks + d0 + dd[None, :] + 0 * row[:, None], in_v, 0)
        if PACKED:
            block = tl.cast(d0 // DEPTHS, tl.int64)
            w_block = w + DEPTHS * DEPTHS * (block * (block + 1) // 2) * d_stride
            a_end = tl.minimum(A, d0 + DEPTHS)
        else:
            w_block = w + tl.cast(d0, tl.int64) * d_stride
            a_end = A
        part = total
        if TWO_LEVELS:
            part = tl.zeros((ROWS, COLS), DTYPE)
        for a0 in range(split * SLICES, a_end, splits * SLICES):
            there = in_w[None, :]
            if not PACKED:
                there = there & ((a0 + term_a < A) & (d0 + term_d < d_end))[:, None]
            terms = tl.load(w_block + tl.cast(a0, tl.int64) * a_stride + w_at, there, 0.0)
            s_a = tl.cast(a0, tl.int64) * s_pitch
            scales = tl.load(s + s_a + s_at)
            if SCALE_OPERAND:
                pairs = scales[:, :, None] * vectors[:, None, :]
                if s_marks is not None:
                    # As many loads as rows: they travel with those of the scales.
                    keep_a = tl.load(s_marks + s_a + s_at - row[:, None])
                    keep = keep_a[:, :, None] & keep_d[:, None, :]
                    kept = pairs.to(keep.dtype, bitcast=True) & keep
                    pairs = kept.to(pairs.dtype, bitcast=True)
                pairs = tl.reshape(pairs, (ROWS, SLICES * DEPTHS))
                part = add_product(part, pairs, terms, PRECISION)
            else:
                zero = tl.zeros((ROWS, COLS), DTYPE)
                part += scales.to(DTYPE) * add_product(zero, vectors, terms, PRECISION)
        total = total + part if TWO_LEVELS else part

    in_cols = col < tl.minimum(C - c0, COLS).to(tl.int32)
    if bias is not None:
        total += tl.load(bias + c0 + col, in_cols, 0.0).to(DTYPE)[None, :]
    out += (split.to(tl.int64) * B + b0) * C + c0
    out_at = row.to(tl.int64)[:, None] * C + col[None, :]
    tl.store(out + out_at, total.to(out.dtype.element_ty), in_rows[:, None] & in_cols[None, :])


# ---- configurations ----

# By precision: rows and columns of a tile; warps; stages.
_TILES = {
    "16 bit": [(128, 128, 8, 3), (128, 64, 8, 3), (64, 64, 4, 3), (16, 64, 4, 4)],
    "tf32x3": [(128, 64, 8, 3), (64, 32, 4, 3), (16, 64, 4, 4)],
    "tf32": [(128, 64, 8, 3), (64, 64, 4, 3), (16, 64, 4, 4)],
    "float64": [(64, 64, 8, 3), (32, 32, 4, 3), (16, 32, 4, 3)],
}
CONFIGS = by_precision("ROWS COLS", _TILES)
_TERMS = {"16 bit": 64, "tf32x3": 16, "tf32": 32, "float64": 16}  # of a step


def _cost(key: tuple, PRECISION: str, ROWS: int, COLS: int) -> float | None:
    dtype, precision, B, C, A, D, ragged, *_ = key
    if PRECISION != precision:
        return None
    if ragged and ROWS * COLS > 128 * 64:
        return None  # registers would not suffice
    terms = _TERMS[precision]
    splits = splits_for(B, C, A * D, A)
    programs = ceil_div(B, ROWS) * ceil_div(C, COLS) * splits
    clocks = built_step_clocks(precision, dtype.itemsize, ROWS, COLS, terms)
    return kernel_clocks(programs, ceil_div(A * D, terms * splits), clocks)


tuned = Tuned(khatri_rao_kernel, CONFIGS, _cost)


# ---- calls ----


def step_depths(dtype: torch.dtype) -> int:
    """The depths of a step where the weight is packed, which are the block of its pairs."""
    return 64 if dtype == torch.float16 else 16


def _step_shape(
    dtype: torch.dtype, precision: str, A: int, D: int, packed: bool
) -> tuple[int, int]:
    """Slices and depths of a step; where it is free, with as few as possible beyond the end."""
    terms = _TERMS[precision]
    if dtype == torch.float16:
        return 1, terms
    if packed:
        return terms // step_depths(dtype), step_depths(dtype)
    shapes = [(terms // depths, depths) for depths in (64, 32, 16) if depths <= terms]
    return min(shapes, key=lambda shape: ceil_div(A, shape[0]) * ceil_div(D, shape[1]))


def khatri_rao(
    out: Tensor,  # (B, C)
    s: Tensor,  # (B, A)
    v: Tensor,  # (B, D)
    w: Tensor,  # (A, D, C), or more where zeros follow
    precision: str,
    bias: Tensor | None = None,
    packed: bool = False,  # w is, in blocks of step_depths
) -> None:
    B, C = out.shape
    A, D = s.shape[1], v.shape[1]
    dtype = out.dtype
    scale_operand = dtype != torch.float16
    slices, depths = _step_shape(dtype, precision, A, D, packed)
    splits = splits_for(B, C, A * D, ceil_div(A, slices))
    masked = scale_operand and (A % slices != 0 or D % depths != 0)
    if masked:
        s = padded(s.t(), ceil_to(A, slices), ceil_to(B + 1, BATCH), "column")
        v = padded(v, B + 1, ceil_to(D, LINE), "row")
    else:
        s, v = padded(s.t(), ceil_to(A, slices), ceil_to(B, BATCH)), lines(v)
    ragged = masked or C % LINE != 0  # and results are written one by one
    sums = out
    if splits > 1:
        sums = out.new_empty((splits, B, C), dtype=sum_dtype(dtype))
    tuned(
        lambda tile: (ceil_div(B, tile["ROWS"]) * ceil_div(C, tile["COLS"]) * splits,),
        (dtype, precision, *map(bucket, (B, C, A, D)), ragged, packed, masked, w.stride(1) == 1),
        s,
        v,
        bits(s)[:, B:] if masked else None,
        bits(v)[B:] if masked else None,
        w,
        bias if splits == 1 else None,
        sums,
        B,
        A,
        D,
        C,
        s.shape[1],
        v.shape[1],
        *w.stride(),
        *w.shape[1:],
        splits,
        PACKED=packed,
        SCALE_OPERAND=scale_operand,
        SLICES=slices,
        DEPTHS=depths,
        maxnreg=MOST_REGISTERS,
    )
    if splits > 1:
        total(out, sums, bias=bias)
