"""center: x - mean(x)."""

from .functional import center
from .module import Centered

__all__ = ["Centered", "center"]
