from .functional import bilinear, quadratic
from .module import Bilinear, LazyBilinear, LazyQuadratic, Quadratic

__all__ = [
    "Bilinear",
    "LazyBilinear",
    "LazyQuadratic",
    "Quadratic",
    "bilinear",
    "quadratic",
]
