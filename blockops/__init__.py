"""Fast, exact bilinear and quadratic layers for PyTorch."""

from . import _library as _library  # first, for it says what to do where torch is missing
from ._dispatch import backend
from ._info import info
from .ops.bilinear import Bilinear, LazyBilinear, LazyQuadratic, Quadratic, bilinear, quadratic

__version__ = "0.1.0"

__all__ = [
    "Bilinear",
    "LazyBilinear",
    "LazyQuadratic",
    "Quadratic",
    "__version__",
    "backend",
    "bilinear",
    "info",
    "quadratic",
]
