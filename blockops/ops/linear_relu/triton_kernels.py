"""Triton kernels of linear_relu. One kernel makes its three products, a sum of terms for each row
and column of a result:

    forward      y = relu(x weight^T + bias)       rows b, columns k, terms i
    grad_x       grad_z weight                     rows b, columns i, terms k
    grad_weight  grad_z^T x                        rows k, columns i, terms b

grad_z is grad where y > 0 or y is NaN, else 0: made as grad is read, never stored. The sums of its
rows in the third product, over b, are grad_bias. Where rows and columns are too few tiles to fill a
GPU, several programs share the terms of a tile; a second kernel adds up their parts in order.
"""

import math

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
    precisions,
    shares,
    step_clocks,
    sum_dtype,
)


@triton.jit
def product_kernel(
    a,  # (rows, terms) at a + row * a_row + term * a_term
    y,  # alike, or None: where it is 0 or less, a counts as 0
    b,  # (terms, cols) at b + term * b_term + col * b_col
    bias,  # (cols) or None
    out,  # (parts, rows, cols), or None, and b too, where only the row sums are wanted
    row_sums,  # (parts, rows) or None: the sums of a's rows
    rows,
    cols,
    terms,
    part_terms,  # how many terms a part has
    a_row,
    a_term,
    b_term,
    b_col,
    WIDE: tl.constexpr,  # whether offsets in a tile need 64 bits
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TERMS: tl.constexpr,
):
    DTYPE: tl.constexpr = tl.float64 if a.dtype.element_ty == tl.float64 else tl.float32
    down = count_tiles(rows, ROWS)
    across = tl.maximum(count_tiles(cols, COLS), 1)
    tile = tl.program_id(0)
    # Programs that run at the same time share what they read of a and b.
    i, j = tl.swizzle2d(tile // across, tile % across, down, across, 8)
    row = tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    term = tl.arange(0, TERMS)
    if WIDE:
        row, col, term = row.to(tl.int64), col.to(tl.int64), term.to(tl.int64)
    a_at = row[:, None] * a_row + term[None, :] * a_term
    b_at = term[:, None] * b_term + col[None, :] * b_col
    row0, col0, part = i.to(tl.int64) * ROWS, j.to(tl.int64) * COLS, tl.program_id(1).to(tl.int64)
    in_rows = row < tl.minimum(rows - row0, ROWS).to(tl.int32)
    in_cols = col < tl.minimum(cols - col0, COLS).to(tl.int32)
    a += row0 * a_row
    if out is not None:
        b += col0 * b_col

    total = tl.zeros((ROWS, COLS), DTYPE)
    sums = tl.zeros((ROWS, TERMS), DTYPE)
    first = part * part_terms
    last = tl.minimum(first + part_terms, terms)
    for begin in range(first, last, TERMS):
        at = tl.cast(begin, tl.int64)  # which the interpreter would take for 32 bits
        in_sum = term < tl.minimum(last - at, TERMS).to(tl.int32)
        in_a = in_rows[:, None] & in_sum[None, :]
        a_tile = tl.load(a + at * a_term + a_at, in_a, 0.0)
        if y is not None:
            y_tile = tl.load(y + row0 * a_row + at * a_term + a_at, in_a, 0.0)
            a_tile = tl.where(y_tile <= 0, 0.0, a_tile)  # NaN lets it through
        if row_sums is not None:
            sums += a_tile.to(DTYPE)
        if out is not None:
            in_b = in_sum[:, None] & in_cols[None, :]
            b_tile = tl.load(b + at * b_term + b_at, in_b, 0.0)
            total = add_product(total, a_tile, b_tile, PRECISION)

    if row_sums is not None:
        value = tl.sum(sums, 1).to(row_sums.dtype.element_ty)
        tl.store(row_sums + part * rows + row0 + row, value, in_rows & (j == 0))
    if out is not None:
        if bias is not None:
            total += tl.load(bias + col0 + col, in_cols, 0.0).to(DTYPE)[None, :]
        if RELU:
            total = tl.where(total <= 0, 0.0, total)  # NaN stays, as with torch.relu
        out += (part * rows + row0) * cols + col0
        in_out = in_rows[:, None] & in_cols[None, :]
        total = total.to(out.dtype.element_ty)
        tl.store(out + row[:, None] * cols + col[None, :], total, in_out)


@triton.jit
def add_parts_kernel(
    parts,  # (count, size)
    bias,  # (cols) or None, where the size is rows * cols
    out,  # (size)
    count,
    size,
    cols,
    RELU: tl.constexpr,
    SIZE: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), parts.dtype.element_ty)
    for _ in range(count):
        total += tl.load(parts + at, at < size, 0.0)
        parts += size
    if bias is not None:
        total += tl.load(bias + at % cols, at < size, 0.0).to(total.dtype)
    if RELU:
        total = tl.where(total <= 0, 0.0, total)
    tl.store(out + at, total.to(out.dtype.element_ty), at < size)


# ---- configurations ----

