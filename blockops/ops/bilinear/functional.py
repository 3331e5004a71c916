"""The public functions of the bilinear family."""

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from ... import _dispatch
from ..._dispatch import Op
from . import reference

_quadratic = Op("quadratic", reference.quadratic)
_bilinear = Op("bilinear", reference.bilinear)
_short_way_of_quadratic = _quadratic.short_way
_short_way_of_bilinear = _bilinear.short_way


def quadratic(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The quadratic layer, y_k = sum_ij weight_ijk x_i x_j + bias_k.

    x: (*, n), any leading dimensions, or none. weight: (n, n, m), as it stands in the formula.
    bias: (m) or None. All of one dtype, float64, float32, bfloat16 or float16, on one device.
    Returns (*, m) in that dtype.

    Only weight_ijk + weight_jik matters, and the kernels use it: they visit the pairs i <= j only,
    half the work of the einsum in each of the three passes. bfloat16 and float16 accumulate in
    float32; float32 stays float32 unless torch.set_float32_matmul_precision asks for less. The
    result has the same bits at every number of threads.

    Derivative: grad_x_i = sum_jk (weight_ijk + weight_jik) x_j g_k; grad_weight_ijk =
    sum_b x_bi x_bj g_bk, symmetric in i and j. Derivatives of any order are exact. Under
    torch.func transforms and forward-mode AD the reference formula serves.

    Cost for B rows: n (n + 1) m B FLOPs forward and twice that backward; extra memory is at most
    the packed weight, n (n + 1) m / 2 elements (the whole square for m <= 3), plus 16 MB; nothing
    of size B*n*m or B*n*n.

    Raises ValueError for a wrong shape, TypeError for a wrong or mixed dtype, RuntimeError for
    tensors on different devices or a forced backend that cannot serve.

    Method: the row-wise Khatri-Rao (face-splitting) product of x with itself, built tile by tile,
    times the packed symmetric weight; docs/performance.md has the schedules.
    """
    if _dispatch.short_way_open and not is_dynamo_compiling():
        y = _short_way_of_quadratic(x, weight, bias)
        if y is not NotImplemented:
            return y
    return _quadratic.call(x, weight, bias)


def bilinear(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The bilinear layer, y_k = sum_ij weight_kij x1_i x2_j + bias_k: the contract of
    torch.nn.functional.bilinear.

    x1: (*, n1) and x2: (*, n2) with the same leading dimensions, or none. weight: (m, n1, n2).
    bias: (m) or None. All of one dtype, float64, float32, bfloat16 or float16, on one device.
    Returns (*, m) in that dtype.

    bfloat16 and float16 accumulate in float32; float32 stays float32 unless
    torch.set_float32_matmul_precision asks for less. The result has the same bits at every number
    of threads. For one input given twice, `quadratic` does half the work.

    Derivative: grad_x1_i = sum_jk weight_kij x2_j g_k; grad_x2_j = sum_ik weight_kij x1_i g_k, both
    from one contraction of g with weight; grad_weight_kij = sum_b g_bk x1_bi x2_bj. Derivatives of
    any order are exact. Under torch.func transforms and forward-mode AD the reference serves.

    Cost for B rows: 2 n1 n2 m B FLOPs forward and twice that backward;
    extra memory at most 16 MB in float32 and float64, plus a copy of weight for m <= 16, and a
    float32 copy of weight and of its gradient for bfloat16 and float16; nothing of size B*n*m or
    B*n1*n2. A weight that is not contiguous is copied.

    Raises ValueError for a wrong shape, TypeError for a wrong or mixed dtype, RuntimeError for
    tensors on different devices or a forced backend that cannot serve.

    Method: the row-wise Khatri-Rao product of two of the three operands, built tile by tile, in a
    matrix product with the weight; docs/performance.md has the schedules.
    """
    if _dispatch.short_way_open and not is_dynamo_compiling():
        y = _short_way_of_bilinear(x1, x2, weight, bias)
        if y is not NotImplemented:
            return y
    return _bilinear.call(x1, x2, weight, bias)
