from .functional import fourier_coefficients
from .module import FourierCoefficients

__all__ = ["FourierCoefficients", "fourier_coefficients"]
