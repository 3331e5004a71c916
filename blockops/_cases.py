"""What a named case is: shapes of an op's arguments, with data to fill them and the work they mean.

Each op lists its own in ops/<op>/cases.py; tests and benchmarks take them from there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Shapes for one call of a public op.

    op: its name. shapes: argument name -> shape, in the order of the call; the weight's scale is
    1/sqrt(fan_in). options: the other arguments, by name. flops: of the forward pass as the formula
    stands (a product and a sum count 2); floor_flops: the least that a kernel can do (i <= j only,
    for quadratic). exact: whether integers in give results that no dtype has to round. source:
    whose workload it is, "" for a test shape; batch: its batch there, where the shapes here have it
    cut to what two CPU cores do in under a second.
    """

    op: str
    name: str
    shapes: Mapping[str, tuple[int, ...]]
    flops: int
    floor_flops: int
    fan_in: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True
    source: str = ""
    batch: int | None = None

    def tensors(
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
        integers: bool = False,
    ) -> dict[str, Tensor]:
        """The arguments by name: normal random numbers, or integers in -2..2 whose sums and
        products are exact in every dtype that accumulates in float32."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, shape in self.shapes.items():
            if integers:
                values = torch.randint(-2, 3, shape, generator=generator).double()
            else:
                values = torch.randn(shape, generator=generator, dtype=torch.float64)
                values *= self.fan_in**-0.5 if name == "weight" and self.fan_in else 1.0
            tensors[name] = values.to(dtype).to(device)
        return tensors
