"""The Fourier coefficients as a module."""

from torch import Tensor, nn

from ..._checks import check_int
from .functional import check_norm, fourier_coefficients


class FourierCoefficients(nn.Module):
    """X_k = c sum_j x_j exp(-2 pi i j k / n), k = 0 .. floor(n / 2), along dim; no parameters.

    dim, norm, cost and derivatives: see blockops.fourier_coefficients. Raises TypeError for a dim
    that is no int, ValueError for an unknown norm.
    """

    def __init__(self, dim: int = -1, norm: str = "ortho") -> None:
        check_int("FourierCoefficients", "dim", dim)
        check_norm("FourierCoefficients", norm)
        super().__init__()
        self.dim = dim
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return fourier_coefficients(x, self.dim, self.norm)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, norm={self.norm!r}"
