"""center as a module."""

from torch import Tensor, nn

from .functional import _axes, center


class Centered(nn.Module):
    """y = x - mean(x), of any shape.

    dim: what the mean runs over: None (all elements), an axis, or a tuple of axes. Raises TypeError
    for a dim that is no int. It has no parameters.

    Cost and derivatives: see blockops.center.
    """

    def __init__(self, dim: int | tuple[int, ...] | None = None) -> None:
        super().__init__()
        if dim is not None:
            _axes(dim)  # refuses what is none
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return center(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
