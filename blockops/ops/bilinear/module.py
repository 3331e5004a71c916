"""The bilinear family as modules: Quadratic, Bilinear and their lazy forms."""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from ..._checks import check_feature_counts, check_vector_input
from .functional import bilinear, quadratic


class Quadratic(nn.Module):
    """y_k = sum_ij weight_ijk x_i x_j (+ bias_k): (*, in_features) -> (*, out_features).

    in_features: n, at least 0. out_features: m, at least 0. bias: learn an additive bias of shape
    (m), default False. device, dtype: of the parameters. Raises ValueError for a negative size.

    Parameters: weight (n, n, m), exactly W as it stands in the formula; bias (m) or None.
    Initial values: weight_ijk ~ N(0, 1 / (n^2 + 2 n)). For inputs of independent N(0, 1) features
    sum_ij E[x_i^2 x_j^2] = n^2 + 2 n, so that each output has mean 0 over weights and the input's
    unit variance. The bias starts at 0.

    Cost and derivatives: see blockops.quadratic.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_feature_counts("Quadratic", in_features=in_features, out_features=out_features)
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        factory = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(in_features, in_features, out_features, **factory))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, **factory)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        n = self.in_features
        if self.weight.numel() > 0:
            nn.init.normal_(self.weight, std=1 / math.sqrt(n * n + 2 * n))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        try:  # nn.Module finds self.weight only after Python has made an AttributeError
            parameters = self._parameters
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # pruned, or parametrized
            weight, bias = self.weight, self.bias
        return quadratic(x, weight, bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class Bilinear(nn.Bilinear):
    """torch.nn.Bilinear on blockops' kernels: y_k = sum_ij weight_kij x1_i x2_j + bias_k.

    The same arguments, parameters (weight (m, n1, n2), bias (m)), initial values (uniform within
    +-1/sqrt(n1)) and state_dict as torch.nn.Bilinear, of which this is a subclass. Raises
    ValueError for a negative size, and for in1_features = 0 as torch.nn.Bilinear does.

    Cost and derivatives: see blockops.bilinear.
    """

    def __init__(
        self,
        in1_features: int,
        in2_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_feature_counts(
            "Bilinear",
            in1_features=in1_features,
            in2_features=in2_features,
            out_features=out_features,
        )
        super().__init__(in1_features, in2_features, out_features, bias, device, dtype)

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        try:  # nn.Module finds self.weight only after Python has made an AttributeError
            parameters = self._parameters
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # pruned, or parametrized
            weight, bias = self.weight, self.bias
        return bilinear(input1, input2, weight, bias)


class LazyQuadratic(LazyModuleMixin, Quadratic):
    """Quadratic whose in_features is read off the first batch; it then becomes a Quadratic.

    out_features, bias, device, dtype: as for Quadratic. The parameters are uninitialized until the
    first forward call, or until a state_dict that has them is loaded.
    """

    cls_to_become = Quadratic
    weight: UninitializedParameter
    bias: UninitializedParameter | None

    def __init__(
        self,
        out_features: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_feature_counts("LazyQuadratic", out_features=out_features)
        super().__init__(0, 0)
        self.out_features = out_features
        self.weight = UninitializedParameter(device=device, dtype=dtype)
        if bias:
            self.bias = UninitializedParameter(device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        if not self.has_uninitialized_params():
            super().reset_parameters()

    def initialize_parameters(self, x: Tensor) -> None:
        if self.has_uninitialized_params():
            check_vector_input("LazyQuadratic", "x", x)
            n = x.shape[-1]
            with torch.no_grad():
                self.weight.materialize((n, n, self.out_features))
                if self.bias is not None:
                    self.bias.materialize((self.out_features,))
                self.in_features = n
                self.reset_parameters()
        self.in_features = self.weight.shape[0]  # also where load_state_dict brought the weight


class LazyBilinear(LazyModuleMixin, Bilinear):
    """Bilinear whose in1_features and in2_features are read off the first batch; it then becomes a
    Bilinear.

    out_features, bias, device, dtype: as for Bilinear. The parameters are uninitialized until the
    first forward call, or until a state_dict that has them is loaded.
    """

    cls_to_become = Bilinear
    weight: UninitializedParameter
    bias: UninitializedParameter | None

    def __init__(
        self,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_feature_counts("LazyBilinear", out_features=out_features)
        super().__init__(1, 1, 0, bias=False)  # torch.nn.Bilinear refuses 0 input features
        self.in1_features = self.in2_features = 0
        self.out_features = out_features
        self.weight = UninitializedParameter(device=device, dtype=dtype)
        if bias:
            self.bias = UninitializedParameter(device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        if not self.has_uninitialized_params():
            super().reset_parameters()

    def initialize_parameters(self, input1: Tensor, input2: Tensor) -> None:
        if self.has_uninitialized_params():
            check_vector_input("LazyBilinear", "input1", input1)
            check_vector_input("LazyBilinear", "input2", input2)
            n1, n2 = input1.shape[-1], input2.shape[-1]
            with torch.no_grad():
                self.weight.materialize((self.out_features, n1, n2))
                if self.bias is not None:
                    self.bias.materialize((self.out_features,))
                self.in1_features, self.in2_features = n1, n2
                self.reset_parameters()
        # also where load_state_dict brought the weight
        _, self.in1_features, self.in2_features = self.weight.shape
