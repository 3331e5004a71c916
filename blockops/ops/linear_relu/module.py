"""linear_relu as modules: LinearReLU and its lazy form."""

import torch
from torch import Tensor, nn

from ..._checks import check_feature_counts, check_vector_input
from .functional import linear_relu


class LinearReLU(nn.Linear):
    """torch.nn.Linear followed by torch.nn.ReLU, in one module and one op:
    y_k = max(sum_i weight_ki x_i + bias_k, 0), (*, in_features) -> (*, out_features).

    The same arguments, parameters (weight (m, n), bias (m)), initial values (uniform within
    +-1/sqrt(n)) and state_dict as torch.nn.Linear, of which this is a subclass. Raises ValueError
    for a negative size, TypeError for one that is no int.

    Cost and derivatives: see blockops.linear_relu.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_feature_counts("LinearReLU", in_features=in_features, out_features=out_features)
        super().__init__(in_features, out_features, bias, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        try:  # nn.Module finds self.weight only after Python has made an AttributeError
            parameters = self._parameters
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # pruned, or parametrized
            weight, bias = self.weight, self.bias
        return linear_relu(input, weight, bias)


class LazyLinearReLU(nn.LazyLinear, LinearReLU):
    """LinearReLU whose in_features is read off the first batch; it then becomes a LinearReLU.

    out_features, bias, device, dtype: as for LinearReLU. The parameters are uninitialized until the
    first forward call, or until a state_dict that has them is loaded.
    """

    cls_to_become = LinearReLU

    def __init__(
        self,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_feature_counts("LazyLinearReLU", out_features=out_features)
        super().__init__(out_features, bias, device, dtype)

    def initialize_parameters(self, input: Tensor) -> None:
        if self.has_uninitialized_params():
            check_vector_input("LazyLinearReLU", "input", input)
        super().initialize_parameters(input)
