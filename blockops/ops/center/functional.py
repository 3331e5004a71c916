"""The public function center."""

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from ... import _dispatch
from ..._dispatch import Op
from . import reference

_center = Op("center", reference.center)
_short_way = _center.short_way


def center(x: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """The centered layer, y = x - mean(x).

    x: any shape, float64, float32, bfloat16 or float16. dim: what the mean runs over: None (all
    elements), an axis, or a tuple of axes, which may count from the end; an empty tuple means all,
    as in torch.mean. Returns x's shape and dtype, contiguous; an empty x stays empty.

    Sums are kept in float64, so that float16 does not overflow and a large offset costs no digits;
    they are added in an order that depends on the shape alone: the same bits at every number of
    threads. Under autocast x keeps its dtype.

    Derivative: centering is linear and its own adjoint, so that grad_x = center(g, dim), to any
    order; nothing is kept for it. Under torch.func transforms and forward-mode AD the reference
    formula serves.

    Cost for N elements: 2 N FLOPs; N read and N written where what one mean runs over fits into the
    cache, else another N read; no temporary of that size, unless x is not contiguous, which copies
    it, or its axes do not follow each other as kept, reduced, kept, reduced (any of them absent),
    which copies x and the result.

    Raises TypeError for a dtype that is not floating or a dim that is no int, IndexError for an
    axis that x does not have, ValueError for an axis named twice, RuntimeError for a forced backend
    that cannot serve.

    Method: sums by tile in the cache, partial sums in their order; docs/performance.md has the
    measurements.
    """
    if dim is not None and type(dim) is not int:
        dim = _axes(dim)
    if _dispatch.short_way_open and not is_dynamo_compiling():
        y = _short_way(x, dim)
        if y is not NotImplemented:
            return y
    return _center.call(x, dim)


def _axes(dim: object) -> tuple[int, ...]:
    axes = dim if isinstance(dim, tuple | list) else (dim,)
    wrong = [axis for axis in axes if not isinstance(axis, int) or isinstance(axis, bool)]
    if wrong:
        raise TypeError(
            "center: dim must be None, an int or a tuple of ints, got "
            + (type(dim).__name__ if len(axes) == 1 and wrong[0] is dim else repr(dim))
        )
    return tuple(axes)
