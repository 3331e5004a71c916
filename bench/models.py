"""Whole models of stock layers, and the same with blockops' layers: cases as an op has them.

A model's arguments are its input and its parameters in their order. The input is data: it wants no
gradient.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import blockops
from blockops._cases import Case

from .providers import Provider

OP = "model"  # the name under which they are measured


def mlp_case(name: str, rows: int, n: int, hidden: int, m: int, source: str) -> Case:
    flops = 2 * rows * hidden * (n + m)
    shapes = {
        "x": (rows, n),
        "weight_1": (hidden, n),
        "bias_1": (hidden,),
        "weight_2": (m, hidden),
        "bias_2": (m,),
    }
    return Case(OP, name, shapes, flops=flops, floor_flops=flops, source=source)


def mlp(x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor) -> Tensor:
    return F.linear(torch.relu(F.linear(x, weight_1, bias_1)), weight_2, bias_2)


def stock(case: Case) -> nn.Module:
    hidden, n = case.shapes["weight_1"]
    m, _ = case.shapes["weight_2"]
    return nn.Sequential(nn.Linear(n, hidden), nn.ReLU(), nn.Linear(hidden, m))


def ours(case: Case) -> nn.Module:
    hidden, n = case.shapes["weight_1"]
    m, _ = case.shapes["weight_2"]
    return nn.Sequential(blockops.LinearReLU(n, hidden), nn.Linear(hidden, m))


WORKLOADS = [mlp_case("textbook_mlp", 2, 20, 256, 10, source="the textbook MLP, batch of two")]
PROVIDERS = [Provider("blockops", module=ours), Provider("nn.Sequential", module=stock)]
COLUMNS = {"nn.Sequential": ("nn.Sequential",)}
