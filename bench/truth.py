"""What a provider must give on a case: the formula's values in float64, and how far it may be off.

An error is measured against the sum of the absolute values of an element's terms; for center,
whose mean has one term in common with all elements, against the largest |x| that the mean runs
over, and the rounding of the result.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from blockops._cases import Case

from .contests import Contest

# tf32: float32 whose products CUDA may round to TF32.
TOLERANCES = {
    "float64": 1e-13,
    "float32": 1e-5,
    "tf32": 2e-3,
    "bfloat16": 1e-2,
    "float16": 2e-3,
}
DTYPES = {name: getattr(torch, name.replace("tf32", "float32")) for name in TOLERANCES}
CENTER_TOLERANCES = TOLERANCES | {"float64": 1e-14, "float32": 1e-6, "tf32": 1e-6}
# Added to what is centered, so that its mean is far from 0 and leaving it in is an error.
OFFSET = 1.0


def train(call: Callable[[], Tensor], leaves: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """The result, and the gradient of each leaf."""
    y = call()
    return [y, *torch.autograd.grad(y, leaves, grad)]


class Truth:
    """A case's first set of data with its result and gradients. precision: a key of TOLERANCES,
    the arguments' dtype if none is given. values: in float64; scales: what an error is measured
    against; grad: the gradient of the result that belongs to them."""

    def __init__(
        self, contest: Contest, case: Case, args: Sequence[Tensor], precision: str = ""
    ) -> None:
        self.dtype, device = args[0].dtype, args[0].device
        name = precision or str(self.dtype).removeprefix("torch.")
        self.tolerance = (CENTER_TOLERANCES if case.op == "center" else TOLERANCES)[name]
        self.weight = 1 + [*case.shapes, "weight"].index("weight")  # its gradient's place
        exact = [a.double() for a in args]
        shape = contest.reference(*(a.to("meta") for a in args), **case.options).shape
        grad = gradient(case, shape, self.dtype, 0, device)
        if case.op == "center":
            self.grad = grad
            self.values = formula(contest, case, exact, grad.double())
            self.scales = [
                _largest(t, case) + value.abs()
                for t, value in zip((exact[0], grad.double()), self.values, strict=True)
            ]
            return
        positive = [a.abs() for a in exact]
        self.scales = formula(contest, case, positive, grad.double().abs())
        self.grad = self._decided(case, exact, grad) if case.op == "linear_relu" else grad
        self.values = formula(contest, case, exact, self.grad.double())

    def _decided(self, case: Case, exact: Sequence[Tensor], grad: Tensor) -> Tensor:
        """grad, but 0 where rounding may turn the sign of the ReLU's argument: there the gradients
        of one right provider differ from another's by a whole term."""
        undecided = F.linear(*exact).abs() <= self.tolerance * self.scales[0]
        return grad.masked_fill(undecided, 0)

    def error(self, found: Sequence[Tensor], layout: tuple[int, ...] | None = None) -> float:
        """The largest in what `train` gave, or in the result alone, relative to scales. layout: the
        order in which the weight's gradient has the weight's axes."""
        worst = 0.0
        least = torch.finfo(self.dtype).smallest_normal  # below it a dtype has fewer digits
        for i, (a, value, scale) in enumerate(zip(found, self.values, self.scales, strict=False)):
            if layout is not None and i == self.weight:
                value, scale = value.permute(layout), scale.permute(layout)
            if a.shape != value.shape:
                return math.inf
            error = (a.detach().double() - value).abs_().div_(scale.clamp_min(least)).max().item()
            worst = max(worst, math.inf if math.isnan(error) else error)
        return worst


def arguments(
    case: Case, dtype: torch.dtype, seed: int, device: torch.device | str = "cpu"
) -> list[Tensor]:
    tensors = case.tensors(dtype, device, seed)
    return [t + OFFSET if case.op == "center" else t for t in tensors.values()]


def gradient(
    case: Case,
    shape: Sequence[int],
    dtype: torch.dtype,
    seed: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Of the result: normal random numbers, as the arguments are."""
    generator = torch.Generator().manual_seed(1000 + seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return (values + OFFSET if case.op == "center" else values).to(dtype).to(device)


def formula(contest: Contest, case: Case, args: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """The reference's result, and the gradient of each argument that wants one."""
    wants = [name not in contest.without_grad for name in case.shapes]
    leaves = [a.detach().requires_grad_(want) for a, want in zip(args, wants, strict=True)]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = train(lambda: contest.reference(*leaves, **case.options), wanted, grad)
    return [t.detach() for t in found]


def _largest(t: Tensor, case: Case) -> Tensor:
    return torch.linalg.vector_norm(t, math.inf, case.options["dim"], keepdim=True)
