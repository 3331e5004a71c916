"""Triton kernels of center, on x seen as (O, R, K, S), where the mean runs over R and S.

A mean of all elements is (1, 1, 1, S), of the last axis (1, 1, K, S), of the first (1, R, K, 1), of
a batch of images by channel (1, R, K, S). Where what one mean runs over fits into the registers of
a program, x is read once; else programs add up parts of it, and others read it again and add up the
parts, all in an order that the shape and the tile decide. That pass goes from the end to the
beginning, for what was read last may still be in L2.

Sums are kept in float64: float16 does not overflow then, and a large offset costs no digits however
long the sums are. On the GPUs that this is for, adding in float64 is faster than reading memory.
"""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton_kernels import (
    PROCESSORS,
    Tuned,
    bucket,
    ceil_div,
    configurations,
    count_tiles,
)


@triton.jit
def place(
    tile,
    across,
    o,
    k0,
    R,
    K,
    S,
    WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Where a tile begins, the offsets of its elements (BLOCK_R, BLOCK_K, BLOCK_S) from there, and
    which of them there are. The offsets need 64 bits if it is WIDE. Tiles follow each other along
    S, `across` of them, then along R."""
    r0, s0 = tl.cast(tile // across, tl.int64) * BLOCK_R, tile % across * BLOCK_S
    r = tl.arange(0, BLOCK_R)[:, None, None]
    k = tl.arange(0, BLOCK_K)[None, :, None]
    s = tl.arange(0, BLOCK_S)[None, None, :]
    inside = (r < R - r0) & (k < K - k0) & (s < S - s0)
    if WIDE:
        r = r.to(tl.int64)
    return ((o * R + r0) * K + k0) * S + s0, (r * K + k) * S + s, inside


@triton.jit
def center_whole_kernel(
    x,
    y,
    R,
    K,
    S,
    count,  # R S
    WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,  # no less than R
    MOST_K: tl.constexpr,
    BLOCK_S: tl.constexpr,  # no less than S
    TILE: tl.constexpr,
):
    room: tl.constexpr = TILE // (BLOCK_R * BLOCK_S)
    BLOCK_K: tl.constexpr = room if room < MOST_K else MOST_K
    DTYPE: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    strips = count_tiles(K, BLOCK_K)
    strip = tl.program_id(0)
    o, k0 = (strip // strips).to(tl.int64), (strip % strips).to(tl.int64) * BLOCK_K
    begin, at, inside = place(0, 1, o, k0, R, K, S, WIDE, BLOCK_R, BLOCK_K, BLOCK_S)
    values = tl.load(x + begin + at, inside, 0.0)
    mean = tl.sum(tl.sum(values.to(tl.float64), 2), 0) / count
    values = values.to(DTYPE) - mean.to(DTYPE)[None, :, None]
    tl.store(y + begin + at, values.to(y.dtype.element_ty), inside)


@triton.jit
def center_sums_kernel(
    x,
    sums,  # (parts, O, K)
    O,  # noqa: E741 -- a size, as in the docstring
    R,
    K,
    S,
    WIDE: tl.constexpr,
    MOST_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MOST_S: tl.constexpr,
    TILE: tl.constexpr,
):
    BLOCK_S: tl.constexpr = MOST_S if MOST_S < TILE // BLOCK_K else TILE // BLOCK_K
    room: tl.constexpr = TILE // (BLOCK_K * BLOCK_S)
    BLOCK_R: tl.constexpr = room if room < MOST_R else MOST_R
    strips = count_tiles(K, BLOCK_K)
    strip, part = tl.program_id(0), tl.program_id(1)
    o, k0 = (strip // strips).to(tl.int64), (strip % strips).to(tl.int64) * BLOCK_K
    across = count_tiles(S, BLOCK_S)
    tiles = count_tiles(R, BLOCK_R) * across
    share = tl.cdiv(tiles, tl.num_programs(1))
    total = tl.zeros((BLOCK_R, BLOCK_K, BLOCK_S), tl.float64)
    for tile in range(part * share, tl.minimum((part + 1) * share, tiles)):
        begin, at, inside = place(tile, across, o, k0, R, K, S, WIDE, BLOCK_R, BLOCK_K, BLOCK_S)
        total += tl.load(x + begin + at, inside, 0.0).to(tl.float64)
    k = k0 + tl.arange(0, BLOCK_K)
    tl.store(sums + (part.to(tl.int64) * O + o) * K + k, tl.sum(tl.sum(total, 2), 0), k < K)


@triton.jit
def center_difference_kernel(
    x,
    y,
    sums,  # (parts, O, K)
    parts,
    O,  # noqa: E741 -- a size, as in the docstring
    R,
    K,
    S,
    count,  # R S
    WIDE: tl.constexpr,
    MOST_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MOST_S: tl.constexpr,
    PARTS: tl.constexpr,  # how many are added up at once
    TILE: tl.constexpr,
):
    BLOCK_S: tl.constexpr = MOST_S if MOST_S < TILE // BLOCK_K else TILE // BLOCK_K
    room: tl.constexpr = TILE // (BLOCK_K * BLOCK_S)
    BLOCK_R: tl.constexpr = room if room < MOST_R else MOST_R
    DTYPE: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    strips = count_tiles(K, BLOCK_K)
    strip = tl.num_programs(0) - 1 - tl.program_id(0)
    part = tl.num_programs(1) - 1 - tl.program_id(1)
    o, k0 = (strip // strips).to(tl.int64), (strip % strips).to(tl.int64) * BLOCK_K

    p, k = tl.arange(0, PARTS)[:, None], k0 + tl.arange(0, BLOCK_K)[None, :]
    total = tl.zeros((PARTS, BLOCK_K), tl.float64)
    for first in range(0, parts, PARTS):
        at = ((first + p).to(tl.int64) * O + o) * K + k
        total += tl.load(sums + at, (first + p < parts) & (k < K), 0.0)
    mean = (tl.sum(total, 0) / count).to(DTYPE)

    across = count_tiles(S, BLOCK_S)
    tiles = count_tiles(R, BLOCK_R) * across
    share = tl.cdiv(tiles, tl.num_programs(1))
    last = tl.minimum((part + 1) * share, tiles) - 1
    for back in range(0, last + 1 - part * share):
        begin, at, inside = place(
            last - back, across, o, k0, R, K, S, WIDE, BLOCK_R, BLOCK_K, BLOCK_S
        )
        values = tl.load(x + begin + at, inside, 0.0).to(DTYPE) - mean[None, :, None]
        tl.store(y + begin + at, values.to(y.dtype.element_ty), inside)


# ---- configurations ----

_LARGEST_TILE = 8192
_LARGEST_ROW = 16384  # of neighbours in memory, whose addresses need fewer registers
_IN_PARTS = configurations("TILE", (2048, 4, 1), (4096, 4, 1), (4096, 8, 1), (8192, 8, 1))
_WHOLE = [
    *configurations("TILE", (1024, 4, 1)),
    *_IN_PARTS,
    *configurations("TILE", (_LARGEST_ROW, 16, 1)),
]


def _distance(key: tuple, TILE: int) -> float | None:
    """How far a tile is from one that leaves work for the whole chip, yet is worth a program."""
    least, *_, powers = key
    if TILE < least or (TILE > _LARGEST_TILE and powers[1] > 1):
        return None
    wanted = min(max(math.prod(powers) / (2 * PROCESSORS), 1024), 4096)
    return abs(math.log2(TILE / wanted))


whole = Tuned(center_whole_kernel, _WHOLE, _distance)
sums_in_parts = Tuned(center_sums_kernel, _IN_PARTS, _distance)
difference = Tuned(center_difference_kernel, _IN_PARTS, _distance)


# ---- calls ----

View = tuple[int, int, int, int]  # O, R, K, S


@functools.lru_cache(maxsize=1024)
def _view(sizes: tuple[int, ...], dim: int | tuple[int, ...] | None) -> View | None:
    """The sizes of runs of axes that are all kept or all reduced; None where there are more than
    O, R, K and S. Axes of size 1 may be in any run."""
    reduced = _reduced(len(sizes), dim)
    runs = [1]
    for axis, size in enumerate(sizes):
        if size == 1:
            continue
        if (axis in reduced) == (len(runs) % 2 == 0):
            runs[-1] *= size
        else:
            runs.append(size)
    if len(runs) > 4:
        return None
    if len(runs) <= 2:
        return 1, 1, runs[0], math.prod(runs[1:])
    O, R, K, S = [*runs, 1][:4]  # noqa: E741 -- a size, as in the docstring
    return O, R, K, S


def _reduced(axes: int, dim: int | tuple[int, ...] | None) -> list[int]:
    """The axes that the mean runs over, in order."""
    if dim is None or dim == ():
        return list(range(axes))
    dims = dim if isinstance(dim, tuple) else (dim,)
    return sorted(d % max(axes, 1) for d in dims)


def _center(x: Tensor, y: Tensor, view: View) -> None:
    """y = x centered, both contiguous."""
    O, R, K, S = view  # noqa: E741 -- a size, as in the docstring
    powers = tuple(map(bucket, view))
    _, most_r, most_k, most_s = powers
    # Where neighbours in memory have means of their own, a tile has 128 bytes of them.
    block_k = min(most_k, max(1, 128 // x.element_size() // most_s))
    least = most_r * block_k * most_s
    kind = (x.element_size(), (S if S > 1 else K) % 16 == 0)  # whether loads can be of 128 bits
    wide = (min(most_r, _LARGEST_TILE) - 1) * K * S + 2 * _LARGEST_ROW >= 2**31
    if least <= (_LARGEST_ROW if R == 1 else _LARGEST_TILE):

        def grid(constants):
            room = constants["TILE"] // (most_r * most_s)
            return (O * ceil_div(K, min(room, most_k)),)

        key = (least, *kind, powers)
        shape = {"BLOCK_R": most_r, "MOST_K": most_k, "BLOCK_S": most_s}
        whole(grid, key, x, y, R, K, S, R * S, WIDE=wide, **shape)
        return

    key = (0, *kind, powers)
    strips = O * ceil_div(K, block_k)
    parts = max(1, min(4 * PROCESSORS // strips, ceil_div(R * S * block_k, 4096)))
    sums = x.new_empty((parts, O, K), dtype=torch.float64)
    shape = {"WIDE": wide, "MOST_R": most_r, "BLOCK_K": block_k, "MOST_S": most_s}
    grid = (strips, parts)
    sums_in_parts(grid, key, x, sums, O, R, K, S, **shape)
    difference(grid, key, x, y, sums, parts, O, R, K, S, R * S, PARTS=1024 // block_k, **shape)


def center(y: Tensor, x: Tensor, dim: list[int] | None = None) -> None:
    if x.numel() == 0:
        return
    dim = None if dim is None else tuple(dim)
    view = _view(tuple(x.shape), dim)
    if view is not None:
        _center(x.contiguous(), y, view)
        return
    reduced = _reduced(x.dim(), dim)
    kept = [axis for axis in range(x.dim()) if axis not in reduced]
    moved = x.permute(kept + reduced).contiguous()
    rows = math.prod(x.shape[axis] for axis in kept)
    centered = torch.empty_like(moved)
    _center(moved, centered, (1, 1, rows, x.numel() // rows))
    y.permute(kept + reduced).copy_(centered)