# By precision: rows, columns and terms of a tile; warps; stages.
_TILES = {
    "16 bit": [
        (128, 128, 64, 8, 3),
        (128, 128, 32, 8, 4),
        (64, 64, 64, 8, 3),
        (64, 64, 32, 4, 3),
        (16, 64, 64, 4, 4),
        (16, 32, 128, 4, 3),
        (64, 16, 64, 4, 3),
    ],
    "tf32x3": [(128, 64, 16, 8, 3), (64, 64, 16, 4, 3), (16, 32, 32, 4, 4), (32, 32, 32, 4, 3)],
    "ieee": [(128, 64, 16, 8, 3), (64, 64, 16, 4, 3), (16, 32, 64, 4, 3), (64, 16, 32, 4, 3)],
    "tf32": [(128, 128, 32, 8, 3), (64, 64, 32, 8, 3), (16, 64, 64, 4, 3), (64, 16, 32, 4, 3)],
    "float64": [(64, 64, 16, 8, 2), (32, 32, 16, 4, 3), (16, 32, 16, 4, 3)],
}
_MOST_TERMS = 128
CONFIGS = by_precision("ROWS COLS TERMS", _TILES)


def _parts(rows: int, cols: int, terms: int) -> int:
    """How many programs share the terms of a tile."""
    return shares(ceil_div(rows, 64) * ceil_div(cols, 64), terms)


def _cost(key: tuple, PRECISION: str, ROWS: int, COLS: int, TERMS: int) -> float | None:
    rows, cols, terms, itemsize, precisions, aligned, _ = key
    if PRECISION not in precisions:
        return None
    if not aligned and itemsize == 2 and (ROWS + COLS) * TERMS > 8192:
        return None  # read one by one, so many elements at once would fill the registers
    parts = _parts(rows, cols, terms)
    programs = ceil_div(rows, ROWS) * ceil_div(cols, COLS) * parts
    clocks = step_clocks(PRECISION, itemsize, ROWS, COLS, TERMS)
    return kernel_clocks(programs, ceil_div(ceil_div(terms, parts), TERMS), clocks)


product = Tuned(product_kernel, CONFIGS, _cost)


# ---- calls ----


def _product(
    sizes: tuple[int, int, int],  # rows, cols, terms
    a: tuple[Tensor, int, int],  # with the strides of its rows and terms
    b: tuple[Tensor | None, int, int],  # with the strides of its terms and columns
    out: Tensor | None,
    y: Tensor | None = None,
    bias: Tensor | None = None,
    row_sums: Tensor | None = None,
    relu: bool = False,
) -> None:
    rows, cols, terms = sizes
    dtype = a[0].dtype
    buckets = [bucket(size) for size in sizes]
    share = ceil_div(terms, _parts(*buckets))
    part_terms = ceil_div(max(share, 1), _MOST_TERMS) * _MOST_TERMS
    parts = max(1, ceil_div(terms, part_terms))

    strides = (*a[1:], *b[1:])
    begins = [tensor.data_ptr() for tensor in (a[0], b[0], y) if tensor is not None]
    aligned = all(step == 1 or step % 16 == 0 for step in (*strides, *begins))
    wide = max(*strides, cols) * 128 >= 2**31
    key = (*buckets, dtype.itemsize, precisions(dtype), aligned, (y is None, a[1] == 1, b[1] == 1))

    def workspace(result: Tensor | None) -> Tensor | None:
        if result is None or parts == 1:
            return result
        return result.new_empty((parts, result.numel()), dtype=sum_dtype(dtype))

    def grid(constants):
        across = max(1, ceil_div(cols, constants["COLS"]))
        return ceil_div(rows, constants["ROWS"]) * across, parts

    out_parts, sums_parts = workspace(out), workspace(row_sums)
    product(
        grid,
        key,
        a[0],
        y,
        b[0],
        bias if parts == 1 else None,
        out_parts,
        sums_parts,
        rows,
        cols,
        terms,
        part_terms,
        *strides,
        WIDE=wide,
        RELU=relu and parts == 1,
    )
    if parts > 1:
        _add_parts(out_parts, out, bias, relu)
        _add_parts(sums_parts, row_sums)


def _add_parts(
    parts: Tensor | None, out: Tensor | None, bias: Tensor | None = None, relu: bool = False
) -> None:
    if out is None or out.numel() == 0:
        return
    grid = (ceil_div(out.numel(), 256),)
    add_parts_kernel[grid](
        parts, bias, out, *parts.shape, out.shape[-1], RELU=relu, SIZE=256, num_warps=4
    )


def linear_relu(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    m, n = weight.shape
    if y.numel() == 0:
        return
    _product(
        (y.numel() // m, m, n),
        (x.contiguous(), n, 1),
        (weight.contiguous(), 1, n),
        y,
        bias=bias if bias is None else bias.contiguous(),
        relu=True,
    )


def linear_relu_backward(
    results: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    y: Tensor,
    wanted: list[bool] | tuple[bool, ...] = (True, True, True),
) -> None:
    grad_x, grad_weight, grad_bias = results
    B, m = math.prod(grad.shape[:-1]), grad.shape[-1]
    grad, y = grad.contiguous(), y.contiguous()
    if wanted[0] and grad_x.numel() > 0:
        n = weight.shape[1]
        _product((B, n, m), (grad, m, 1), (weight.contiguous(), n, 1), grad_x, y=y)
    with_weight = wanted[1] and grad_weight.numel() > 0
    if with_weight or (wanted[2] and m > 0):
        n = x.shape[-1] if with_weight else 0
        _product(
            (m, n, B),
            (grad, 1, m),
            (x.contiguous(), n, 1) if with_weight else (None, 0, 0),
            grad_weight if with_weight else None,
            y=y,
            row_sums=grad_bias if wanted[2] else None,
        )
