"""Bilinear, quadratic, linear+ReLU and centered layers for PyTorch, fast and exact."""

from . import _library as _library  # first, for it says what to do where torch is missing
from . import init as init
from ._dispatch import backend
from ._info import info
from .blocks import Parallel, Repeat
from .devices import try_all_gpus, try_gpu
from .memory import keep_memory
from .ops.bilinear import Bilinear, LazyBilinear, LazyQuadratic, Quadratic, bilinear, quadratic
from .ops.center import Centered, center
from .ops.fourier import FourierCoefficients, fourier_coefficients
from .ops.linear_relu import LazyLinearReLU, LinearReLU, linear_relu

__version__ = "0.1.0"

__all__ = [
    "Bilinear",
    "Centered",
    "FourierCoefficients",
    "LazyBilinear",
    "LazyLinearReLU",
    "LazyQuadratic",
    "LinearReLU",
    "Parallel",
    "Quadratic",
    "Repeat",
    "__version__",
    "backend",
    "bilinear",
    "center",
    "fourier_coefficients",
    "info",
    "init",
    "keep_memory",
    "linear_relu",
    "quadratic",
    "try_all_gpus",
    "try_gpu",
]
