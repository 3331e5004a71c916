"""linear_relu: a linear layer and its ReLU in one op."""

from .functional import linear_relu
from .module import LazyLinearReLU, LinearReLU

__all__ = ["LazyLinearReLU", "LinearReLU", "linear_relu"]
