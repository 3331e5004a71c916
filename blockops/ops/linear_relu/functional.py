"""The public function linear_relu."""

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from ... import _dispatch
from ..._dispatch import Op
from . import reference

_linear_relu = Op("linear_relu", reference.linear_relu)
_short_way = _linear_relu.short_way


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer and its ReLU in one op, y_k = max(sum_i weight_ki x_i + bias_k, 0).

    x: (*, n), any leading dimensions, or none. weight: (m, n), as torch.nn.functional.linear has
    it. bias: (m) or None. All of one dtype, float64, float32, bfloat16 or float16, on one device.
    Returns (*, m) in that dtype; NaN stays NaN, and n = 0 gives relu(bias), as in PyTorch.

    bfloat16 and float16 accumulate in float32; float32 stays float32 unless
    torch.set_float32_matmul_precision asks for less. Runs with the same number of threads have the
    same bits; with another number they may have others, as ATen's products take threads of their
    own.

    Derivative: with z_k the sum and grad_z = g where y > 0 or y is NaN, else 0:
    grad_x = grad_z weight, grad_weight = grad_z^T x, grad_bias = sum_b grad_z_b. Backward keeps y,
    x where weight wants a gradient, and weight where x does. Derivatives of any order are those of
    torch.relu. Under torch.func transforms and forward-mode AD the reference formula serves.

    Cost for B rows: 2 n m B FLOPs forward and twice that backward. Beside x, weight, y and their
    gradients, backward needs grad_z, B m elements, and partial sums of grad_bias in float64, a row
    of m for each 16 rows or more. float16, and small work in bfloat16, is computed on float32
    copies; an argument that is not contiguous is copied.

    Raises ValueError for a wrong shape, TypeError for a wrong or mixed dtype, RuntimeError for
    tensors on different devices or a forced backend that cannot serve.

    Method: ATen's matrix product, and ReLU in place on its result; backward makes grad_z and
    grad_bias in one pass, then takes its two products. Small work runs in plain loops.
    docs/performance.md has the measurements.
    """
    if _dispatch.short_way_open and not is_dynamo_compiling():
        y = _short_way(x, weight, bias)
        if y is not NotImplemented:
            return y
    return _linear_relu.call(x, weight, bias)
