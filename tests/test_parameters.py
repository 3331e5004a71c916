"""How the forward methods of modules come by their parameters, which nn.Module finds last."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from blockops import Bilinear, LinearReLU, Quadratic

MODULES = {
    "Quadratic": lambda: (Quadratic(4, 3, bias=True), 1),
    "Bilinear": lambda: (Bilinear(4, 4, 3), 2),
    "LinearReLU": lambda: (LinearReLU(4, 3), 1),
}


def doubled(module):
    return {name: 2 * parameter.detach() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("name", MODULES)
def test_compiled_exported_and_called_with_other_parameters(name):
    torch.manual_seed(0)
    module, count = MODULES[name]()
    inputs = tuple(torch.randn(count, 5, 4))
    expected = module(*inputs)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(module, fullgraph=True, backend="eager")(*inputs), expected)
    exported = torch.export.export(module, inputs)
    assert exported.state_dict.keys() == {"weight", "bias"}
    assert torch.equal(exported.module()(*inputs), expected)
    others = doubled(module)
    found = torch.func.functional_call(module, others, inputs)
    module.load_state_dict(others)
    assert torch.equal(found, module(*inputs)) and not torch.equal(found, expected)


class Doubled(nn.Module):
    def forward(self, values):
        return 2 * values


def parametrized(module, name):
    parametrize.register_parametrization(module, name, Doubled())


def pruned(module, name):
    prune.random_unstructured(module, name, amount=0.5)


def normed(module, name):
    if name == "weight":
        nn.utils.weight_norm(module, name, dim=None)
        with torch.no_grad():
            module.weight_g *= 2


def assigned(module, name):
    """As FSDP and DataParallel leave a module."""
    values = module._parameters.pop(name)
    setattr(module, name, 2 * values.detach())


@pytest.mark.parametrize("change", [parametrized, pruned, normed, assigned])
@pytest.mark.parametrize("name", MODULES)
def test_forward_sees_what_the_attribute_is(name, change):
    torch.manual_seed(0)
    module, count = MODULES[name]()
    nn.init.normal_(module.bias)
    inputs = torch.randn(count, 5, 4)
    before, plain = module(*inputs), MODULES[name]()[0]
    for parameter in ("weight", "bias"):
        change(module, parameter)
    found = module(*inputs)  # also makes the attribute anew where it is made with each call
    with torch.no_grad():
        for parameter in ("weight", "bias"):
            getattr(plain, parameter).copy_(getattr(module, parameter))
    assert torch.equal(found, plain(*inputs)) and not torch.equal(found, before)
