"""What the Triton products of the bilinear family share: estimates, and the parts that sums come
in."""

import triton
import triton.language as tl
from torch import Tensor

from ..._triton_kernels import (
    bucket,
    ceil_div,
    count_tiles,
    shares,
    step_clocks,
)

# Of a thread: with no number given, the compiler spills some to fit more programs. Tiles, and the
# terms of a step, are so few that none is spilled.
MOST_REGISTERS = 255

# Elements of a left operand that a processor makes in a clock, by PRECISION: with 128 lanes; 16-bit
# numbers go in pairs, float64 at half the rate, and TF32 numbers are rounded by several operations.
_BUILT = {"16 bit": 128, "tf32": 32, "tf32x3": 16, "float64": 64}
STEP_CLOCKS = 100  # of a step besides its work: until all warps have what was loaded


def built_step_clocks(precision: str, itemsize: int, rows: int, cols: int, terms: int) -> float:
    """What a step of a product takes whose left operand is made in registers."""
    multiplied = step_clocks(precision, 0, rows, cols, terms)
    loaded = step_clocks(precision, itemsize, 0, cols, terms)
    return STEP_CLOCKS + max(multiplied, loaded) + rows * terms / _BUILT[precision]


# ---- sums in parts, which are added in their order ----


def splits_for(rows: int, cols: int, terms: int, most: int) -> int:
    """How many parts, at most `most`, the sums of so many terms come in, of a result of (rows,
    cols)."""
    tiles = ceil_div(rows, min(bucket(rows), 128)) * ceil_div(cols, 64)
    return min(shares(tiles, terms), most)


@triton.jit(do_not_specialize=["splits", "slots"])
def total_kernel(
    sums,  # (splits, B, C) or None
    dots,  # (slots, C, B) or None
    bias,  # (C) or None
    out,  # (B, C)
    B,
    C,
    splits,
    slots,
    BLOCK: tl.constexpr,  # where column c has dots from slot c // BLOCK on; or None
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    DTYPE: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    down = count_tiles(B, ROWS)
    b = (tl.program_id(0) % down).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    c = (tl.program_id(0) // down).to(tl.int64) * COLS + tl.arange(0, COLS)[None, :]
    inside = (b < B) & (c < C)
    at = b * C + c
    total = tl.zeros((ROWS, COLS), DTYPE)
    if sums is not None:
        for split in range(splits):
            total += tl.load(sums + tl.cast(split, tl.int64) * B * C + at, inside, 0.0)
    if dots is not None:
        for slot in range(slots):
            there = inside
            if BLOCK is not None:
                there = there & (slot >= c // BLOCK)
            total += tl.load(dots + (tl.cast(slot, tl.int64) * C + c) * B + b, there, 0.0)
    if bias is not None:
        total += tl.load(bias + c, c < C, 0.0).to(DTYPE)
    tl.store(out + at, total.to(out.dtype.element_ty), inside)


def total(
    out: Tensor,
    sums: Tensor | None = None,
    dots: Tensor | None = None,
    bias: Tensor | None = None,
    block: int | None = None,
) -> None:
    """out (B, C) = all parts of the sums (parts, B, C) and the dots (parts, C, B), and the bias."""
    B, C = out.shape
    cols = min(bucket(C), 32 if B > 1 else 1024)
    rows = 1024 // cols
    total_kernel[(ceil_div(B, rows) * ceil_div(C, cols),)](
        sums,
        dots,
        bias,
        out,
        B,
        C,
        0 if sums is None else sums.shape[0],
        0 if dots is None else dots.shape[0],
        BLOCK=block,
        ROWS=rows,
        COLS=cols,
    )
