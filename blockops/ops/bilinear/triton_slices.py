"""The Triton products of vectors with the slices of a weight, P_a[b, c] = sum_d v[b, d] w[a, d, c],
and what is made of them while they are in registers, either or both of

    sums[b, c] = sum_a s[b, a] P_a[b, c]        dots[b, a] = sum_c P_a[b, c] t[b, c]

That scales the products where khatri_rao scales an operand, which is dearer, but gives both
gradients of the inputs by one product.
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
    step_clocks,
    sum_dtype,
)
from .triton_operands import columns, lines
from .triton_sums import MOST_REGISTERS, STEP_CLOCKS, splits_for


@triton.jit
def slices_kernel(
    s,  # (A, B), lines s_pitch apart, with zeros up to whole tiles; None: no sums are wanted
    v,  # (B, D), lines v_pitch apart, with zeros up to there
    w,  # (A, D, C), or packed: (A, lines, COLS) or (lines, D, COLS), a line being i, a column j
    t,  # (B, C), lines t_pitch apart, likewise
    sums,  # (splits, B, C) or None
    dots,  # (tiles of columns, A, B): parts of the dots
    B,
    A,
    D,
    C,
    s_pitch,
    v_pitch,
    t_pitch,
    a_stride,  # of w, as the next two
    d_stride,
    c_stride,
    d_end,  # how far w has depths: D, or more where zeros follow
    c_end,  # likewise
    splits,
    PACKED: tl.constexpr,  # what the lines of w are: "slices" or "depths"; or None
    EVEN: tl.constexpr,  # tiles fill C
    PRECISION: tl.constexpr,
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
    block = across - 1 - tile // down % across  # those with most pairs first
    split = tile // down // across
    c0 = block.to(tl.int64) * COLS
    row = tl.arange(0, ROWS)
    dd = tl.arange(0, DEPTHS)
    col = tl.arange(0, COLS)
    w_at = dd.to(tl.int64)[:, None] * d_stride + col.to(tl.int64)[None, :] * c_stride
    v_at = row.to(tl.int64)[:, None] * v_pitch + dd[None, :]
    in_rows = row < tl.minimum(B - b0, ROWS).to(tl.int32)
    in_cols = col < tl.minimum(C - c0, COLS).to(tl.int32)
    in_w = col < tl.minimum(c_end - c0, COLS).to(tl.int32)
    v += b0 * v_pitch
    dots += block.to(tl.int64) * A * B + b0
    if s is not None:
        s += b0
    a_end = A
    depths = D
    if PACKED is None:
        w += c0 * c_stride
    else:
        w += COLS * COLS * (block.to(tl.int64) * (block + 1) // 2) * c_stride
    if PACKED == "slices":
        a_end = tl.minimum(A, (block + 1) * COLS)
    if PACKED == "depths":
        depths = (block + 1) * COLS

    in_t = in_rows[:, None] & (col < tl.minimum(t_pitch - c0, COLS).to(tl.int32))[None, :]
    t_at = row.to(tl.int64)[:, None] * t_pitch + col[None, :]
    t_tile = tl.load(t + b0 * t_pitch + c0 + t_at, in_t, 0.0)
    total = tl.zeros((ROWS, COLS), DTYPE)
    for d0 in range(0, depths, DEPTHS):
        d = d0 + dd
        vectors = tl.load(v + d0 + v_at, in_rows[:, None] & (d < v_pitch)[None, :], 0.0)
        part = total
        if TWO_LEVELS:
            part = tl.zeros((ROWS, COLS), DTYPE)
        tl.debug_barrier()  # the dots of the depths before have been written
        for a0 in range(split, a_end, splits):
            a = tl.cast(a0, tl.int64)
            w_slice = w + a * a_stride + tl.cast(d0, tl.int64) * d_stride
            if PACKED == "depths":
                terms = tl.load(w_slice + w_at)
            elif PACKED == "slices":
                terms = tl.load(w_slice + w_at, (d < d_end)[:, None], 0.0)
            else:
                terms = tl.load(w_slice + w_at, (d < d_end)[:, None] & in_w[None, :], 0.0)
            dots_at = dots + a * B + row
            before = tl.load(dots_at, in_rows & (d0 > 0), 0.0)
            zero = tl.zeros((ROWS, COLS), DTYPE)
            product = add_product(zero, vectors, terms, PRECISION)
            if s is not None:
                scales = tl.load(s + a * s_pitch + row).to(DTYPE)
                part += scales[:, None] * product
            contracted = product * t_tile.to(DTYPE)
            if not EVEN:
                contracted = tl.where(in_cols[None, :], contracted, 0.0)
            tl.store(dots_at, before + tl.sum(contracted, 1), in_rows)
        total = total + part if TWO_LEVELS else part

    if s is not None:
        sums += (split.to(tl.int64) * B + b0) * C + c0
        sums_at = row.to(tl.int64)[:, None] * C + col[None, :]
        tl.store(sums + sums_at, total, in_rows[:, None] & in_cols[None, :])


# ---- configurations ----

# By precision: rows of a tile; warps; stages. Columns and depths are those of the weight.
_TILES = {
    "16 bit": [(128, 8, 3), (64, 4, 3), (16, 4, 3)],
    "tf32x3": [(128, 8, 3), (64, 4, 3), (16, 4, 3)],
    "tf32": [(128, 8, 3), (64, 4, 3), (16, 4, 3)],
    "float64": [(64, 8, 3), (32, 4, 3), (16, 4, 3)],
}
CONFIGS = by_precision("ROWS", _TILES)
_MOST_DEPTHS = {"16 bit": 128, "tf32x3": 32, "tf32": 32, "float64": 16}  # of a step
_LANES = 128  # of a processor: multiply-adds in a clock


def _cost(key: tuple, PRECISION: str, ROWS: int) -> float | None:
    dtype, precision, B, C, A, D, cols, depths, summed, *_ = key
    if PRECISION != precision:
        return None
    splits = splits_for(B, C, A * D, A)
    programs = ceil_div(B, ROWS) * ceil_div(C, cols) * splits
    folded = ROWS * cols * (3 if summed else 2) / _LANES
    clocks = STEP_CLOCKS + step_clocks(precision, dtype.itemsize, ROWS, cols, depths) + folded
    return kernel_clocks(programs, ceil_div(A, splits) * ceil_div(D, depths), clocks)


tuned = Tuned(slices_kernel, CONFIGS, _cost)


# ---- calls ----


def tile_columns(dtype: torch.dtype, C: int) -> int:
    """The columns of a tile, which are the block of a packed weight, whose pairs are all computed:
    many only where they fit, and where that leaves registers."""
    return 64 if dtype.itemsize == 2 and C > 128 and C % 64 == 0 else 32


def slices(
    s: Tensor | None,  # (B, A), where sums are wanted
    v: Tensor,  # (B, D)
    w: Tensor,  # (A, D, C), or more where zeros follow
    t: Tensor,  # (B, C)
    precision: str,
    packed: bool = False,  # w is, in blocks of tile_columns
) -> tuple[Tensor | None, Tensor]:
    """Parts of the sums, (parts, B, C), or None, and of the dots, (parts, A, B)."""
    (B, C), D, A = t.shape, v.shape[1], w.shape[0] if s is None else s.shape[1]
    dtype = t.dtype
    cols = tile_columns(dtype, C)
    depths = min(_MOST_DEPTHS[precision], max(bucket(D), 16))
    lines_are = None
    if packed:
        lines_are = "depths" if s is None else "slices"
        depths = min(depths, cols) if s is None else depths
    even = C % cols == 0
    splits = splits_for(B, C, A * D, A)
    v_lines = lines(v)
    t_lines = v_lines if t is v else lines(t)
    sums = None
    if s is not None:
        s = columns(s)
        sums = t.new_empty((splits, B, C), dtype=sum_dtype(dtype))
    dots = t.new_empty((ceil_div(C, cols), A, B), dtype=sum_dtype(dtype))
    sizes = map(bucket, (B, C, A, D))
    tuned(
        lambda tile: (ceil_div(B, tile["ROWS"]) * ceil_div(C, cols) * splits,),
        (dtype, precision, *sizes, cols, depths, lines_are, even, w.stride(1) == 1),
        s,
        v_lines,
        w,
        t_lines,
        sums,
        dots,
        B,
        A,
        D,
        C,
        0 if s is None else s.shape[1],
        v_lines.shape[1],
        t_lines.shape[1],
        *w.stride(),
        *w.shape[1:],
        splits,
        PACKED=lines_are,
        EVEN=even,
        DEPTHS=depths,
        COLS=cols,
        maxnreg=MOST_REGISTERS,
    )
    return sums, dots
